"""Next-token distributions for the logit lens: most probable tokens, entropy, and the answer's probability and rank."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from causal_tracer.metrics.metric import LOGITS_IN_CACHE

# Number of tokens in a group; `best_tokens` compares the groups' largest logits first.
_GROUP = 512


class Distributions(NamedTuple):
    """Statistics of next-token distributions, one distribution per row.

    Attributes:
        top_ids: The most probable tokens [rows, top], best first; among equals, the smallest id first.
        top_probabilities: The probabilities of `top_ids` [rows, top].
        entropies: The entropies in nats [rows].
        answer_probabilities: The answer's probabilities [rows].
        answer_ranks: The answer's ranks [rows]: the number of more probable tokens, plus one.
    """

    top_ids: Tensor
    top_probabilities: Tensor
    entropies: Tensor
    answer_probabilities: Tensor
    answer_ranks: Tensor


def distributions_of(logits: Tensor, answer_id: int, top: int) -> Distributions:
    """Return the statistics of the next-token distributions that float32 logits [rows, vocabulary] give."""
    top_ids, best = best_tokens(logits, top)
    largest, answer = best[:, 0], logits[:, answer_id].clone()
    total, weighted, above = torch.zeros_like(largest), torch.zeros_like(largest), torch.zeros_like(answer).long()
    for part in torch.split(logits, LOGITS_IN_CACHE, dim=-1):
        above += (part > answer[:, None]).sum(dim=-1)
        shifted = part - largest[:, None]
        weights = shifted.exp()
        total += weights.sum(dim=-1)
        weighted += weights.mul_(shifted).sum(dim=-1)
    log_total = total.log()
    return Distributions(
        top_ids=top_ids,
        top_probabilities=(best - largest[:, None] - log_total[:, None]).exp(),
        # -sum of p log p, with log p = shifted logit - log total. Rounding may make it negative.
        entropies=(log_total - weighted / total).clamp(min=0),
        answer_probabilities=(answer - largest - log_total).exp(),
        answer_ranks=above + 1,
    )


def best_tokens(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ids and values of the largest logits, each [rows, count], the largest first.

    Only the groups with the largest maxima are sorted, which is faster than sorting the vocabulary.
    """
    size = logits.shape[-1]
    whole = size - size % _GROUP
    maxima = [_group_maxima(part) for part in torch.split(logits[:, :whole], LOGITS_IN_CACHE, dim=-1)] if whole else []
    if whole < size:
        maxima.append(logits[:, whole:].amax(dim=-1, keepdim=True))
    order = torch.cat(maxima, dim=-1).argsort(dim=-1, descending=True, stable=True)
    groups = order[:, :count].sort(dim=-1).values
    ids = (groups[..., None] * _GROUP + torch.arange(_GROUP, device=logits.device)).flatten(1)
    # The last group may be shorter than the others.
    values = logits.gather(-1, ids.clamp(max=size - 1)).masked_fill(ids >= size, -torch.inf)
    best = values.sort(dim=-1, descending=True, stable=True)
    return ids.gather(-1, best.indices[:, :count]), best.values[:, :count]


def _group_maxima(logits: Tensor) -> Tensor:
    """Return the largest logit of each group [rows, groups]. Halving is several times as fast as torch's `amax`."""
    groups = logits.reshape(len(logits), -1, _GROUP)
    while groups.shape[-1] > 1:
        groups = torch.maximum(*groups.chunk(2, dim=-1))
    return groups[..., 0]
