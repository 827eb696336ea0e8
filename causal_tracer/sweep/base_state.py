"""The state that a resumed sweep starts from: the base run's residual streams, and its key/value cache before a token.

The tokens before the first corrupted one are equal in all samples, so they are run once, as one row. From there the
base run has one row per sample, and its state is recorded at every block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causal_tracer.experiment.base_run import BaseRun
from causal_tracer.experiment.embeddings import corruption_edit
from causal_tracer.model.hooks import (
    first_tensor,
    replace_first_tensor,
    replacing_forward,
    rows_first,
    stream_argument,
)
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.runs import run_model
from causal_tracer.sweep.caches import CacheSnapshot, cropped, has_states, keeps_all_tokens, snapshot
from causal_tracer.sweep.carried_state import Companions, SharedValues, companions_of, shared_values
from causal_tracer.sweep.resume_mode import CannotResume, ResumeMode


@dataclass(frozen=True, eq=False)
class BaseState:
    """The recorded base run, from which passes resume at any block and token.

    Attributes:
        first_token: The first token with a row per sample. The tokens before it are clean.
        streams: The input of each block and the output of the last one, each [samples, tokens - first_token, ...].
        outputs: The output of each block for one sample, whose form a skipped block must return.
        companions: The companions that each block returned (see `carried_state`).
        shared: The shared values that each block was given (see `carried_state`).
        snapshots: The cache before each token at which a pass begins; None for the first token of the prompt.
    """

    first_token: int
    streams: tuple[Tensor, ...]
    outputs: tuple[Any, ...]
    companions: tuple[Companions, ...]
    shared: tuple[SharedValues, ...]
    snapshots: Mapping[int, CacheSnapshot | None]

    @property
    def first_sharing_block(self) -> int | None:
        """The first block that leaves shared values for later blocks, if any."""
        return next((block for block, given in enumerate(self.shared[1:]) if given), None)


def base_state(traced: TracedModel, base: BaseRun, wanted: Sequence[int], mode: ResumeMode) -> BaseState:
    """Run the base run's prompt, and record its streams and the cache before the `wanted` tokens.

    In a mode without a cache every pass has all tokens, so passes can only resume at token 0.

    Raises:
        CannotResume: The model returns no cache, or its blocks do not take and return a residual stream.
    """
    start = min(base.prompt.subject_range[0], *wanted) if mode.use_cache else 0
    prefix = _clean_prefix(traced, base, mode, start)
    record = _Record(traced)
    with traced.lock, replacing_forward(traced.blocks, record.note):
        output = _run_tokens(traced, base, mode, range(start, len(base.prompt)), prefix)
    if len(record.outputs) != traced.n_layers:
        raise CannotResume(f"{len(record.outputs)} block calls for {traced.n_layers} blocks")
    snapshots = {start: prefix}
    if mode.use_cache:
        end, later = snapshot(traced, output, shared=False), [token for token in wanted if token > start]
        if later:
            snapshots |= _later_snapshots(traced, base, mode, later, snapshots, end)
    return BaseState(
        first_token=start,
        streams=tuple(record.streams),
        outputs=tuple(record.outputs),
        companions=tuple(record.companions),
        shared=tuple(record.shared),
        snapshots=snapshots,
    )


def _later_snapshots(
    traced: TracedModel,
    base: BaseRun,
    mode: ResumeMode,
    wanted: Sequence[int],
    first: Mapping[int, CacheSnapshot | None],
    end: CacheSnapshot,
) -> dict[int, CacheSnapshot | None]:
    """Return the cache before each wanted token, given that before the first token and that after the last one."""
    prompt = base.prompt
    if keeps_all_tokens(end, len(prompt)):
        return {token: cropped(end, len(prompt) - token) for token in wanted}

    def after(tokens: range, before: CacheSnapshot | None) -> CacheSnapshot:
        return snapshot(traced, _run_tokens(traced, base, mode, tokens, before), shared=False)

    ((start, before),) = first.items()
    if has_states(end):
        # Recurrent states cannot be cropped, and in some models one-token steps give less exact states than several
        # tokens at once: run from before the subject to each token, always at least two tokens.
        start = max(0, start - 1)
        before = _clean_prefix(traced, base, mode, start)
        return {token: after(range(start, token), before) for token in wanted}
    # Sliding windows have dropped tokens: run token by token, and copy the cache at each step.
    found: dict[int, CacheSnapshot | None] = {}
    for token in range(start, max(wanted)):
        found[token + 1] = before = after(range(token, token + 1), before)
    return found


def _clean_prefix(traced: TracedModel, base: BaseRun, mode: ResumeMode, end: int) -> CacheSnapshot | None:
    """Return the cache of the clean tokens before `end`; None if there are none."""
    if end == 0:
        return None
    given: dict[str, Any] = position_argument(range(end), 1) if mode.positions else {}
    ids = torch.tensor(base.prompt.input_ids[:end])
    with without_head(traced):
        return snapshot(traced, run_model(traced, ids[None], {}, use_cache=True, **given), shared=True)


def _run_tokens(
    traced: TracedModel, base: BaseRun, mode: ResumeMode, tokens: range, before: CacheSnapshot | None
) -> Any:
    """Run some tokens of the base run's prompt on top of a cache, one row per sample; return the model's output."""
    samples = torch.arange(base.samples)
    ids = torch.tensor(base.prompt.input_ids[tokens.start : tokens.stop]).expand(len(samples), -1)
    edits = {traced.embedding: corruption_edit(base.embeddings, base.prompt, samples, tokens)}
    given: dict[str, Any] = {} if before is None else {before.keyword: before.with_rows(samples)}
    if mode.positions:
        given |= position_argument(tokens, len(samples))
    with without_head(traced):
        return run_model(traced, ids, edits, use_cache=mode.use_cache, **given)


class _Record:
    """Records the inputs and outputs of the blocks in one run."""

    def __init__(self, traced: TracedModel):
        self._traced = traced
        self.streams: list[Tensor] = []
        self.outputs: list[Any] = []
        self.companions: list[Companions] = []
        self.shared: list[SharedValues] = []

    def note(self, block: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a block and record its input and output."""
        stream = stream_argument(args, kwargs)
        if stream is None or stream.dim() not in (3, 4):
            raise CannotResume(f"block {block} does not take a residual stream [rows, tokens, d_model]")
        stacked = self._traced.stacked_streams
        # Copied, since some models add to the stream in place.
        self.streams.append(rows_first(stream, stacked).clone())
        self.shared.append(shared_values(kwargs))
        output = forward(*args, **kwargs)
        given = first_tensor(output)
        if given is None or given.shape != stream.shape:
            raise CannotResume(f"block {block} does not return a residual stream")
        if block == self._traced.n_layers - 1:
            self.streams.append(rows_first(given, stacked).clone())
        self.companions.append(companions_of(output, self.streams[-1].shape[:2]))
        self.outputs.append(replace_first_tensor(output, given[:1]))
        return output


def position_argument(tokens: range, rows: int) -> dict[str, Tensor]:
    """Return the model's keyword argument for the positions of some tokens."""
    return {"position_ids": torch.arange(tokens.start, tokens.stop).expand(rows, -1)}


@contextmanager
def without_head(traced: TracedModel) -> Iterator[None]:
    """Skip the head (it returns zeros) in the runs of the `with` block, whose logits are not read."""

    def no_logits(_number: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        hidden = stream_argument(args, kwargs)
        if hidden is None:
            return forward(*args, **kwargs)
        return hidden.new_zeros(1).expand(*hidden.shape[:-1], traced.vocab_size)

    with traced.lock, replacing_forward([traced.head], no_logits):
        yield
