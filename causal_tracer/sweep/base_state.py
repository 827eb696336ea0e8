"""What a resumed sweep starts from: the corrupted run's residual streams, and its cache before every token.

The tokens before the first corrupted one are equal in all samples, so they are run once, with one row. The corrupted
run goes on from there with one row a sample. After it, the state at every block and token is known.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from causal_tracer.hooks import Edit, first_tensor, replace_first_tensor, replacing_forward, stream_argument
from causal_tracer.layers import TracedModel
from causal_tracer.runs import CorruptedRun, corrupting, run_model


class CannotResume(Exception):
    """A model gives nothing that a sweep could resume from. Never leaves the sweep: the next way is tried."""


@dataclass(frozen=True, eq=False)
class CacheSnapshot:
    """A model's cache before some token; copied for every use, never written to.

    Attributes:
        cache: The cache object, with one layer object a block.
        keyword: The model's name for it.
        shared: Whether it has the one row of the clean tokens before the subject, which all samples share.
    """

    cache: Any
    keyword: str
    shared: bool

    def layer(self, block: int, samples: Tensor) -> Any:
        """A copy of a block's cache layer with the rows of these samples, in this order."""
        return _with_rows(self.cache.layers[block], torch.zeros_like(samples) if self.shared else samples)

    def with_rows(self, samples: Tensor) -> Any:
        """A copy of the whole cache with the rows of these samples."""
        selected = copy.copy(self.cache)
        selected.layers = [self.layer(block, samples) for block in range(len(self.cache.layers))]
        return selected


@dataclass(frozen=True, eq=False)
class BaseState:
    """The corrupted run, to be resumed at any block and token.

    Attributes:
        first_token: The first token that has a row a sample; those before it are clean.
        streams: What each block takes, and last what the last block gives: [samples, tokens - first_token, d_model].
        outputs: What each block returned: the form that a skipped block has to return.
        snapshots: The cache before each token from `first_token` on; None where nothing is before it.
    """

    first_token: int
    streams: tuple[Tensor, ...]
    outputs: tuple[Any, ...]
    snapshots: Mapping[int, CacheSnapshot | None]


def corrupted_state(traced: TracedModel, corrupted: CorruptedRun, *, use_cache: bool) -> BaseState:
    """Run the corrupted prompt and keep its streams and, with `use_cache`, its cache before every token.

    Without a cache all tokens stay in every run, so token 0 is the only one to resume at.

    Raises:
        CannotResume: The model's cache has no layer for each block.
    """
    prompt, samples = corrupted.prompt, torch.arange(corrupted.samples)
    tokens = range(prompt.subject_range[0] if use_cache else 0, len(prompt))
    if not use_cache:
        record = _Record(traced)
        record.run(corrupted, tokens, None, samples, use_cache=False)
        return BaseState(0, record.streams, record.outputs, {0: None})
    prefix = None
    if tokens.start > 0:
        ids = torch.tensor(prompt.input_ids[: tokens.start])
        with headless(traced):
            prefix = _snapshot(traced, run_model(traced, ids[None], {}, use_cache=True), shared=True)
    record = _Record(traced)
    end = record.run(corrupted, tokens, prefix, samples, use_cache=True)
    snapshots: dict[int, CacheSnapshot | None] = {tokens.start: prefix}
    if all(_keeps_all_tokens(layer, len(prompt)) for layer in end.cache.layers):
        for token in tokens[1:]:
            snapshots[token] = CacheSnapshot(_cropped(end.cache, len(prompt) - token), end.keyword, shared=False)
        return BaseState(tokens.start, record.streams, record.outputs, snapshots)
    # Windows that have dropped tokens, and states that cannot be wound back: step forward and copy on the way.
    record, before = _Record(traced), prefix
    for token in tokens:
        snapshots[token] = before
        before = record.run(corrupted, range(token, token + 1), before, samples, use_cache=True)
    return BaseState(tokens.start, record.streams, record.outputs, snapshots)


class _Record:
    """What the blocks took and gave, over runs of consecutive tokens."""

    def __init__(self, traced: TracedModel):
        self._traced = traced
        self._pieces: list[list[Tensor]] = [[] for _ in range(traced.n_layers + 1)]
        self.outputs: tuple[Any, ...] = ()

    @property
    def streams(self) -> tuple[Tensor, ...]:
        return tuple(torch.cat(pieces, dim=1) for pieces in self._pieces)

    def run(
        self, corrupted: CorruptedRun, tokens: range, before: CacheSnapshot | None, samples: Tensor, *, use_cache: bool
    ) -> CacheSnapshot:
        """Run these tokens of the corrupted prompt on top of a cache; the cache after them is returned."""
        outputs: list[Any] = []

        def note(block: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            stream = stream_argument(args, kwargs)
            if stream is None or stream.dim() != 3:
                raise CannotResume(f"block {block} is not given a residual stream [rows, tokens, d_model]")
            # Copies, since some models add to the stream in place.
            self._pieces[block].append(stream.clone())
            output = forward(*args, **kwargs)
            given = first_tensor(output)
            if given is None or given.shape != stream.shape:
                raise CannotResume(f"block {block} does not give a residual stream")
            if block == self._traced.n_layers - 1:
                self._pieces[-1].append(given.clone())
            outputs.append(replace_first_tensor(output, given[:1]))
            return output

        ids = torch.tensor(corrupted.prompt.input_ids)[tokens.start : tokens.stop]
        edits: dict[Any, Edit] = {
            self._traced.embedding: corrupting(corrupted.noise, corrupted.prompt, samples, tokens)
        }
        past = {} if before is None else {before.keyword: before.with_rows(samples)}
        with headless(self._traced), replacing_forward(self._traced.blocks, note):
            output = run_model(self._traced, ids.expand(len(samples), -1), edits, use_cache=use_cache, **past)
        self.outputs = tuple(outputs)
        if len(outputs) != self._traced.n_layers:
            raise CannotResume(f"{len(outputs)} block calls for {self._traced.n_layers} blocks")
        return _snapshot(self._traced, output, shared=False) if use_cache else CacheSnapshot(None, "", shared=False)


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


def _snapshot(traced: TracedModel, output: Any, *, shared: bool) -> CacheSnapshot:
    keyword = cache_keyword(type(traced.model).forward)
    found = getattr(output, keyword, None) if keyword else None
    if keyword is None or len(getattr(found, "layers", None) or ()) != traced.n_layers:
        raise CannotResume("its cache has no layer for each block")
    return CacheSnapshot(found, keyword, shared)


@cache
def cache_keyword(forward: Callable[..., Any]) -> str | None:
    """What a model calls the argument that takes its cache."""
    parameters = inspect.signature(forward).parameters
    return next((name for name in ("cache", "past_key_values", "cache_params") if name in parameters), None)


def _with_rows(layer: Any, index: Tensor) -> Any:
    selected = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, (dict, list)):
            setattr(selected, name, copy.copy(value))
    selected.reorder_cache(index)
    return selected


def _keeps_all_tokens(layer: Any, tokens: int) -> bool:
    keys = getattr(layer, "keys", None)
    plain = isinstance(keys, Tensor) and not hasattr(layer, "conv_states") and not hasattr(layer, "indexer_keys")
    window = getattr(layer, "sliding_window", None)
    return plain and keys.shape[-2] == tokens and (window is None or tokens < window)  # type: ignore[union-attr]


def _cropped(cache: Any, tokens: int) -> Any:
    """A copy without the last tokens; keys and values are views."""
    cropped = copy.copy(cache)
    cropped.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in cropped.layers:
        layer.crop(-tokens)
    return cropped
