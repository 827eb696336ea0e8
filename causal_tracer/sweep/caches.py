"""A model's cache before some token: copied, with the rows that a pass needs, for every use."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from causal_tracer.model.hooks import all_tensors
from causal_tracer.model.layers import TracedModel

_KEYWORDS = ("cache", "past_key_values", "cache_params", "state")


class CannotResume(Exception):
    """A model gives nothing that a sweep could resume from. Never leaves the sweep: the next way is tried."""


@dataclass(frozen=True, eq=False)
class CacheSnapshot:
    """A model's cache before some token; copied for every use, never written to.

    Attributes:
        cache: The cache object.
        keyword: The model's name for it.
        shared: Whether it has the one row of the clean tokens before the subject, which all samples share.
        n_blocks: Number of blocks.
    """

    cache: Any
    keyword: str
    shared: bool
    n_blocks: int

    @property
    def by_block(self) -> bool:
        """Whether each block's part of the cache stands by itself, so that it can have rows of its own."""
        layers = getattr(self.cache, "layers", None)
        if not layers or (len(layers) > self.n_blocks and len(layers) % self.n_blocks):
            return False
        return not all_tensors([value for name, value in vars(self.cache).items() if name != "layers"])

    def layers_of(self, block: int) -> range:
        """The numbers of a block's cache layers: one, several, or none where it reads those of an earlier block."""
        layers = len(self.cache.layers)
        if layers > self.n_blocks:
            each = layers // self.n_blocks
            return range(block * each, (block + 1) * each)
        return range(block, min(block + 1, layers))

    def layer(self, number: int, samples: Tensor) -> Any:
        """A copy of a cache layer with the rows of these samples, in this order."""
        return _with_rows(self.cache.layers[number], torch.zeros_like(samples) if self.shared else samples)

    def with_rows(self, samples: Tensor) -> Any:
        """A copy of the whole cache with the rows of these samples."""
        if self.by_block:
            selected = copy.copy(self.cache)
            selected.layers = [self.layer(number, samples) for number in range(len(self.cache.layers))]
            return selected
        return _selected(self.cache, torch.zeros_like(samples) if self.shared else samples)


def snapshot(traced: TracedModel, output: Any, *, shared: bool) -> CacheSnapshot:
    """The cache that a model has handed back.

    Raises:
        CannotResume: It handed back none.
    """
    for keyword in cache_keywords(type(traced.model).forward):
        if (found := getattr(output, keyword, None)) is not None:
            return CacheSnapshot(found, keyword, shared, traced.n_layers)
    raise CannotResume("it hands back no cache")


@cache
def cache_keywords(forward: Callable[..., Any]) -> tuple[str, ...]:
    """What a model may call the argument that takes its cache."""
    parameters = inspect.signature(forward).parameters
    return tuple(name for name in _KEYWORDS if name in parameters)


def keeps_all_tokens(snapshot: CacheSnapshot, tokens: int) -> bool:
    """Whether the cache before an earlier token is a slice of this one, which has seen `tokens` tokens."""
    return snapshot.by_block and all(_layer_keeps(layer, tokens) for layer in snapshot.cache.layers)


def has_states(snapshot: CacheSnapshot) -> bool:
    """Whether something in the cache is a state that every token changes, not a list of keys and values."""
    layers = getattr(snapshot.cache, "layers", ())
    return not snapshot.by_block or any(hasattr(layer, "recurrent_states") for layer in layers)


def cropped(snapshot: CacheSnapshot, tokens: int) -> CacheSnapshot:
    """A copy without the last tokens; keys and values are views."""
    cache = copy.copy(snapshot.cache)
    cache.layers = [copy.copy(layer) for layer in snapshot.cache.layers]
    for layer in cache.layers:
        layer.crop(-tokens)
    return CacheSnapshot(cache, snapshot.keyword, snapshot.shared, snapshot.n_blocks)


def keeps_keys_and_values_only(snapshot: CacheSnapshot) -> bool:
    """Whether all that the cache holds of each token is its key and value.

    What a cache holds besides, such as states, compressed groups of tokens or their indices, may depend on where in the
    prompt a pass begins.
    """
    return snapshot.by_block and all(map(_is_plain, snapshot.cache.layers))


def _is_plain(layer: Any) -> bool:
    others = [value for name, value in vars(layer).items() if name not in ("keys", "values")]
    # Single numbers, such as a window's length, belong to no token.
    states = [tensor for tensor in all_tensors(others) if tensor.numel() > 1]
    return isinstance(getattr(layer, "keys", None), Tensor) and not states


def _layer_keeps(layer: Any, tokens: int) -> bool:
    window = getattr(layer, "sliding_window", None)
    return _is_plain(layer) and layer.keys.shape[-2] == tokens and (window is None or tokens < window)


def _with_rows(layer: Any, index: Tensor) -> Any:
    selected = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, (dict, list)):
            setattr(selected, name, copy.copy(value))
    selected.reorder_cache(index)
    return selected


def _selected(value: Any, index: Tensor) -> Any:
    """A copy of a cache of any kind with these rows."""
    if isinstance(value, Tensor):
        return value.index_select(0, index.to(value.device)) if value.dim() else value.clone()
    if isinstance(value, Mapping):
        return type(value)({key: _selected(item, index) for key, item in value.items()})  # type: ignore[call-arg]
    if isinstance(value, (tuple, list)):
        return type(value)(_selected(item, index) for item in value)
    if hasattr(value, "batch_select_indices"):
        selected = copy.deepcopy(value)
        selected.batch_select_indices(index)
        return selected
    if all_tensors(list(vars(value).values())) if hasattr(value, "__dict__") else False:
        selected = copy.copy(value)
        for name, item in vars(value).items():
            if all_tensors(item):
                setattr(selected, name, _selected(item, index))
        return selected
    return value
