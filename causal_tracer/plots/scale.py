"""The colour scale of a map: its limits, its colours, and the labels of its colour bar.

The strongest colour is the metric's best value, or in direction "corrupt" its worst. White is the value of the patched
run, so that a white cell changes nothing. Cells that change the metric in the wrong direction have another hue.
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
from causal_tracer.results.labels import metric_of, require_same_metric

# The hue of wrong-way cells stays light, so that in black-and-white print, too, a dark cell is a strong one.
_WEAKER, _NEUTRAL = (211, 189, 124), (250, 250, 250)
# The largest ratio of the wrong side's length to the right side's.
_WEAKER_AT_MOST = 3
# Smaller differences are rounding.
_LEAST = 1e-6
_TICKS = 5

Stops = list[tuple[float, str]]


@dataclass(frozen=True)
class ColorLimits:
    """The limits of a colour scale, as values of the metric.

    Attributes:
        weakest: The end on the side of cells that change the metric in the wrong direction.
        base: The value of the patched run, which is white.
        strongest: The end with the strongest colour.
    """

    weakest: float
    base: float
    strongest: float

    @property
    def ends(self) -> tuple[float, float]:
        """The smaller end and the larger one."""
        return min(self.weakest, self.strongest), max(self.weakest, self.strongest)

    def places(self, metric: MetricDescription) -> tuple[float, float, float]:
        """Return the positions of `weakest`, `base` and `strongest` on the metric's colour axis."""
        return metric.axis_position(self.weakest), metric.axis_position(self.base), metric.axis_position(self.strongest)


def color_limits(*flows: HiddenFlow) -> ColorLimits:
    """Return the limits of one colour scale for one or several maps of the same metric and direction.

    The scale covers all finite scores, the clean run and the corrupted run. The side of cells that change the metric in
    the wrong direction takes at most three quarters of the scale, so that an outlier leaves room for the rest. Cells
    beyond the end have its colour, and its label starts with ≤ or ≥.

    Raises:
        SettingsError: The maps differ in metric or direction.
    """
    require_same_metric(*flows)
    metric, turn = metric_of(flows[0]), 1 if higher_is_stronger(flows[0]) else -1

    def strengths(values: Iterable[float]) -> list[float]:
        return [turn * at for value in values if math.isfinite(at := metric.axis_position(value))]

    known = strengths(score for flow in flows for row in flow.scores.tolist() for score in row)
    runs = strengths(score for flow in flows for score in (flow.low_score, flow.high_score))
    base = min(strengths(base_score(flow) for flow in flows), default=min([*runs, *known], default=0.0))
    weakest, strongest = scale_ends([*runs, *known], base, least=max((abs(base - run) for run in runs), default=0.0))
    weakest, base, strongest = (metric.value_at_position(turn * end) for end in (weakest, base, strongest))
    return ColorLimits(weakest, base, strongest)


def scale_ends(values: Sequence[float], base: float, least: float = 0.0) -> tuple[float, float]:
    """Return the weakest and the strongest end of a scale on which larger values are stronger.

    Args:
        values: The finite values.
        base: The white value.
        least: A lower bound of the strong side's length, used to limit the weak side.
    """
    lowest, strongest = min([base, *values]), max([base, *values])
    span = max(strongest - base, least)
    weakest = max(lowest, base - _WEAKER_AT_MOST * span) if span > _LEAST else lowest
    # If no value is stronger than the base, the base must still not get the strongest colour.
    return weakest, max(strongest, base + (base - weakest) / _WEAKER_AT_MOST, base + _LEAST)


