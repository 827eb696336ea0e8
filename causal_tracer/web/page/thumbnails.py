"""Maps as pictures of 48 x 32 pixels: a text of levels, which a card stores, and the SVG drawn from it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from causal_tracer.plots.scale import color_limits
from causal_tracer.request.sites import SITES
from causal_tracer.results.analysis import base_score, higher_is_stronger
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.labels import metric_of
from causal_tracer.web.service.figures import SHARED_SCALE

WIDTH, HEIGHT = 48, 32
_MOST_ROWS, _MOST_COLUMNS = 16, 24
# Levels from "0", no effect, to "8"; "w" is an effect in the wrong direction, "." a cell that was not computed.
_GRID = re.compile(rf"[0-8w.]{{1,{_MOST_COLUMNS}}}(/[0-8w.]{{1,{_MOST_COLUMNS}}}){{0,{_MOST_ROWS - 1}}}")
_WRONG_WAY = "#d3bd7c"
_NOT_COMPUTED = "#b8b8b8"
# Below this share of the strongest effect, a cell with an effect in the wrong direction has no colour.
_WRONG_FROM = 0.25
# Changes of a probability that are all smaller have no colour.
_LEAST_CHANGE = 0.01


def levels(flows: Sequence[HiddenFlow]) -> tuple[str, ...]:
    """Return each map as rows of levels, joined by "/". Each map has its own scale; neighbours are merged."""
    return tuple(_levels(flow) for flow in flows)


def change_levels(change: Tensor) -> str:
    """Return the change of a probability [tokens, layers] as rows of levels, in shares of the largest change."""
    span = max(float(change.abs().max()), _LEAST_CHANGE)
    return _picture(change.double(), span)


def is_picture(text: Any) -> bool:
    """Return whether a value is a text of levels in the form that `levels` returns."""
    return isinstance(text, str) and bool(_GRID.fullmatch(text)) and len({len(row) for row in text.split("/")}) == 1


def thumbnail_svg(grids: Sequence[str], kinds: Sequence[str]) -> str:
    """Return maps side by side as SVG with few elements: one path for each level of each map. Screen readers skip it.

    Args:
        grids: The maps as `levels` returns them; none gives an empty picture.
        kinds: The maps' sites.
    """
    space = WIDTH / max(len(grids), 1)
    parts = []
    for place, (grid, kind) in enumerate(zip(grids, kinds, strict=False)):
        rows = grid.split("/")
        scale = SHARED_SCALE if len(grids) > 1 else SITES[kind].color_scale
        colors = {**{str(at): color for at, color in enumerate(scale)}, "w": _WRONG_WAY, ".": _NOT_COMPUTED}
        paths = "".join(
            f'<path fill="{color}" d="{drawn}"/>' for level, color in colors.items() if (drawn := _path(rows, level))
        )
        across = (space - (1 if len(grids) > 1 else 0)) / len(rows[0])
        parts.append(
            f'<g transform="translate({place * space:.3g} 0) scale({across:.4g} {HEIGHT / len(rows):.4g})">{paths}</g>'
        )
    return (
        f'<svg class="ct-thumb" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true" '
        f'shape-rendering="crispEdges">{"".join(parts)}</svg>'
    )


def _levels(flow: HiddenFlow) -> str:
    metric, limits = metric_of(flow), color_limits(flow)
    _, base, strongest = limits.places(metric)
    turn = 1 if higher_is_stronger(flow) else -1
    strength = [[turn * (metric.axis_position(score) - base) for score in row] for row in flow.scores.tolist()]
    span = max(abs(strongest - base), 1e-9) if math.isfinite(base_score(flow)) else 1.0
    return _picture(torch.tensor(strength, dtype=torch.float64), span)


def _picture(strength: Tensor, span: float) -> str:
    return "/".join("".join(_level(value / span) for value in row) for row in _merged(strength).tolist())


def _level(share: float) -> str:
    if math.isnan(share):
        return "."
    if share < -_WRONG_FROM:
        return "w"
    return str(round(8 * min(max(share, 0.0), 1.0)))


def _merged(values: Tensor) -> Tensor:
    """Return values reduced to the rows and columns of a picture; of merged neighbours, the strongest is kept."""
    # A cell that was not computed is weaker than any other.
    known = values.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-1e300)
    rows, columns = (min(most, size) for most, size in zip((_MOST_ROWS, _MOST_COLUMNS), known.shape, strict=True))
    small = torch.nn.functional.adaptive_max_pool2d(known[None], (rows, columns))[0]
    return torch.where(small == -math.inf, math.nan, small)


def _path(rows: Sequence[str], level: str) -> str:
    """Return the cells of a level as one path: a rectangle for each run of them in a row."""
    return "".join(
        f"M{run.start()} {at}h{run.end() - run.start()}v1H{run.start()}z"
        for at, row in enumerate(rows)
        for run in re.finditer(f"{re.escape(level)}+", row)
    )
