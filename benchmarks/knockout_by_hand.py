"""Attention knockout by hand: one cell at a time, at the scores of every attention, with no mask and no package code.

A mode of torch stands in for the softmax of scores [rows, heads, queries, keys], for their logsumexp, which some models
scale the result by, and for torch's own attention, which it computes by its formula. Blocked edges get minus infinity
there.
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
"""A query, and a key that it does not attend to."""

_OF_SCORES = (functional.softmax, torch.softmax, Tensor.softmax, torch.logsumexp, Tensor.logsumexp)


class _Knockout(TorchFunctionMode):
    """Blocks edges while `active`, and counts how often."""

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
        # Rows and heads may be one dimension; a router's probabilities have no column for each token.
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
    """Probabilities of the next token with edges blocked in these blocks; edges from a later key are none."""
    edges = [(query, key) for query, key in edges if key <= query]
    mode = _Knockout(edges, len(ids))
    with _active_inside(mode, model, blocks):
        logits = model(torch.tensor([list(ids)])).logits[0, -1]
    if blocks and edges and not mode.blocked:
        raise RuntimeError("No attention was seen.")
    return torch.softmax(logits.double(), dim=-1)
