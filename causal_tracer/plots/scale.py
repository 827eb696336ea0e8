"""The colour scale of a map: which end is strong, where it begins and ends, and how its values are written.

The strong end is where the metric is best, and in direction "corrupt" where it is worst. White is the run that was
patched, so that a cell without colour changes nothing. Cells on the other side of it have a hue of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from causal_tracer.metrics.descriptions import MetricDescription
from causal_tracer.results.analysis import base_score, higher_is_stronger
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.words import metric_of, require_same_metric

# Cells worse than the run that was patched. Light throughout: a dark cell is a strong one in print too.
_WEAKER, _NEUTRAL = (211, 189, 124), (250, 250, 250)
# How long their side of the scale may be, against the other one.
_WEAKER_AT_MOST = 3
# Differences below it are rounding.
_LEAST = 1e-6
_TICKS = 5

Stops = list[tuple[float, str]]


@dataclass(frozen=True)
class ColorLimits:
    """Where a colour scale begins and ends, as values of the metric.

    Attributes:
        weakest: The value at the end of the cells that change the metric the wrong way.
        base: The value of the run that was patched, without colour.
        strongest: The value with the strongest colour.
    """

    weakest: float
    base: float
    strongest: float

    @property
    def ends(self) -> tuple[float, float]:
        """The smaller end and the larger one."""
        return min(self.weakest, self.strongest), max(self.weakest, self.strongest)

    def places(self, metric: MetricDescription) -> tuple[float, float, float]:
        """Where the three lie on the metric's colour scale."""
        return metric.place(self.weakest), metric.place(self.base), metric.place(self.strongest)


def color_limits(*flows: HiddenFlow) -> ColorLimits:
    """Return one colour scale for a map, or for several of one metric and direction.

    The scale reaches over all finite scores, the clean run and the corrupted run. What lies on the wrong side of the
    run that was patched takes three quarters of it at most, so that an outlier leaves room for the rest; cells beyond
    have the end's colour, and the label there reports that.

    Raises:
        SettingsError: The maps differ in metric or direction.
    """
    require_same_metric(*flows)
    metric, turn = metric_of(flows[0]), 1 if higher_is_stronger(flows[0]) else -1

    def strengths(values: Iterable[float]) -> list[float]:
        return [turn * at for value in values if math.isfinite(at := metric.place(value))]

    known = strengths(score for flow in flows for row in flow.scores.tolist() for score in row)
    runs = strengths(score for flow in flows for score in (flow.low_score, flow.high_score))
    base = min(strengths(base_score(flow) for flow in flows), default=min([*runs, *known], default=0.0))
    weakest, strongest = scale_ends([*runs, *known], base, least=max((abs(base - run) for run in runs), default=0.0))
    weakest, base, strongest = (metric.value_at(turn * end) for end in (weakest, base, strongest))
    return ColorLimits(weakest, base, strongest)


def scale_ends(values: Sequence[float], base: float, least: float = 0.0) -> tuple[float, float]:
    """Return where a scale of values, larger ones stronger, has its weakest colour and its strongest.

    Args:
        values: The finite values.
        base: The value without colour.
        least: The least length of the strong side for which the weak side is measured.
    """
    lowest, strongest = min([base, *values]), max([base, *values])
    span = max(strongest - base, least)
    weakest = max(lowest, base - _WEAKER_AT_MOST * span) if span > _LEAST else lowest
    # Where no value is stronger than the base, the base must not have the strongest colour.
    return weakest, max(strongest, base + (base - weakest) / _WEAKER_AT_MOST, base + _LEAST)


