"""Snapshots of a model's key/value cache before some token, copied with the rows that a pass needs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from causal_tracer.model.hooks import all_tensors, with_items
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.probing import takes_argument
from causal_tracer.sweep.resume_mode import CannotResume

_KEYWORDS = ("cache", "past_key_values", "cache_params", "state")


@dataclass(frozen=True, eq=False)
class CacheSnapshot:
    """A model's cache before some token. It is copied for every use and never changed.

    Attributes:
        cache: The cache object.
        keyword: The name of the model's argument for the cache.
        shared: Whether the cache has a single row for all samples, of clean tokens before the subject.
        n_blocks: Number of blocks of the model.
    """

    cache: Any
    keyword: str
    shared: bool
    n_blocks: int

    @property
    def by_block(self) -> bool:
        """Whether the cache has separate layers for each block, so that blocks can have different rows."""
        layers = getattr(self.cache, "layers", None)
        if not layers or (len(layers) > self.n_blocks and len(layers) % self.n_blocks):
            return False
        return not all_tensors([value for name, value in vars(self.cache).items() if name != "layers"])

    def layers_of(self, block: int) -> range:
        """Return the numbers of a block's cache layers: one, several, or none if it reads an earlier block's."""
        layers = len(self.cache.layers)
        if layers > self.n_blocks:
            each = layers // self.n_blocks
            return range(block * each, (block + 1) * each)
        return range(block, min(block + 1, layers))

    def layer(self, number: int, samples: Tensor) -> Any:
        """Return a copy of a cache layer with the rows of these samples, in this order."""
        layer = self.cache.layers[number]
        selected = copy.copy(layer)
        for name, value in vars(layer).items():
            if isinstance(value, (dict, list)):
                setattr(selected, name, copy.copy(value))
        selected.reorder_cache(self._rows(samples))
        return selected

    def with_rows(self, samples: Tensor) -> Any:
        """Return a copy of the whole cache with the rows of these samples."""
        if self.by_block:
            selected = copy.copy(self.cache)
            selected.layers = [self.layer(number, samples) for number in range(len(self.cache.layers))]
            return selected
        return _selected(self.cache, self._rows(samples))

    def _rows(self, samples: Tensor) -> Tensor:
        return torch.zeros_like(samples) if self.shared else samples


def snapshot(traced: TracedModel, output: Any, *, shared: bool) -> CacheSnapshot:
    """Return the cache in a model's output.

    Raises:
        CannotResume: The output has no cache that the model takes as an argument.
    """
    for keyword in _KEYWORDS:
        found = getattr(output, keyword, None)
        if found is not None and takes_argument(type(traced.model).forward, keyword):
            return CacheSnapshot(found, keyword, shared, traced.n_layers)
    raise CannotResume("the model returns no cache")


def keeps_all_tokens(snapshot: CacheSnapshot, tokens: int) -> bool:
    """Return whether cropping this cache of `tokens` tokens gives the cache before an earlier token."""
    return snapshot.by_block and all(_layer_keeps(layer, tokens) for layer in snapshot.cache.layers)


def has_states(snapshot: CacheSnapshot) -> bool:
    """Return whether the cache holds recurrent states, which every token changes."""
    layers = getattr(snapshot.cache, "layers", ())
    return not snapshot.by_block or any(hasattr(layer, "recurrent_states") for layer in layers)


def cropped(snapshot: CacheSnapshot, tokens: int) -> CacheSnapshot:
    """Return a copy without the last `tokens` tokens. Keys and values are views."""
    cache = copy.copy(snapshot.cache)
    cache.layers = [copy.copy(layer) for layer in snapshot.cache.layers]
    for layer in cache.layers:
        layer.crop(-tokens)
    return replace(snapshot, cache=cache)


def keeps_keys_and_values_only(snapshot: CacheSnapshot) -> bool:
    """Return whether the cache holds only the keys and values of tokens.

    Anything else, such as recurrent states, compressed groups of tokens or their indices, may depend on the token at
    which a pass begins.
    """
    return snapshot.by_block and all(map(_is_plain, snapshot.cache.layers))


def _is_plain(layer: Any) -> bool:
    others = [value for name, value in vars(layer).items() if name not in ("keys", "values")]
    # Single numbers, such as a window's length, do not depend on tokens.
    states = [tensor for tensor in all_tensors(others) if tensor.numel() > 1]
    return isinstance(getattr(layer, "keys", None), Tensor) and not states


def _layer_keeps(layer: Any, tokens: int) -> bool:
    window = getattr(layer, "sliding_window", None)
    return _is_plain(layer) and layer.keys.shape[-2] == tokens and (window is None or tokens < window)


def _selected(value: Any, index: Tensor) -> Any:
    """Return a copy of a cache object of any class with these rows."""
    if isinstance(value, Tensor):
        return value.index_select(0, index.to(value.device)) if value.dim() else value.clone()
    if isinstance(value, (Mapping, tuple, list)):
        items = value.values() if isinstance(value, Mapping) else value
        return with_items(value, [_selected(item, index) for item in items])
    if hasattr(value, "batch_select_indices"):
        selected = copy.deepcopy(value)
        selected.batch_select_indices(index)
        return selected
    if hasattr(value, "__dict__") and all_tensors(list(vars(value).values())):
        selected = copy.copy(value)
        for name, item in vars(value).items():
            if all_tensors(item):
                setattr(selected, name, _selected(item, index))
        return selected
    return value