def heatmap_colors(
    flow: HiddenFlow, color: str | Sequence[str], limits: ColorLimits | tuple[float, float] | None
) -> dict[str, Any]:
    """Return the arguments of a Plotly heatmap for a map's scores: values, colour scale, limits and colour bar.

    Args:
        flow: The map.
        color: A Plotly colour scale from weak to strong, by name or as a list of colours.
        limits: The limits of the scale. Two values are its ends, without a side for changes in the wrong direction.
            None takes the limits of the map.
    """
    metric = metric_of(flow)
    if not isinstance(limits, ColorLimits):
        limits = color_limits(flow) if limits is None else _between(limits, higher_is_stronger(flow))
    low, high = (metric.axis_position(end) for end in limits.ends)
    places = [[metric.axis_position(score) for score in row] for row in flow.scores.tolist()]
    known = [value for row in places for value in row if not math.isnan(value)]
    rounding = 1e-6 * (high - low)
    clipped = min(known, default=low) < low - rounding, max(known, default=high) > high + rounding
    return {
        # Infinite scores get the colour of the end on their side.
        "z": [[None if math.isnan(value) else _finite(value, low, high) for value in row] for row in places],
        "colorscale": color_stops(color, *limits.places(metric)),
        "zmin": low,
        "zmax": high,
        "colorbar": {"thickness": 14, **_labels(metric, limits, clipped)},
    }


def color_stops(color: str | Sequence[str], weakest: float, base: float, strongest: float) -> Stops:
    """Return a colour scale as stops: positions from 0 (the smaller end) to 1 (the larger end), each with its colour.

    Args:
        color: A Plotly colour scale from weak to strong, by name or as a list of colours.
        weakest, base, strongest: The limits of the scale, as in `ColorLimits`.
    """
    named = color if isinstance(color, str) else list(color)
    strong: Stops = [(float(at), str(each)) for at, each in go.Heatmap(colorscale=named).colorscale]
    weak_part = abs(base - weakest) / abs(strongest - weakest)
    stops = strong
    if weak_part > 0:
        # Equal changes up and down have equally strong colours, except if the weak side is longer.
        depth = min(1.0, abs(base - weakest) / abs(strongest - base))
        palest = "#" + "".join(
            f"{round(none + depth * (full - none)):02x}" for none, full in zip(_NEUTRAL, _WEAKER, strict=True)
        )
        stops = [(0.0, palest)] + [(weak_part + (1 - weak_part) * at, each) for at, each in strong]
    return stops if strongest > weakest else [(1 - at, each) for at, each in reversed(stops)]


def _between(ends: tuple[float, float], rising: bool) -> ColorLimits:
    low, high = sorted(float(end) for end in ends)
    return ColorLimits(low, low, high) if rising else ColorLimits(high, high, low)


def _finite(value: float, low: float, high: float) -> float:
    return value if math.isfinite(value) else low if value < 0 else high


def _labels(metric: MetricDescription, limits: ColorLimits, clipped: tuple[bool, bool]) -> dict[str, Any]:
    """Return the labels of the colour bar of a logarithmic or clipped scale; Plotly makes all others."""
    if not metric.logarithmic and not any(clipped):
        return {"tickformat": ".3~g"}
    low, high = (metric.axis_position(end) for end in limits.ends)
    inner = [low + (high - low) * step / (_TICKS - 1) for step in range(1, _TICKS - 1)]
    if metric.logarithmic:
        inner = [at for at in _decades(low, high) if 0.06 * (high - low) < at - low < 0.94 * (high - low)]
    texts = [metric.format_value(metric.value_at_position(at)) for at in (low, *inner, high)]
    texts[0] = f"≤ {texts[0]}" if clipped[0] else texts[0]
    texts[-1] = f"≥ {texts[-1]}" if clipped[1] else texts[-1]
    return {"tickvals": [low, *inner, high], "ticktext": texts}


def _decades(low: float, high: float) -> list[float]:
    """Return the logarithms of 1, 10, 100 and so on in a range; in a short range also those of 2, 5, 20 and so on."""
    digits = (1, 2, 5) if high - low < 2.5 else (1,)
    exponents = range(math.floor(low), math.ceil(high) + 1)
    return [at for exponent in exponents for digit in digits if low <= (at := exponent + math.log10(digit)) <= high]
