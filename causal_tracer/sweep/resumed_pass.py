"""One pass of the resumed sweep: a batch of rows, each of which joins at the first block that it changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causal_tracer.errors import TraceCancelled
from causal_tracer.experiment.embeddings import corruption_edit
from causal_tracer.model.hooks import (
    first_tensor,
    replace_first_tensor,
    replace_stream_argument,
    replacing_forward,
    rows_first,
    stream_argument,
    streams_first,
)
from causal_tracer.model.runs import run_model
from causal_tracer.sweep.base_state import BaseState, position_argument, without_head
from causal_tracer.sweep.carried_state import CarriedState, skipped_output
from causal_tracer.sweep.edits import BatchInterventions, mask_edits, restoration_edit, site_edits
from causal_tracer.sweep.plan import Sweep
from causal_tracer.sweep.resume_mode import CannotResume, ResumeMode


@dataclass(eq=False)
class ResumedPass:
    """One pass of a batch of rows through the blocks. The rows are sorted by the block at which they join.

    Attributes:
        sweep: The sweep.
        state: The recorded base run that the pass resumes.
        mode: How the model is resumed.
        token: The first token that is run.
        joins: The block at which each row joins, ascending [rows].
        samples: The sample of each row [rows].
        interventions: The interventions in the rows.
        cancelled: Called before each block; returning True stops the pass.
    """

    sweep: Sweep
    state: BaseState
    mode: ResumeMode
    token: int
    joins: Tensor
    samples: Tensor
    interventions: BatchInterventions
    cancelled: Callable[[], bool]

    def final_states(self) -> Tensor:
        """Run the pass and return the last block's output at the positions read [rows, reads, ...]."""
        traced, base, broadcast = self.sweep.traced, self.sweep.base, self.mode.broadcast
        self._final: Tensor | None = None
        if (sharing := self.state.first_sharing_block) is not None:
            # At least one row must have joined when a block leaves shared values for later ones.
            self.joins = self.joins.clone()
            self.joins[0] = min(int(self.joins[0]), sharing)
        self._snapshot = self.state.snapshots[self.token]
        if self._snapshot is not None and broadcast and not self._snapshot.by_block:
            raise CannotResume("the model's cache does not have a layer for each block")
        called_with = torch.zeros(1, dtype=torch.long) if broadcast else self.samples
        self._cache: Any = None
        given: dict[str, Any] = {}
        if self._snapshot is not None:
            given[self._snapshot.keyword] = self._cache = self._snapshot.with_rows(called_with)
        tokens = range(self.token, len(base.prompt))
        if self.mode.positions:
            given |= position_argument(tokens, len(called_with))
        self._carried = CarriedState(self.state.companions, self.state.shared, self.samples)
        # Rows are sorted by join, so those in a block are always the first ones and keep their row numbers.
        edits, input_edits = site_edits(self.sweep, self.interventions, self.samples, self.token, hidden=False)
        if not broadcast:
            # Some models feed the embeddings to later blocks as well.
            edits[traced.embedding] = corruption_edit(base.embeddings, base.prompt, self.samples, tokens)
        ids = torch.tensor(base.prompt.input_ids[self.token :]).expand(len(called_with), -1)
        given |= {"input_edits": input_edits, "mask_edits": mask_edits(self.sweep, self.interventions, self.token)}
        with without_head(traced), replacing_forward(traced.blocks, self._block):
            run_model(traced, ids, edits, use_cache=self._snapshot is not None, **given)
        if self._final is None:
            raise CannotResume("the last block was not called")
        return self._final

    def _block(self, block: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Stand in for the forward of a block: skip it, or run it for the rows that have joined."""
        if self.cancelled():
            raise TraceCancelled("The sweep was cancelled.")
        given = stream_argument(args, kwargs)
        if given is None:
            raise CannotResume(f"block {block} does not take a residual stream")
        stacked, broadcast = self.sweep.traced.stacked_streams, self.mode.broadcast
        stream = rows_first(given, stacked)
        before, active = int((self.joins < block).sum()), int((self.joins <= block).sum())
        last = block == self.sweep.traced.n_layers - 1
        if active == 0:
            return self._skipped(block, stream, last)
        # Without broadcasting, the model's own arguments have all rows, so rows that join later must run too.
        joining = slice(before, active if broadcast else None)
        stream = torch.cat([stream[:before], self._joining(block, joining, stream)])
        if broadcast:
            args, kwargs = self._carried.enter(block, before, active, self._rows(joining), args, kwargs)
        args, kwargs = replace_stream_argument(args, kwargs, streams_first(stream, stacked))
        output = self._with_cache_rows(block, active, lambda: forward(*args, **kwargs))
        hidden = first_tensor(output)
        if hidden is None:
            raise CannotResume(f"block {block} does not return a residual stream")
        hidden = self._restored(block, rows_first(hidden, stacked))
        if last:
            joined = self._joining(block + 1, slice(active, None), hidden)
            self._final = self._read(torch.cat([hidden[:active], joined]))
        output = replace_first_tensor(output, streams_first(hidden, stacked))
        self._carried.leave(block, output)
        return output

    def _with_cache_rows(self, block: int, active: int, run: Callable[[], Any]) -> Any:
        """Run a block; if the model is called with one row, with cache layers that have the block's active rows."""
        if self._snapshot is None or not self.mode.broadcast:
            return run()
        kept = {number: self._cache.layers[number] for number in self._snapshot.layers_of(block)}
        for number in kept:
            self._cache.layers[number] = self._snapshot.layer(number, self.samples[:active])
        output = run()
        for number, layer in kept.items():
            # This block's new keys and values are not needed any more.
            self._cache.layers[number] = layer
        return output

    def _skipped(self, block: int, stream: Tensor, last: bool) -> Any:
        """Return the output of a block before the first join, without running it."""
        if last:
            self._final = self._read(self._joining(block + 1, slice(None), stream))
        rows = slice(1) if self.mode.broadcast else slice(None)
        if not self.mode.broadcast:
            # The model may use the blocks' outputs later, so they must be right for all rows.
            stream = self._restored(block, self._base_streams(block + 1, rows, stream))
        given = streams_first(stream, self.sweep.traced.stacked_streams)
        output = skipped_output(self.state.outputs[block], given, self.state.companions[block], self._rows(rows))
        self._carried.leave(block, output)
        return output

    def _rows(self, part: slice) -> Callable[[Tensor], Tensor]:
        """Return a function that selects some rows, at the pass's tokens, of recorded values [samples, tokens, ...]."""
        samples = self.samples[part]
        return lambda recorded: recorded[samples.to(recorded.device), self.token - self.state.first_token :]

    def _read(self, streams: Tensor) -> Tensor:
        """Return the positions read of streams at this pass's tokens. Earlier positions are taken from the base run."""
        earlier = [read - self.state.first_token for read in self.sweep.reads if read < self.token]
        here = streams[:, [read - self.token for read in self.sweep.reads if read >= self.token]]
        if not earlier:
            return here
        recorded = self.state.streams[-1]
        before = recorded[self.samples.to(recorded.device)][:, earlier]
        return torch.cat([before.to(here), here], dim=1)

    def _base_streams(self, block: int, part: slice, like: Tensor) -> Tensor:
        """Return the input of a block in the base run, for some rows, at this pass's tokens."""
        return self._rows(part)(self.state.streams[block]).to(like.device)

    def _joining(self, block: int, part: slice, like: Tensor) -> Tensor:
        """Return the input of a block for rows that join there, with the previous block's hidden states restored."""
        return self._restored(block - 1, self._base_streams(block, part, like), part.start or 0)

    def _restored(self, block: int, streams: Tensor, start: int = 0) -> Tensor:
        """Return the rows' streams after a block with its hidden states restored; `start` is the first row's number."""
        if ("hidden", block) not in self.interventions.restored:
            return streams
        stop = start + len(streams)
        name = self.sweep.traced.site_names["hidden"][block][0]
        parts = [part.part(start, stop) for part in self.interventions.restored["hidden", block]]
        return restoration_edit(self.sweep, name, parts, self.samples[start:stop], self.token)(streams)
