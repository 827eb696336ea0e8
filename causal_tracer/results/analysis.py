"""Reading a map: token roles, effects, peaks, intervals, tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from causal_tracer.request.sites import SITES, SPANS
from causal_tracer.results import intervals
from causal_tracer.results.words import control_of, metric_of

if TYPE_CHECKING:
    from causal_tracer.results.flow import HiddenFlow

Role = Literal["before", "first subject", "middle subject", "last subject", "first after", "further", "last"]
"""Which part a token plays in its prompt, as the paper averages them (Figure 2)."""


@dataclass(frozen=True)
class Peak:
    """A cell where restoring brings back much of the answer, or where corrupting or blocking takes much of it away.

    Attributes:
        position: The token's place in the prompt. In a map of heads or spans, that of the first token it is made at.
        token: Its text.
        layer: The layer.
        score: The metric there.
        effect: What the patch changes: the indirect effect, score - low_score; for direction="corrupt", which patches
            the clean run, score - high_score.
        share: The effect as a share of the total effect: 1 where restoring brings all of the answer back, and where
            corrupting takes all of it away. NaN where corrupting the subject does not worsen the metric.
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
        """The token's text in quotes, the head, or the span."""
        if self.span is not None:
            return self.span
        return repr(self.token) if self.head is None else f"head {self.head}"


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


def higher_is_stronger(flow: HiddenFlow) -> bool:
    """Return whether the cells that matter most have the highest scores, rather than the lowest.

    Restoring looks for the metric's better values, corrupting for its worse ones.
    """
    return bool(metric_of(flow).higher_is_better) == (flow.settings.direction == "restore")


def base_score(flow: HiddenFlow) -> float:
    """Return the metric in the run that was patched: the corrupted run, or the clean run in direction "corrupt"."""
    return flow.high_score if flow.settings.direction == "corrupt" else flow.low_score


def effects(flow: HiddenFlow) -> Tensor:
    """Return what each cell's patch changes: its score minus `base_score`, in the shape of the scores."""
    base = base_score(flow)
    # Where both are the same infinity, nothing changes.
    return torch.where(flow.scores == base, 0.0, flow.scores - base)


def share(flow: HiddenFlow, effect: float) -> float:
    """Return a cell's effect as a share of the total effect; NaN where there is none (see `Peak.share`)."""
    other = flow.low_score if flow.settings.direction == "corrupt" else flow.high_score
    total = other - base_score(flow)
    worsens = total > 0 if higher_is_stronger(flow) else total < 0
    return effect / total if worsens and math.isfinite(effect) and math.isfinite(total) else math.nan


def standard_error(flow: HiddenFlow) -> Tensor:
    """Return the standard error of each cell's effect over noise samples; NaN with a single sample."""
    # The clean run is the same in every sample.
    paired = flow.settings.direction == "restore"
    return intervals.standard_error(
        flow.sample_scores - flow.low_sample_scores[:, None, None] if paired else flow.sample_scores
    )


def interval(flow: HiddenFlow, level: float) -> tuple[Tensor, Tensor]:
    """Return the interval of each cell's effect over noise samples: `standard_error`, by Student's t."""
    effect, half = effects(flow), intervals.margin(standard_error(flow), len(flow.sample_scores), level)
    return effect - half, effect + half


def peaks(flow: HiddenFlow, count: int) -> tuple[Peak, ...]:
    """The strongest cells, at most one a row, the strongest first; see `higher_is_stronger`."""
    turn = 1 if higher_is_stronger(flow) else -1
    changes = effects(flow).tolist()
    found = []
    for row, scores in enumerate(flow.scores.tolist()):
        known = [layer for layer, score in enumerate(scores) if not math.isnan(score)]
        if known:
            # By score: effects do not order cells where the run that was patched is at minus infinity.
            layer = max(known, key=lambda layer: turn * scores[layer])
            effect = changes[row][layer]
            position, head, span = _place(flow, row)
            token, part = flow.input_tokens[position], share(flow, effect)
            found.append(Peak(position, token, layer, scores[layer], effect, part, head, span))
    return tuple(sorted(found, key=lambda peak: -turn * peak.score)[:count])


def acts(flow: HiddenFlow, effect: float) -> bool:
    """Return whether an effect goes the way that is looked for: towards the clean run, or away from it."""
    return effect > 0 if higher_is_stronger(flow) else effect < 0


def peak_width(flow: HiddenFlow) -> float:
    """Half of the 95 % interval of the effect at the peak; infinite where there is none."""
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
"""The columns of a map's table. The error and the interval are those of `effect`; see `Peak`.

`head` is NaN but in maps of heads, `span` is empty but in maps of spans.
"""


def rows(flow: HiddenFlow) -> Iterable[tuple[Any, ...]]:
    """One row for every cell, in the order of `COLUMNS`; NaN where it was not computed."""
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
    """Return the position of a row's token, its head in a map of heads, and its name in a map of spans."""
    match SITES[flow.kind].rows:
        case "tokens":
            return row, None, None
        case "heads":
            return flow.settings.at_tokens[0], row, None
        case "spans":
            return flow.settings.at_tokens[0], None, SPANS[row]
