"""The resumed sweep: gives the full sweep's scores, but computes only the tokens and blocks that a cell can change.

For every first restored token t, all rows (cell, sample) go through the blocks together:

1. Rows are sorted by the block at which they join, which is the first block that they change. A row that joins at block
   k starts there with the base run's residual stream. Blocks before the first join are skipped.
2. Only the tokens from t on are run. The tokens before t are in the base run's cache.
3. The model is called with one row, but its blocks process all rows that have joined. The mask, positions and rotary
   embeddings that the model computes for one row broadcast to them. Each block's cache has the rows of the samples that
   are active there. Models that do not support this are called with all rows (`ResumeMode.broadcast`). From the first
   join on, rows that have not joined yet then run as in the base run.
4. The last block's output at the positions read goes through the model's final norm and head, in chunks that bound
   rows x vocabulary.

Cells that cannot change the logits read get the base run's scores (`plan.reach`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import torch

from causal_tracer.errors import TraceCancelled
from causal_tracer.experiment.base_run import LogitsCallback, RowLogits
from causal_tracer.metrics.values import sample_values
from causal_tracer.sweep.base_state import BaseState, base_state
from causal_tracer.sweep.edits import batch_interventions
from causal_tracer.sweep.plan import Sweep, SweepChunk
from causal_tracer.sweep.read_out import FinalStates, ReadOut
from causal_tracer.sweep.resume_mode import RESUME_MODES, ResumeMode
from causal_tracer.sweep.resumed_pass import ResumedPass


def resumed_sweep(
    sweep: Sweep,
    cancelled: Callable[[], bool] = lambda: False,
    on_logits: LogitsCallback | None = None,
    mode: ResumeMode = RESUME_MODES[0],
) -> Iterator[SweepChunk]:
    """Compute every cell of the plan for every sample. The scores are those of `full_sweep` up to rounding.

    Args:
        sweep: The sweep.
        cancelled: Called before each block; returning True stops the sweep.
        on_logits: Called with the logits of every row that is run. Cells that change nothing are not run.
        mode: How the model is resumed.

    Yields:
        Scores, in the order of the passes.

    Raises:
        TraceCancelled: `cancelled` returned True.
        NumericsError: A run gave NaN or infinite logits.
        CannotResume: The model does not support this mode.
    """
    base = sweep.base
    groups, unchanged = _groups(sweep, mode)
    if unchanged:
        cells = torch.tensor(unchanged).repeat_interleave(base.samples)
        yield SweepChunk(cells, torch.arange(base.samples).repeat(len(unchanged)), base.scores.repeat(len(unchanged)))
    if not groups:
        return
    state = base_state(sweep.traced, base, tuple(groups), mode)
    read_out = ReadOut(sweep.traced, state.outputs, base.prompt.input_ids[-1], len(sweep.reads), mode.broadcast)
    most = read_out.most_rows
    waiting: FinalStates | None = None
    for states, at_once in _passes(sweep, state, mode, groups, cancelled):
        waiting = states if waiting is None else waiting.followed_by(states)
        while len(waiting.cells) >= (1 if at_once else most):
            if cancelled():
                raise TraceCancelled("The sweep was cancelled.")
            ready, waiting = waiting.part(slice(most)), waiting.part(slice(most, None))
            logits = read_out(ready.states)
            if on_logits is not None:
                on_logits(RowLogits(ready.cells, ready.samples, logits))
            yield SweepChunk(ready.cells, ready.samples, sample_values(sweep.metric, logits, ready.samples))


def _groups(sweep: Sweep, mode: ResumeMode) -> tuple[dict[int, list[tuple[int, int]]], list[int]]:
    """Group the cells by the first token of their pass.

    Returns:
        For each first token, pairs (block at which the cell joins, cell number); and the numbers of the cells that
        change nothing.
    """
    groups: dict[int, list[tuple[int, int]]] = defaultdict(list)
    unchanged = []
    for number, cell in enumerate(sweep.plan.cells):
        reached = sweep.reach(cell)
        if reached is None:
            unchanged.append(number)
        else:
            groups[reached.first_token if mode.use_cache else 0].append((reached.join, number))
    if sweep.traced.offloaded and groups:
        # Loading offloaded weights for a pass costs more than extra tokens: all cells share one group.
        return {min(groups): [member for members in groups.values() for member in members]}, unchanged
    return dict(groups), unchanged


def _passes(
    sweep: Sweep,
    state: BaseState,
    mode: ResumeMode,
    groups: dict[int, list[tuple[int, int]]],
    cancelled: Callable[[], bool],
) -> Iterator[tuple[FinalStates, bool]]:
    """Run all rows through the blocks, group by group and batch by batch.

    Yields:
        Each batch, and whether its logits must be computed at once instead of together with later batches.
    """
    samples = sweep.base.samples
    for number, (token, members) in enumerate(groups.items()):
        members.sort(key=lambda member: member[0])
        joins, cells = torch.tensor(members).repeat_interleave(samples, dim=0).unbind(dim=1)
        sample_of = torch.arange(samples).repeat(len(members))
        batches = torch.split(torch.arange(len(cells)), sweep.batch_size)
        for batch in batches:
            interventions = batch_interventions(sweep.plan.cells, cells[batch])
            run = ResumedPass(sweep, state, mode, token, joins[batch], sample_of[batch], interventions, cancelled)
            # The first two tokens' scores are yielded at once; later logits are computed in large batches.
            at_once = number < 2 or (number == len(groups) - 1 and batch is batches[-1])
            yield FinalStates(run.final_states(), cells[batch], sample_of[batch]), at_once
