"""The resumed sweep: the same cells as the full one, computing only what a cell can change.

For every first restored token t, all rows (cell, sample) go through the blocks together:

1. Rows are sorted by the block at which they join, the first one that they change. A row that joins at block k takes
   the base run's residual stream there; before the first row joins, blocks are skipped.
2. Only tokens t... are run; the tokens before them are in the base run's cache.
3. The model is called with one row, and its blocks pass all rows that have joined to each other: what the model
   computes for one row (mask, positions, rotary embeddings) broadcasts. Each block's cache has the rows of the samples
   that are active there. Models for which that does not hold are called with all rows (`ResumeMode.broadcast`): rows
   that have not joined then run along as in the base run, once one has.
4. The last block's output at the positions read then goes through the model's own final norm and head, in chunks that
   bound rows x vocabulary.

Cells that cannot change what is read get the base run's scores (`plan.reach`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import torch

from causal_tracer.errors import TraceCancelled
from causal_tracer.experiment.base_run import Watch, Watched
from causal_tracer.metrics.values import sample_values
from causal_tracer.sweep.base_state import BaseState, base_state
from causal_tracer.sweep.edits import places_of
from causal_tracer.sweep.plan import Sweep, SweepChunk
from causal_tracer.sweep.read_out import Finals, ReadOut
from causal_tracer.sweep.resume_mode import RESUME_MODES, ResumeMode
from causal_tracer.sweep.resumed_pass import ResumedPass


def resumed_sweep(
    work: Sweep,
    cancelled: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
    mode: ResumeMode = RESUME_MODES[0],
) -> Iterator[SweepChunk]:
    """Compute every cell of the plan for every sample: the scores of `full_sweep`, without the redundant work.

    Args:
        work: The sweep.
        cancelled: Called before each block; True stops the sweep.
        watch: Called with the logits of every row that is run; cells that change nothing are not among them.
        mode: How the model is resumed.

    Yields:
        Scores, in the order of the passes.

    Raises:
        TraceCancelled: `cancelled` returned True.
        NumericsError: A run gave NaN or infinite logits.
        CannotResume: The model does not support this mode.
    """
    base = work.base
    groups, unchanged = _groups(work, mode)
    if unchanged:
        cells = torch.tensor(unchanged).repeat_interleave(base.samples)
        yield SweepChunk(cells, torch.arange(base.samples).repeat(len(unchanged)), base.scores.repeat(len(unchanged)))
    if not groups:
        return
    state = base_state(work.traced, base, tuple(groups), mode)
    read_out = ReadOut(work.traced, state.outputs, base.prompt.input_ids[-1], len(work.reads), mode.broadcast)
    most = read_out.most_rows
    waiting: Finals | None = None
    for finals, at_once in _passes(work, state, mode, groups, cancelled):
        waiting = finals if waiting is None else waiting.followed_by(finals)
        while len(waiting.cells) >= (1 if at_once else most):
            if cancelled():
                raise TraceCancelled("The sweep was cancelled.")
            ready, waiting = waiting.part(slice(most)), waiting.part(slice(most, None))
            logits = read_out(ready.states)
            if watch is not None:
                watch(Watched(ready.cells, ready.samples, logits))
            yield SweepChunk(ready.cells, ready.samples, sample_values(work.metric, logits, ready.samples))


def _groups(work: Sweep, mode: ResumeMode) -> tuple[dict[int, list[tuple[int, int]]], list[int]]:
    """Group the cells that go through the blocks together.

    Returns:
        By the first token of the pass, the block where each cell joins and the cell's number; and the cells that change
        nothing.
    """
    groups: dict[int, list[tuple[int, int]]] = defaultdict(list)
    unchanged = []
    for number, cell in enumerate(work.plan.cells):
        reached = work.reach(cell)
        if reached is None:
            unchanged.append(number)
        else:
            groups[reached.first_token if mode.use_cache else 0].append((reached.join, number))
    if work.traced.offloaded and groups:
        # Weights that are loaded for every pass cost more than tokens: all rows in few passes.
        return {min(groups): [member for members in groups.values() for member in members]}, unchanged
    return dict(groups), unchanged


def _passes(
    work: Sweep,
    state: BaseState,
    mode: ResumeMode,
    groups: dict[int, list[tuple[int, int]]],
    cancelled: Callable[[], bool],
) -> Iterator[tuple[Finals, bool]]:
    """Run all rows through the blocks, group by group and batch by batch.

    Yields:
        Each batch, and whether it is to be read out before more rows come.
    """
    samples = work.base.samples
    for number, (token, members) in enumerate(groups.items()):
        members.sort(key=lambda member: member[0])
        joins, cells = torch.tensor(members).repeat_interleave(samples, dim=0).unbind(dim=1)
        sample_of = torch.arange(samples).repeat(len(members))
        batches = torch.split(torch.arange(len(cells)), work.batch_size)
        for batch in batches:
            places = places_of(work.plan.cells, cells[batch])
            run = ResumedPass(work, state, mode, token, joins[batch], sample_of[batch], places, cancelled)
            # The first two tokens are shown at once; later ones are read out in large batches.
            at_once = number < 2 or (number == len(groups) - 1 and batch is batches[-1])
            yield Finals(run.final_states(), cells[batch], sample_of[batch]), at_once
