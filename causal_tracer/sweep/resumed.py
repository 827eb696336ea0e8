"""The resumed sweep: the same cells as the full one, computing only what a cell can change.

For every first restored token t, all rows (cell, sample) go through the blocks together:

1. Rows are sorted by the block at which they join, the first one that they change. A row that joins at block k takes
   the corrupted run's residual stream there; before the first row joins, blocks are skipped.
2. Only tokens t... are run; the tokens before them are in the corrupted run's cache.
3. The model is called with one row, and its blocks hand each other all rows that have joined: whatever the model makes
   for one row (mask, positions, rotary embeddings) broadcasts. Each block's cache has the rows of the samples of the
   rows active there. Models for which that does not hold are called with all rows (`ResumeMode.broadcast`): rows that
   have not joined then run along as in the corrupted run, once one has.
4. The last block's output at the last token then goes through the model's own final norm and head, in chunks that
   bound rows x vocabulary.

Cells that cannot change what is read at the last token are the corrupted run's (`plan.reach`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causal_tracer.errors import TraceCancelled
from causal_tracer.experiment.base_run import BaseRun, Watch, Watched
from causal_tracer.experiment.embeddings import corrupting
from causal_tracer.metrics.metric import Metric
from causal_tracer.metrics.values import metric_values
from causal_tracer.model.hooks import (
    first_tensor,
    replace_first_tensor,
    replace_stream_argument,
    replacing_forward,
    rows_first,
    rows_second,
    stream_argument,
)
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.runs import CleanRun, run_model
from causal_tracer.sweep.base_state import BaseState, base_state, headless, position_argument
from causal_tracer.sweep.caches import CannotResume
from causal_tracer.sweep.carried_state import PassValues, skipped_output
from causal_tracer.sweep.edits import restoring, site_edits
from causal_tracer.sweep.plan import Places, SweepChunk, SweepPlan, reach, restored_places
from causal_tracer.sweep.read_out import Finals, ReadOut


@dataclass(frozen=True, slots=True)
class ResumeMode:
    """How a model is resumed.

    Attributes:
        name: What results call it.
        use_cache: Leave out the tokens before the restored one; else resume in depth only.
        broadcast: Call the model with one row and let its blocks hand on many.
        positions: Tell the model the tokens' positions, which some do not take from their cache.
    """

    name: str
    use_cache: bool
    broadcast: bool
    positions: bool = False


RESUME_MODES = (
    ResumeMode("resumed", use_cache=True, broadcast=True),
    ResumeMode("resumed, all rows", use_cache=True, broadcast=False),
    ResumeMode("resumed in depth", use_cache=False, broadcast=False),
)
"""From the fastest to the one that asks least of a model."""


def resumed_sweep(
    traced: TracedModel,
    clean: CleanRun,
    base: BaseRun,
    plan: SweepPlan,
    metric: Metric,
    batch_size: int,
    cancelled: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
    mode: ResumeMode = RESUME_MODES[0],
) -> Iterator[SweepChunk]:
    """Compute every cell of the plan for every sample: `full_sweep`, with the work that changes nothing left out.

    Args:
        traced: The model.
        clean: Where restored activations come from.
        base: The base run.
        plan: The cells.
        metric: What is read off the logits.
        batch_size: Rows in flight at most.
        cancelled: Asked before each block; True stops the sweep.
        watch: Called with the logits of every row that is run; cells that change nothing are not among them.
        mode: How the model is resumed.

    Yields:
        Scores, as they come.

    Raises:
        TraceCancelled: `cancelled` said so.
        NumericsError: A run gave NaN or infinite logits.
        CannotResume: The model gives nothing to resume from in this way.
    """
    samples, reads = base.samples, plan.read_positions(len(base.prompt))
    groups, unchanged = _groups(traced, base, plan, mode, reads)
    if unchanged:
        cells = torch.tensor(unchanged).repeat_interleave(samples)
        yield SweepChunk(cells, torch.arange(samples).repeat(len(unchanged)), base.scores.repeat(len(unchanged)))
    if not groups:
        return
    state = base_state(traced, base, tuple(groups), use_cache=mode.use_cache, positions=mode.positions)
    read_out = ReadOut(traced, state.outputs, base.prompt.input_ids[-1], len(reads), broadcast=mode.broadcast)
    waiting = Finals.none()
    for finals in _passes(traced, clean, base, state, plan, mode, groups, batch_size, reads, cancelled):
        waiting = waiting.and_more(finals)
        while len(waiting) and (finals.at_once or len(waiting) >= read_out.most_rows):
            if cancelled():
                raise TraceCancelled("The sweep was cancelled.")
            ready, waiting = waiting.cut(read_out.most_rows)
            logits = read_out(ready.states)
            if watch is not None:
                watch(Watched(ready.cells, ready.samples, logits))
            yield SweepChunk(ready.cells, ready.samples, metric_values(metric, logits))


def _passes(
    traced: TracedModel,
    clean: CleanRun,
    base: BaseRun,
    state: BaseState,
    plan: SweepPlan,
    mode: ResumeMode,
    groups: dict[int, list[tuple[int, int]]],
    batch_size: int,
    reads: tuple[int, ...],
    cancelled: Callable[[], bool],
) -> Iterator[Finals]:
    """All rows through the blocks, group by group and batch by batch."""
    for number, (token, members) in enumerate(groups.items()):
        members.sort(key=lambda member: member[0])
        joins = torch.tensor([join for join, _ in members]).repeat_interleave(base.samples)
        cells = torch.tensor([number for _, number in members]).repeat_interleave(base.samples)
        sample_of = torch.arange(base.samples).repeat(len(members))
        batches = torch.split(torch.arange(len(cells)), batch_size)
        for batch in batches:
            places = restored_places(plan.cells, cells[batch])
            work = _Pass(
                traced, clean, base, state, mode, token, reads, joins[batch], sample_of[batch], places, cancelled
            )
            # The most telling tokens come first and fill in at once; later ones are read out in large batches.
            at_once = number < 2 or (number == len(groups) - 1 and batch is batches[-1])
            yield Finals(work.run(), cells[batch], sample_of[batch], at_once)


def _groups(
    traced: TracedModel, base: BaseRun, plan: SweepPlan, mode: ResumeMode, reads: tuple[int, ...]
) -> tuple[dict[int, list[tuple[int, int]]], list[int]]:
    """Cells that go through the blocks together, by the first token of their pass, with the block where each joins.

    Returns:
        The groups, and the cells that change nothing.
    """
    first_corrupted = base.prompt.subject_range[0]
    groups: dict[int, list[tuple[int, int]]] = defaultdict(list)
    unchanged = []
    for number, cell in enumerate(plan.cells):
        reached = reach(cell, first_corrupted, reads, traced.n_layers, traced.tokens_meet_again)
        if reached is None:
            unchanged.append(number)
            continue
        groups[reached.first_token if mode.use_cache else 0].append((reached.join, number))
    if traced.offloaded and groups:
        # Weights that are loaded for every pass cost more than tokens: all rows in few passes.
        return {min(groups): [member for members in groups.values() for member in members]}, unchanged
    return dict(groups), unchanged


@dataclass(eq=False)
class _Pass:
    """One pass of a batch of rows, sorted by the block where they join, through the blocks."""

    traced: TracedModel
    clean: CleanRun
    base: BaseRun
    state: BaseState
    mode: ResumeMode
    token: int
    reads: tuple[int, ...]
    joins: Tensor
    samples: Tensor
    places: Places
    cancelled: Callable[[], bool]

    def run(self) -> Tensor:
        """The last block's output at the positions read [rows, reads, ...]."""
        self._final: Tensor | None = None
        prompt, rows = self.base.prompt, len(self.samples)
        if (sharing := self.state.first_sharing) is not None:
            # One row has to be there when a block leaves values for later ones.
            self.joins = self.joins.clone()
            self.joins[0] = min(int(self.joins[0]), sharing)
        snapshot = self.state.snapshots[self.token]
        self._snapshot = snapshot
        if snapshot is not None and self.mode.broadcast and not snapshot.by_block:
            raise CannotResume("its cache has no layer for each block")
        everyone = torch.zeros(1, dtype=torch.long) if self.mode.broadcast else self.samples
        self._cache: Any = None if snapshot is None else snapshot.with_rows(everyone)
        given: dict[str, Any] = {} if snapshot is None else {snapshot.keyword: self._cache}
        tokens = range(self.token, len(prompt))
        if self.mode.positions:
            given |= position_argument(tokens, len(everyone))
        self._values = PassValues(self.state.companions, self.state.shared, self.samples)
        ids = torch.tensor(prompt.input_ids)[self.token :].expand(1 if self.mode.broadcast else rows, -1)
        # Rows that have not joined are not there yet, so row numbers hold at every block.
        edits, input_edits = site_edits(
            self.traced, self.clean, self.base, self.places, self.samples, self.token, hidden=False
        )
        if not self.mode.broadcast:
            # Some models feed the embeddings to later blocks as well.
            edits[self.traced.embedding] = corrupting(self.base.embeddings, prompt, self.samples, tokens)
        with headless(self.traced), replacing_forward(self.traced.blocks, self._block):
            run_model(self.traced, ids, edits, input_edits=input_edits, use_cache=snapshot is not None, **given)
        if self._final is None:
            raise CannotResume("the last block was not called")
        return self._final

    def _block(self, block: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.cancelled():
            raise TraceCancelled("The sweep was cancelled.")
        given = stream_argument(args, kwargs)
        if given is None:
            raise CannotResume(f"block {block} is not given a residual stream")
        stacked = self.traced.stacked_streams
        stream = rows_first(given, stacked)
        active = int((self.joins <= block).sum())
        last = block == self.traced.n_layers - 1
        if active == 0:
            return self._skip(block, stream, last)
        before = int((self.joins < block).sum())
        joining = slice(before, active) if self.mode.broadcast else slice(before, None)
        # Without broadcasting, the model's own arguments have all rows: those that join later run along, unchanged.
        stream = torch.cat([stream[:before], self._joining(block, joining, stream)])
        if self.mode.broadcast:
            args, kwargs = self._values.enter(block, before, active, self._rows(slice(before, active)), args, kwargs)
        replaced: list[tuple[int, Any]] = []
        given_cache = self._cache
        if self._snapshot is not None and self.mode.broadcast:
            for number in self._snapshot.layers_of(block):
                replaced.append((number, given_cache.layers[number]))
                given_cache.layers[number] = self._snapshot.layer(number, self.samples[:active])
        args, kwargs = replace_stream_argument(args, kwargs, rows_second(stream, stacked))
        output = forward(*args, **kwargs)
        for number, short in replaced:
            # Keys and values of this block are needed no more.
            given_cache.layers[number] = short
        hidden = first_tensor(output)
        if hidden is None:
            raise CannotResume(f"block {block} does not give a residual stream")
        hidden = self._restore_hidden(block, rows_first(hidden, stacked))
        if last:
            joined = self._joining(block + 1, slice(active, None), hidden)
            self._final = self._read(torch.cat([hidden[:active], joined]))
        output = replace_first_tensor(output, rows_second(hidden, stacked))
        self._values.leave(block, output)
        return output

    def _skip(self, block: int, stream: Tensor, last: bool) -> Any:
        """What a block returns before the first row has joined."""
        if last:
            self._final = self._read(self._joining(block + 1, slice(0, None), stream))
        if self.mode.broadcast:
            first = self._rows(slice(0, 1))
        else:
            # The model may keep what its blocks hand on: let it be right for all rows.
            first = self._rows(slice(0, None))
            stream = self._restore_hidden(block, self._corrupted_streams(block + 1, slice(0, None), stream))
        given = rows_second(stream, self.traced.stacked_streams)
        output = skipped_output(self.state.outputs[block], given, self.state.companions[block], first)
        self._values.leave(block, output)
        return output

    def _rows(self, part: slice) -> Callable[[Tensor], Tensor]:
        """Takes recorded values [samples, tokens, ...] to those of part of the rows, at the tokens of this pass."""
        samples = self.samples[part]
        return lambda recorded: recorded[samples.to(recorded.device), self.token - self.state.first_token :]

    def _read(self, streams: Tensor) -> Tensor:
        """The positions read, of streams at the tokens of this pass; earlier ones are the base run's."""
        earlier = [read - self.state.first_token for read in self.reads if read < self.token]
        here = streams[:, [read - self.token for read in self.reads if read >= self.token]]
        if not earlier:
            return here
        recorded = self.state.streams[-1]
        before = recorded[self.samples.to(recorded.device)][:, earlier]
        return torch.cat([before.to(here), here], dim=1)

    def _corrupted_streams(self, block: int, part: slice, like: Tensor) -> Tensor:
        """What the block takes in the corrupted run, for part of the rows, at the tokens of this pass."""
        return self._rows(part)(self.state.streams[block]).to(like.device)

    def _joining(self, block: int, part: slice, like: Tensor) -> Tensor:
        """The stream of part of the rows, with the hidden states put back that lie right before the block."""
        streams = self._corrupted_streams(block, part, like)
        stop = part.start + len(streams)
        return self._restored(block - 1, streams, part.start, stop)

    def _restore_hidden(self, block: int, hidden: Tensor) -> Tensor:
        return self._restored(block, hidden, 0, len(hidden))

    def _restored(self, block: int, streams: Tensor, start: int, stop: int) -> Tensor:
        """Streams of the rows start ... stop - 1 after a block, with the hidden states put back there."""
        if ("hidden", block) not in self.places:
            return streams
        name = self.traced.site_names["hidden"][block][0]
        parts = [part.part(start, stop) for part in self.places["hidden", block]]
        samples = self.samples[start:stop]
        restored = restoring(self.clean, self.base, name, parts, samples, self.token, 1)(streams)
        return streams if restored is None else restored
