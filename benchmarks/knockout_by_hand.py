"""Attention knockout by hand: one cell at a time, in the attention scores, without masks or code of the package.

A `TorchFunctionMode` replaces three functions and sets the scores of blocked edges to minus infinity in each: softmax
of the scores [rows, heads, queries, keys]; logsumexp of the scores, by which some models scale the result; and
`scaled_dot_product_attention`, which is computed by its formula.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Edge = tuple[int, int]
"""A blocked edge: (query position, key position)."""

_OF_SCORES = (functional.softmax, torch.softmax, Tensor.softmax, torch.logsumexp, Tensor.logsumexp)


class _Knockout(TorchFunctionMode):
    """A mode that blocks edges while `active`, and counts the calls that it changed."""

    def __init__(self, edges: Sequence[Edge], tokens: int):
        super().__init__()
        self.edges, self.tokens, self.active, self.blocked = edges, tokens, False, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.active and func in _OF_SCORES and self._are_scores(args[0]):
            return func(self._without_edges(args[0]), *args[1:], **kwargs)
        if self.active and func is functional.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _are_scores(self, values: Tensor) -> bool:
        # Rows and heads can share a dimension. A router's logits do not have tokens as columns.
        square = values.dim() == 3 and values.shape[1:] == (self.tokens, self.tokens)
        return square or (values.dim() == 4 and values.shape[-2] == self.tokens)

    def _without_edges(self, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for query, key in self.edges:
            scores[..., query, key] = -math.inf
        self.blocked += 1
        return scores

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(groups, dim=1).double() for states in (key, value))
        scores = query.double() @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            scores = scores + torch.full(scores.shape[-2:], -math.inf).triu(1)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        weights = self._without_edges(scores).exp()
        return (weights / weights.sum(dim=-1, keepdim=True) @ value).to(query.dtype)


@contextmanager
def _active_inside(mode: _Knockout, model: Any, blocks: Sequence[str]) -> Iterator[None]:
    def switch(on: bool) -> Any:
        def hook(*_: Any) -> None:
            mode.active = on

        return hook

    handles = []
    for name in blocks:
        block = model.get_submodule(name)
        handles += [block.register_forward_pre_hook(switch(True)), block.register_forward_hook(switch(False))]
    with mode:
        yield
    for handle in handles:
        handle.remove()


@torch.no_grad()
def knocked_out(model: Any, ids: Sequence[int], blocks: Sequence[str], edges: Sequence[Edge]) -> Tensor:
    """Return the next token's probabilities with edges blocked in some blocks.

    Edges to later keys are ignored, since causal attention blocks them.
    """
    edges = [(query, key) for query, key in edges if key <= query]
    mode = _Knockout(edges, len(ids))
    with _active_inside(mode, model, blocks):
        logits = model(torch.tensor([list(ids)])).logits[0, -1]
    if blocks and edges and not mode.blocked:
        raise RuntimeError("The model called no attention function that this mode replaces.")
    return torch.softmax(logits.double(), dim=-1)
