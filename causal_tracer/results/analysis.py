"""Numbers derived from a map: token roles, effects, peaks, intervals, and its table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from causal_tracer.request.sites import SITES, SPANS
from causal_tracer.results import intervals
from causal_tracer.results.labels import control_of, metric_of

if TYPE_CHECKING:
    from causal_tracer.results.flow import HiddenFlow

Role = Literal["before", "first subject", "middle subject", "last subject", "first after", "further", "last"]
"""The place of a token relative to the subject, as in Meng et al. 2022 (ROME), Figure 2."""


@dataclass(frozen=True)
class Peak:
    """One of a map's strongest cells.

    Attributes:
        position: The token's position in the prompt. In a map of heads or spans, the first of `settings.at_tokens`.
        token: The token's text.
        layer: The layer.
        score: The metric in this cell.
        effect: The change that the patch makes: the indirect effect, score - low_score. For direction="corrupt",
            which patches the clean run, it is score - high_score.
        share: The effect as a share of the total effect: 1 if restoring brings all of the answer back, or if
            corrupting takes all of it away. NaN if corrupting the subject does not worsen the metric.
        head: The attention head, in a map of heads.
        span: The row's name, in a map of spans.
    """

    position: int
    token: str
    layer: int
    score: float
    effect: float
    share: float
    head: int | None = None
    span: str | None = None

    @property
    def row(self) -> int:
        """The row of the map."""
        if self.span is not None:
            return SPANS.index(self.span)
        return self.position if self.head is None else self.head

    @property
    def row_name(self) -> str:
        """The name of the row: the token's text in quotes, "head 3", or the span's name."""
        if self.span is not None:
            return self.span
        return repr(self.token) if self.head is None else f"head {self.head}"


def token_roles(n_tokens: int, subject_range: tuple[int, int]) -> tuple[Role, ...]:
    """Return the role of each token. A subject of a single token has the role "last subject"."""
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


def higher_is_stronger(flow: HiddenFlow) -> bool:
    """Return whether the strongest cells have the highest scores, rather than the lowest.

    The strongest cells have the metric's best values in direction "restore", and its worst ones in "corrupt".
    """
    return bool(metric_of(flow).higher_is_better) == (flow.settings.direction == "restore")


def base_score(flow: HiddenFlow) -> float:
    """Return the metric in the run that the cells patch: the corrupted run, or the clean run in direction "corrupt"."""
    return flow.high_score if flow.settings.direction == "corrupt" else flow.low_score


def effects(flow: HiddenFlow) -> Tensor:
    """Return the effect of each cell's patch: its score minus `base_score` [rows, layers]."""
    base = base_score(flow)
    # The difference of two equal infinities would be NaN.
    return torch.where(flow.scores == base, 0.0, flow.scores - base)


def share(flow: HiddenFlow, effect: float) -> float:
    """Return a cell's effect as a share of the total effect; NaN if there is no total effect (see `Peak.share`)."""
    other = flow.low_score if flow.settings.direction == "corrupt" else flow.high_score
    total = other - base_score(flow)
    worsens = total > 0 if higher_is_stronger(flow) else total < 0
    return effect / total if worsens and math.isfinite(effect) and math.isfinite(total) else math.nan


def standard_error(flow: HiddenFlow) -> Tensor:
    """Return the standard error of each cell's effect over noise samples [rows, layers]; NaN with a single sample."""
    # The clean run is the same in every sample.
    paired = flow.settings.direction == "restore"
    return intervals.standard_error(
        flow.sample_scores - flow.low_sample_scores[:, None, None] if paired else flow.sample_scores
    )


def interval(flow: HiddenFlow, level: float) -> tuple[Tensor, Tensor]:
    """Return the confidence interval of each cell's effect over noise samples, by Student's t: (low, high)."""
    effect, half = effects(flow), intervals.margin(standard_error(flow), len(flow.sample_scores), level)
    return effect - half, effect + half


def peaks(flow: HiddenFlow, count: int) -> tuple[Peak, ...]:
    """Return the strongest cells (see `higher_is_stronger`), the strongest first, at most one of each row."""
    turn = 1 if higher_is_stronger(flow) else -1
    changes = effects(flow).tolist()
    found = []
    for row, scores in enumerate(flow.scores.tolist()):
        known = [layer for layer, score in enumerate(scores) if not math.isnan(score)]
        if known:
            # By score: if the patched run's metric is minus infinity, all effects are infinite and have no order.
            layer = max(known, key=lambda layer: turn * scores[layer])
            effect = changes[row][layer]
            position, head, span = _place(flow, row)
            token, part = flow.input_tokens[position], share(flow, effect)
            found.append(Peak(position, token, layer, scores[layer], effect, part, head, span))
    return tuple(sorted(found, key=lambda peak: -turn * peak.score)[:count])


def has_expected_sign(flow: HiddenFlow, effect: float) -> bool:
    """Return whether an effect has the expected sign: towards the clean run, or away from it in "corrupt"."""
    return effect > 0 if higher_is_stronger(flow) else effect < 0


def peak_width(flow: HiddenFlow) -> float:
    """Return half the width of the 95 % interval of the effect at the strongest cell; infinite if there is none."""
    best = peaks(flow, 1)
    if not best:
        return math.inf
    low, high = interval(flow, 0.95)
    width = float((high - low)[best[0].row, best[0].layer]) / 2
    return width if math.isfinite(width) else math.inf


COLUMNS: Sequence[str] = (
    "position",
    "token",
    "role",
    "layer",
    "score",
    "indirect_effect",
    "effect",
    "standard_error",
    "interval_low",
    "interval_high",
    "share",
    "metric",
    "direction",
    "control",
    "head",
    "span",
)
"""The columns of a map's table. Error and interval are those of `effect`; see `Peak`.

`head` is NaN except in maps of heads, and `span` is empty except in maps of spans.
"""


def rows(flow: HiddenFlow) -> Iterable[tuple[Any, ...]]:
    """Yield the table's row for each cell, in the order of `COLUMNS`; NaN in cells that were not computed."""
    low, high = interval(flow, 0.95)
    values = (flow.scores, flow.indirect_effect, effects(flow), standard_error(flow), low, high)
    columns = torch.stack(values, dim=-1).tolist()
    measured = (flow.settings.metric, flow.settings.direction, control_of(flow.settings))
    roles = flow.roles
    for row, cells in enumerate(columns):
        position, head, span = _place(flow, row)
        place = (position, flow.input_tokens[position], roles[position])
        for layer, cell in enumerate(cells):
            part_of_row = math.nan if head is None else head, span or ""
            yield (*place, layer, *cell, share(flow, cell[2]), *measured, *part_of_row)


def _place(flow: HiddenFlow, row: int) -> tuple[int, int | None, str | None]:
    """Return a row's position, its head (in a map of heads, else None) and its span (in a map of spans, else None)."""
    match SITES[flow.kind].rows:
        case "tokens":
            return row, None, None
        case "heads":
            return flow.settings.at_tokens[0], row, None
        case "spans":
            return flow.settings.at_tokens[0], None, SPANS[row]