def heatmap_colors(
    flow: HiddenFlow, color: str | Sequence[str], limits: ColorLimits | tuple[float, float] | None
) -> dict[str, Any]:
    """Return the properties of a heatmap that draw a map's scores as colours, with the colour bar's labels.

    Args:
        flow: The map.
        color: A Plotly colour scale from weak to strong, by name or as a list of colours.
        limits: Where the scale begins and ends; two values are its ends without a side for wrong changes, and None
            takes those of the map.
    """
    metric = metric_of(flow)
    if not isinstance(limits, ColorLimits):
        limits = color_limits(flow) if limits is None else _between(limits, higher_is_stronger(flow))
    low, high = (metric.place(end) for end in limits.ends)
    places = [[metric.place(score) for score in row] for row in flow.scores.tolist()]
    known = [value for row in places for value in row if not math.isnan(value)]
    rounding = 1e-6 * (high - low)
    clipped = min(known, default=low) < low - rounding, max(known, default=high) > high + rounding
    return {
        # Infinite scores have the colour of the end that they are beyond.
        "z": [[None if math.isnan(value) else _finite(value, low, high) for value in row] for row in places],
        "colorscale": color_stops(color, *limits.places(metric)),
        "zmin": low,
        "zmax": high,
        "colorbar": {"thickness": 14, **_labels(metric, limits, clipped)},
    }


def color_stops(color: str | Sequence[str], weakest: float, base: float, strongest: float) -> Stops:
    """Return the colours of a scale from its smaller end to its larger one, with their places from 0 to 1.

    Args:
        color: A Plotly colour scale from weak to strong, by name or as a list of colours.
        weakest, base, strongest: Where the scale has its weakest colour, none, and its strongest (`ColorLimits`).
    """
    named = color if isinstance(color, str) else list(color)
    strong: Stops = [(float(at), str(each)) for at, each in go.Heatmap(colorscale=named).colorscale]
    weak_part = abs(base - weakest) / abs(strongest - weakest)
    stops = strong
    if weak_part > 0:
        # Equal changes are equally far from white on both sides, unless the weak side is the longer one.
        depth = min(1.0, abs(base - weakest) / abs(strongest - base))
        palest = "#" + "".join(
            f"{round(none + depth * (full - none)):02x}" for none, full in zip(_NEUTRAL, _WEAKER, strict=True)
        )
        stops = [(0.0, palest)] + [(weak_part + (1 - weak_part) * at, each) for at, each in strong]
    return stops if strongest > weakest else [(1 - at, each) for at, each in reversed(stops)]


def _between(ends: tuple[float, float], rising: bool) -> ColorLimits:
    low, high = min(ends), max(ends)
    return ColorLimits(low, low, high) if rising else ColorLimits(high, high, low)


def _finite(value: float, low: float, high: float) -> float:
    return value if math.isfinite(value) else low if value < 0 else high


def _labels(metric: MetricDescription, limits: ColorLimits, clipped: tuple[bool, bool]) -> dict[str, Any]:
    """Return the colour bar's labels: Plotly's own for a plain scale, else these."""
    if not metric.logarithmic and not any(clipped):
        return {"tickformat": ".3~g"}
    low, high = (metric.place(end) for end in limits.ends)
    inner = [low + (high - low) * step / (_TICKS - 1) for step in range(1, _TICKS - 1)]
    if metric.logarithmic:
        inner = [at for at in _decades(low, high) if 0.06 * (high - low) < at - low < 0.94 * (high - low)]
    texts = [metric.written(metric.value_at(at)) for at in (low, *inner, high)]
    texts[0] = f"≤ {texts[0]}" if clipped[0] else texts[0]
    texts[-1] = f"≥ {texts[-1]}" if clipped[1] else texts[-1]
    return {"tickvals": [low, *inner, high], "ticktext": texts}


def _decades(low: float, high: float) -> list[float]:
    """Return the logarithms of 1, 10, 100 …, and where those are few also of 2, 5, 20 … between two logarithms."""
    digits = (1, 2, 5) if high - low < 2.5 else (1,)
    exponents = range(math.floor(low), math.ceil(high) + 1)
    return [at for exponent in exponents for digit in digits if low <= (at := exponent + math.log10(digit)) <= high]
