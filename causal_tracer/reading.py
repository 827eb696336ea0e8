"""Reading a map: token roles, peaks, intervals, tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from causal_tracer.flow import HiddenFlow

Role = Literal["before", "first subject", "middle subject", "last subject", "first after", "further", "last"]
"""Which part a token plays in its prompt, as the paper averages them (Figure 2)."""


@dataclass(frozen=True)
class Peak:
    """A cell where restoring brings back much of the answer.

    Attributes:
        position: The token's place in the prompt.
        token: Its text.
        layer: The layer.
        score: The metric there.
        effect: The indirect effect.
        share: The indirect effect as a share of the total effect; NaN where there is none.
    """

    position: int
    token: str
    layer: int
    score: float
    effect: float
    share: float


def token_roles(n_tokens: int, subject_range: tuple[int, int]) -> tuple[Role, ...]:
    """The role of each token; a subject of one token is its last."""
    start, end = subject_range

    def role(token: int) -> Role:
        if token < start:
            return "before"
        if token == end - 1:
            return "last subject"
        if token < end:
            return "first subject" if token == start else "middle subject"
        if token == n_tokens - 1:
            return "last"
        return "first after" if token == end else "further"

    return tuple(role(token) for token in range(n_tokens))


def interval(flow: HiddenFlow, level: float) -> tuple[Tensor, Tensor]:
    """The interval of each cell's indirect effect over noise samples: its mean ± a quantile of Student's t x its error.

    The error is that of paired differences (`HiddenFlow.standard_error`), with samples - 1 degrees of freedom.
    """
    samples = flow.sample_scores.shape[0]
    half = student_t_quantile(0.5 + level / 2, samples - 1) * flow.standard_error
    return flow.indirect_effect - half, flow.indirect_effect + half


def student_t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution, for a probability from 0.5 to 1: exact to 1e-6, by bisection.

    The distribution function is that of the regularised incomplete beta function, as a finite sum for whole degrees
    (Abramowitz & Stegun 26.7.3 and 26.7.4).
    """
    if degrees < 1:
        return math.nan

    def within(t: float) -> float:
        angle = math.atan(t / math.sqrt(degrees))
        cosine, term, total = math.cos(angle) ** 2, 1.0, 0.0
        if degrees % 2:
            term = math.cos(angle)
            for k in range(3, degrees + 1, 2):
                total += term
                term *= cosine * (k - 1) / k
            return 2 / math.pi * (angle + math.sin(angle) * total)
        for k in range(2, degrees + 1, 2):
            total += term
            term *= cosine * (k - 1) / k
        return math.sin(angle) * total

    low, high = 0.0, 1.0
    while (1 + within(high)) / 2 < probability and high < 1e8:
        high *= 2
    while high - low > 1e-7 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 + within(middle)) / 2 < probability else (low, middle)
    return high


def peaks(flow: HiddenFlow, count: int) -> tuple[Peak, ...]:
    """The cells of largest indirect effect, at most one a token, the largest first."""
    effects, total = flow.indirect_effect, flow.total_effect
    # Where the metric falls when the answer comes back (a divergence, a rank), so do its effects.
    signed = effects if total >= 0 else -effects
    found = []
    for position in range(effects.shape[0]):
        known = signed[position].nan_to_num(nan=-math.inf)
        layer = int(known.argmax())
        if math.isfinite(known[layer]):
            effect, score = float(effects[position, layer]), float(flow.scores[position, layer])
            share = effect / total if total else math.nan
            found.append(Peak(position, flow.input_tokens[position], layer, score, effect, share))
    return tuple(sorted(found, key=lambda peak: -peak.effect if total >= 0 else peak.effect)[:count])


def peak_width(flow: HiddenFlow) -> float:
    """Half of the 95 % interval of the indirect effect at the peak; infinite where there is none."""
    best = peaks(flow, 1)
    if not best:
        return math.inf
    low, high = interval(flow, 0.95)
    width = float(high[best[0].position, best[0].layer] - low[best[0].position, best[0].layer]) / 2
    return width if math.isfinite(width) else math.inf


COLUMNS: Sequence[str] = (
    "position",
    "token",
    "role",
    "layer",
    "score",
    "indirect_effect",
    "standard_error",
    "interval_low",
    "interval_high",
)


def rows(flow: HiddenFlow) -> Iterable[tuple[Any, ...]]:
    """One row for every cell, in the order of `COLUMNS`; NaN where it was not computed."""
    low, high = interval(flow, 0.95)
    columns = torch.stack([flow.scores, flow.indirect_effect, flow.standard_error, low, high], dim=-1).tolist()
    for position, (token, role) in enumerate(zip(flow.input_tokens, flow.roles, strict=True)):
        for layer, values in enumerate(columns[position]):
            yield (position, token, role, layer, *values)
