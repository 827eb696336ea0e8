"""The Plotly heatmap of the difference of two maps (`FlowDifference`)."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go

from causal_tracer.metrics.descriptions import MetricDescription
from causal_tracer.plots.heatmap import color_bar_title, escape_markup, lay_out_map
from causal_tracer.results.analysis import higher_is_stronger
from causal_tracer.results.comparison import FlowDifference
from causal_tracer.results.labels import display_token, effect_label, map_title, metric_of

# All kinds of colour vision tell orange from blue. Both arms have equal steps in OKLab, as the scales of maps have.
DIFFERENCE_SCALE: tuple[str, ...] = (
    *("#6e2f00", "#914100", "#b35715", "#c6774a", "#d59876", "#e2b9a2", "#efd9cd", "#fafafa"),
    *("#d3dfef", "#adc5e3", "#88aad6", "#6390c9", "#4076b9", "#2d5c96", "#1f4472"),
)


def plot_difference_heatmap(
    difference: FlowDifference, title: str | None = None, show: bool = True, *, height: int | None = None
) -> go.Figure:
    """Draw the difference of two maps: blue where the effect is stronger in the second map, orange in the first.

    Args:
        difference: The difference. Its colour scale is symmetric about 0, and logarithmic if the metric's is.
        title: The title; None takes one that names both maps, "" leaves it out.
        show: Open the figure.
        height: Height in pixels; None follows the number of rows.

    Returns:
        The figure. Cells that were not computed in both maps are gaps.
    """
    metric = metric_of(difference.first)
    values = difference.values.tolist()
    places = [[_place(metric, value) for value in row] for row in values]
    limit = max([*(abs(at) for row in places for at in row if math.isfinite(at)), 1e-6])
    labels = row_labels(difference)
    cells = [
        [
            (escape_markup(row), _layers(pair), metric.format_value(value, sign=True, more=1))
            for pair, value in zip(difference.layers, line, strict=True)
        ]
        for row, line in zip(labels, values, strict=True)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=[[None if math.isnan(at) else min(max(at, -limit), limit) for at in row] for row in places],
            customdata=cells,
            hovertemplate="<b>%{customdata[0]}</b>, %{customdata[1]}<br>difference %{customdata[2]}<extra></extra>",
            hoverongaps=False,
            colorscale=list(DIFFERENCE_SCALE),
            # Blue means a stronger second map, whether high or low values of the metric are the strong ones.
            reversescale=not higher_is_stronger(difference.first),
            zmin=-limit,
            zmax=limit,
            xgap=1,
            ygap=1,
            colorbar={
                "title": color_bar_title(f"B − A, {difference.label}"),
                "thickness": 14,
                **_labels(metric, limit),
            },
        )
    )
    lay_out_map(
        figure,
        title=difference_title(difference) if title is None else title,
        xlabel="layer" if _same_depth(difference) else "layer of the model with fewer layers, at equal relative depth",
        columns={column: str(column) for column in range(0, len(difference.layers), 5)},
        rows=labels,
        height=height,
    )
    if show:
        figure.show()
    return figure


def difference_title(difference: FlowDifference) -> str:
    """Return the title of a difference, which names the effects and the maps A and B."""
    first, second = map_title(difference.first), map_title(difference.second)
    maps = first if first == second else f"A: {first}. B: {second}"
    return f"Difference of the {effect_label(difference.first)}s, B − A. {maps}"


def row_labels(difference: FlowDifference) -> list[str]:
    """Return the row labels: token roles, heads, spans, or tokens ("a | b" if they differ). The subject has a star."""
    subject = range(*difference.first.subject_range) if difference.aligned_by == "tokens" else ()
    return [
        (display_token(a) if a == b else f"{display_token(a)} | {display_token(b)}") + ("*" if row in subject else "")
        for row, (a, b) in enumerate(difference.rows)
    ]


def _place(metric: MetricDescription, value: float) -> float:
    """Return a difference's position on the colour axis: the value, or for a logarithmic metric ±log10(1 + |value|)."""
    if not metric.logarithmic or not math.isfinite(value):
        return value
    return math.copysign(math.log10(1 + abs(value)), value)


def _labels(metric: MetricDescription, limit: float) -> dict[str, Any]:
    if not metric.logarithmic:
        return {"tickformat": "+.3~g"}
    powers = [10.0**exponent for exponent in range(math.ceil(limit)) if math.log10(1 + 10.0**exponent) < 0.9 * limit]
    sizes = [*powers[:: 1 + len(powers) // 4], 10**limit - 1]
    values = [*(-size for size in reversed(sizes)), 0.0, *sizes]
    return {
        "tickvals": [_place(metric, value) for value in values],
        "ticktext": [metric.format_value(value, sign=True) for value in values],
    }


def _layers(pair: tuple[int, int]) -> str:
    return f"layer {pair[0]}" if pair[0] == pair[1] else f"layer {pair[0]} of A, {pair[1]} of B"


def _same_depth(difference: FlowDifference) -> bool:
    return difference.first.scores.shape[1] == difference.second.scores.shape[1]
