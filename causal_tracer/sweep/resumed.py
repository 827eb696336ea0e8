"""The resumed sweep: the same cells as the full one, computing only what a cell can change.

For every first restored token t, all rows (cell, sample) go through the blocks together:

1. Rows are sorted by the block at which they join, the first one that they change. A row that joins at block k takes
   the corrupted run's residual stream there; before the first row joins, blocks are skipped.
2. Only tokens t... are run; the tokens before them are in the corrupted run's cache.
3. The model is called with one row, and its blocks hand each other all rows that have joined: whatever the model makes
   for one row (mask, positions, rotary embeddings) broadcasts. Each block's cache has the rows of the samples of the
   rows active there. Models for which that does not hold are called with all rows (`Way.broadcast`).
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
from torch import Tensor, nn

from causal_tracer.errors import TraceCancelled
from causal_tracer.hooks import (
    Edit,
    first_tensor,
    replace_first_tensor,
    replace_stream_argument,
    replacing_forward,
    stream_argument,
)
from causal_tracer.layers import TracedModel
from causal_tracer.metrics import Metric
from causal_tracer.runs import CleanRun, CorruptedRun, last_logits, run_model
from causal_tracer.sweep.base_state import BaseState, CannotResume, corrupted_state, headless
from causal_tracer.sweep.plan import Places, SweepChunk, SweepPlan, putting_back, reach, restored_places

HEAD_LOGITS = 48 * 2**20
"""Logits computed together at most: 192 MiB in float32."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a model is resumed.

    Attributes:
        name: What results call it.
        use_cache: Leave out the tokens before the restored one; else resume in depth only.
        broadcast: Call the model with one row and let its blocks hand on many.
    """

    name: str
    use_cache: bool
    broadcast: bool


WAYS = (
    Way("resumed", use_cache=True, broadcast=True),
    Way("resumed, all rows", use_cache=True, broadcast=False),
    Way("resumed in depth", use_cache=False, broadcast=False),
)
"""From the fastest to the one that asks least of a model."""


def resumed_sweep(
    traced: TracedModel,
    clean: CleanRun,
    corrupted: CorruptedRun,
    plan: SweepPlan,
    metric: Metric,
    batch_size: int,
    cancelled: Callable[[], bool] = lambda: False,
    way: Way = WAYS[0],
) -> Iterator[SweepChunk]:
    """Compute every cell of the plan for every noise sample: `full_sweep`, with the work that changes nothing left out.

    Args:
        traced: The model.
        clean: Where restored activations come from.
        corrupted: The base run.
        plan: The cells.
        metric: What is read off the logits.
        batch_size: Rows in flight at most.
        cancelled: Asked before each block; True stops the sweep.
        way: How the model is resumed.

    Yields:
        Scores, as they come.

    Raises:
        TraceCancelled: `cancelled` said so.
        NumericsError: A run gave NaN or infinite logits.
        CannotResume: The model gives nothing to resume from in this way.
    """
    n_tokens, samples = len(corrupted.prompt), corrupted.samples
    by_token: dict[int, list[tuple[int, int]]] = defaultdict(list)
    unchanged = []
    for number, cell in enumerate(plan.cells):
        reached = reach(cell, corrupted.prompt.subject_range[0], n_tokens, traced.n_layers)
        if reached is None:
            unchanged.append(number)
        else:
            by_token[reached.first_token if way.use_cache else 0].append((reached.join, number))
    if unchanged:
        cells = torch.tensor(unchanged).repeat_interleave(samples)
        yield SweepChunk(cells, torch.arange(samples).repeat(len(unchanged)), corrupted.scores.repeat(len(unchanged)))
    if not by_token:
        return
    base = corrupted_state(traced, corrupted, use_cache=way.use_cache)
    for token, members in by_token.items():
        members.sort(key=lambda member: member[0])
        joins = torch.tensor([join for join, _ in members]).repeat_interleave(samples)
        cells = torch.tensor([number for _, number in members]).repeat_interleave(samples)
        sample_of = torch.arange(samples).repeat(len(members))
        for batch in torch.split(torch.arange(len(cells)), batch_size):
            places = restored_places([plan.cells[int(number)] for number in cells[batch]])
            work = _Pass(traced, clean, base, way, token, joins[batch], sample_of[batch], places, cancelled)
            final = work.run(torch.tensor(corrupted.prompt.input_ids))
            start = 0
            for rows in torch.split(final, max(1, HEAD_LOGITS // traced.vocab_size)):
                scores = metric(_head(traced, base, rows, corrupted.prompt.input_ids[-1], way)).cpu()
                chosen = batch[start : start + len(rows)]
                start += len(rows)
                yield SweepChunk(cells[chosen], sample_of[chosen], scores)


@dataclass(eq=False)
class _Pass:
    """One pass of a batch of rows, sorted by the block where they join, through the blocks."""

    traced: TracedModel
    clean: CleanRun
    base: BaseState
    way: Way
    token: int
    joins: Tensor
    samples: Tensor
    places: Places
    cancelled: Callable[[], bool]

    def run(self, input_ids: Tensor) -> Tensor:
        """The last block's output at the last token [rows, d_model]."""
        self._final: Tensor | None = None
        rows = len(self.samples)
        snapshot = self.base.snapshots[self.token]
        self._snapshot = snapshot
        everyone = torch.zeros(1, dtype=torch.long) if self.way.broadcast else self.samples
        self._cache = None if snapshot is None else snapshot.with_rows(everyone)
        past = {} if snapshot is None else {snapshot.keyword: self._cache}
        ids = input_ids[self.token :].expand(1 if self.way.broadcast else rows, -1)
        with headless(self.traced), replacing_forward(self.traced.blocks, self._block):
            run_model(self.traced, ids, self._site_edits(), use_cache=snapshot is not None, **past)
        if self._final is None:
            raise CannotResume("the last block was not called")
        return self._final

    def _site_edits(self) -> dict[nn.Module, Edit]:
        """Edits inside blocks. Rows that have not joined are not there yet, so row numbers hold at every block."""
        return {
            self.traced.modules[name]: self._putting_back(name, site, layer)
            for site, layer in self.places
            if site != "hidden"
            for name in self.traced.site_names[site][layer]
        }

    def _putting_back(self, name: str, site: Any, layer: int) -> Edit:
        rows, tokens = self.places[site, layer]
        return putting_back(self.clean.activations[name], rows, tokens, self.token)

    def _block(self, block: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.cancelled():
            raise TraceCancelled("The sweep was cancelled.")
        stream = stream_argument(args, kwargs)
        if stream is None:
            raise CannotResume(f"block {block} is not given a residual stream")
        active = int((self.joins <= block).sum())
        last = block == self.traced.n_layers - 1
        if active == 0:
            if last:
                self._final = self._joining(block + 1, slice(0, None), stream)[:, -1]
            return replace_first_tensor(self.base.outputs[block], stream)
        before = int((self.joins < block).sum())
        stream = torch.cat([stream[:before], self._joining(block, slice(before, active), stream)])
        if not self.way.broadcast:
            # The model's own arguments have all rows: let those that join later run along, unchanged.
            stream = torch.cat([stream, self._corrupted_streams(block, slice(active, None), stream)])
        if self._cache is not None and self._snapshot is not None and self.way.broadcast:
            short = self._cache.layers[block]
            self._cache.layers[block] = self._snapshot.layer(block, self.samples[:active])
        args, kwargs = replace_stream_argument(args, kwargs, stream)
        output = forward(*args, **kwargs)
        if self._cache is not None and self.way.broadcast:
            # Keys and values of this block are needed no more.
            self._cache.layers[block] = short
        hidden = self._restore_hidden(block, first_tensor(output))
        if last:
            joined = self._joining(block + 1, slice(active, None), hidden)
            self._final = torch.cat([hidden[:active, -1], joined[:, -1]])
        return replace_first_tensor(output, hidden)

    def _corrupted_streams(self, block: int, part: slice, like: Tensor) -> Tensor:
        """What the block takes in the corrupted run, for part of the rows, at the tokens of this pass."""
        streams = self.base.streams[block]
        rows = streams[self.samples[part].to(streams.device), self.token - self.base.first_token :]
        return rows.to(like.device)

    def _joining(self, block: int, part: slice, like: Tensor) -> Tensor:
        """The stream of part of the rows, with the hidden states put back that lie right before the block."""
        streams = self._corrupted_streams(block, part, like)
        if ("hidden", block - 1) not in self.places:
            return streams
        rows, tokens = self.places["hidden", block - 1]
        joining = (rows >= part.start) & (rows < part.start + len(streams))
        values = self.clean.activations[self.traced.site_names["hidden"][block - 1][0]]
        restored = putting_back(values, rows[joining] - part.start, tokens[joining], self.token)(streams)
        return streams if restored is None else restored

    def _restore_hidden(self, block: int, hidden: Tensor | None) -> Tensor:
        if hidden is None:
            raise CannotResume(f"block {block} does not give a residual stream")
        if ("hidden", block) not in self.places:
            return hidden
        rows, tokens = self.places["hidden", block]
        there = rows < len(hidden)
        values = self.clean.activations[self.traced.site_names["hidden"][block][0]]
        restored = putting_back(values, rows[there], tokens[there], self.token)(hidden)
        return hidden if restored is None else restored


def _head(traced: TracedModel, base: BaseState, rows: Tensor, token_id: int, way: Way) -> Tensor:
    """Final norm, head and what the model does after it, for last-token states [rows, d_model]: logits in float32."""

    def hand_on(block: int, _forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        stream = stream_argument(args, kwargs)
        if block == traced.n_layers - 1:
            stream = rows[:, None]
        return replace_first_tensor(base.outputs[block], stream) if stream is not None else None

    ids = torch.tensor([[token_id]]).expand(1 if way.broadcast else len(rows), 1)
    with traced.lock, replacing_forward(traced.blocks, hand_on):
        output = run_model(traced, ids, {})
    return last_logits(traced, output, "restored")
