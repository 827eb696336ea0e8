"""What a resumed sweep starts from: the corrupted run's residual streams, and its cache before every token.

The tokens before the first corrupted one are equal in all samples, so they are run once, with one row. The corrupted
run goes on from there with one row a sample. After it, the state at every block and token is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causal_tracer.experiment.base_run import BaseRun
from causal_tracer.experiment.embeddings import corrupting
from causal_tracer.model.hooks import (
    Edit,
    first_tensor,
    replace_first_tensor,
    replacing_forward,
    rows_first,
    stream_argument,
)
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.probing import takes_argument
from causal_tracer.model.runs import run_model
from causal_tracer.sweep.caches import CacheSnapshot, CannotResume, cropped, has_states, keeps_all_tokens, snapshot
from causal_tracer.sweep.carried_state import Companions, SharedValues, companions_of, shared_values


@dataclass(frozen=True, eq=False)
class BaseState:
    """The corrupted run, to be resumed at any block and token.

    Attributes:
        first_token: The first token that has a row a sample; those before it are clean.
        streams: What each block takes, and last what the last block gives: [samples, tokens - first_token, ...].
        outputs: What each block returned: the form that a skipped block has to return.
        companions: What each block handed to the next beside the stream.
        shared: What earlier blocks had left for each block in dictionaries that all blocks are given.
        snapshots: The cache before the tokens that a pass begins with; None where nothing is before one.
    """

    first_token: int
    streams: tuple[Tensor, ...]
    outputs: tuple[Any, ...]
    companions: tuple[Companions, ...]
    shared: tuple[SharedValues, ...]
    snapshots: Mapping[int, CacheSnapshot | None]

    @property
    def first_sharing(self) -> int | None:
        """The first block that leaves something for later ones in a dictionary."""
        return next((block for block, given in enumerate(self.shared[1:]) if given), None)


def base_state(
    traced: TracedModel, base: BaseRun, wanted: Sequence[int], *, use_cache: bool, positions: bool = False
) -> BaseState:
    """Run the base run's prompt and keep its streams and, with `use_cache`, its cache before each token in `wanted`.

    Without a cache all tokens stay in every run, so token 0 is the only one to resume at. With `positions` the model
    is told the tokens' positions.

    Raises:
        CannotResume: The model hands back no cache, or its blocks do not hand on a residual stream.
    """
    prompt, samples = base.prompt, torch.arange(base.samples)
    tokens = range(min(prompt.subject_range[0], *wanted) if use_cache else 0, len(prompt))
    record = _Record(traced, base, samples, positions)
    if not use_cache:
        record.run(tokens, None, use_cache=False)
        return record.state(0, {0: None})

    def clean_prefix(end: int) -> CacheSnapshot | None:
        if end == 0:
            return None
        given: dict[str, Any] = position_argument(range(end), 1) if positions else {}
        ids = torch.tensor(prompt.input_ids[:end])
        with headless(traced):
            return snapshot(traced, run_model(traced, ids[None], {}, use_cache=True, **given), shared=True)

    prefix = clean_prefix(tokens.start)
    end = record.run(tokens, prefix, use_cache=True)
    snapshots: dict[int, CacheSnapshot | None] = {tokens.start: prefix}
    if end is None:
        raise CannotResume("it hands back no cache")
    later = [token for token in wanted if token > tokens.start]
    if not later:
        return record.state(tokens.start, snapshots)
    if keeps_all_tokens(end, len(prompt)):
        for token in later:
            snapshots[token] = cropped(end, len(prompt) - token)
        return record.state(tokens.start, snapshots)
    again, before = _Record(traced, base, samples, positions), prefix
    if has_states(end):
        # States cannot be wound back, and some models leave a less exact one after a single token than after several:
        # run from before the subject to each token, never one token alone.
        begin = max(0, tokens.start - 1)
        before = clean_prefix(begin)
        for token in later:
            snapshots[token] = again.run(range(begin, token), before, use_cache=True)
        return record.state(tokens.start, snapshots)
    # Windows have dropped tokens: step forward and copy on the way.
    for token in range(tokens.start, max(later)):
        snapshots[token] = before
        before = again.run(range(token, token + 1), before, use_cache=True)
    snapshots[max(later)] = before
    return record.state(tokens.start, snapshots)


class _Record:
    """What the blocks took and gave in a run of consecutive tokens."""

    def __init__(self, traced: TracedModel, base: BaseRun, samples: Tensor, positions: bool):
        self._traced = traced
        self._base = base
        self._samples = samples
        self._positions = positions

    def state(self, first_token: int, snapshots: Mapping[int, CacheSnapshot | None]) -> BaseState:
        return BaseState(
            first_token,
            tuple(self._streams),
            tuple(self._outputs),
            tuple(self._companions),
            tuple(self._shared),
            snapshots,
        )

    def run(self, tokens: range, before: CacheSnapshot | None, *, use_cache: bool) -> CacheSnapshot | None:
        """Run these tokens of the corrupted prompt on top of a cache; the cache after them is returned."""
        self._streams: list[Tensor] = []
        self._outputs: list[Any] = []
        self._companions: list[Companions] = []
        self._shared: list[SharedValues] = []
        traced, prompt, samples = self._traced, self._base.prompt, self._samples
        ids = torch.tensor(prompt.input_ids)[tokens.start : tokens.stop]
        edits: dict[Any, Edit] = {traced.embedding: corrupting(self._base.embeddings, prompt, samples, tokens)}
        given: dict[str, Any] = {} if before is None else {before.keyword: before.with_rows(samples)}
        if self._positions:
            given |= position_argument(tokens, len(samples))
        with headless(traced), replacing_forward(traced.blocks, self._note):
            output = run_model(traced, ids.expand(len(samples), -1), edits, use_cache=use_cache, **given)
        if len(self._outputs) != traced.n_layers:
            raise CannotResume(f"{len(self._outputs)} block calls for {traced.n_layers} blocks")
        return snapshot(traced, output, shared=False) if use_cache else None

    def _note(self, block: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        stream = stream_argument(args, kwargs)
        if stream is None or stream.dim() not in (3, 4):
            raise CannotResume(f"block {block} is not given a residual stream [rows, tokens, d_model]")
        stacked = self._traced.stacked_streams
        # Copies, since some models add to the stream in place.
        self._streams.append(rows_first(stream, stacked).clone())
        self._shared.append(shared_values(kwargs))
        output = forward(*args, **kwargs)
        given = first_tensor(output)
        if given is None or given.shape != stream.shape:
            raise CannotResume(f"block {block} does not give a residual stream")
        if block == self._traced.n_layers - 1:
            self._streams.append(rows_first(given, stacked).clone())
        self._companions.append(companions_of(output, self._streams[-1].shape[:2]))
        self._outputs.append(replace_first_tensor(output, given[:1]))
        return output


def position_argument(tokens: range, rows: int) -> dict[str, Tensor]:
    """The argument that tells a model the positions of its tokens."""
    return {"position_ids": torch.arange(tokens.start, tokens.stop).expand(rows, -1)}


def takes_positions(traced: TracedModel) -> bool:
    """Whether the model can be told the positions of its tokens."""
    return takes_argument(type(traced.model).forward, "position_ids")


@contextmanager
def headless(traced: TracedModel) -> Iterator[None]:
    """Spare the head's work in runs whose logits nobody reads."""

    def no_logits(_number: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        hidden = stream_argument(args, kwargs)
        if hidden is None:
            return forward(*args, **kwargs)
        return hidden.new_zeros(1).expand(*hidden.shape[:-1], traced.vocab_size)

    with traced.lock, replacing_forward([traced.head], no_logits):
        yield
