"""The figure of what differs between two results."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from causal_tracer.comparison import FlowDifference
from causal_tracer.plots import display_token, escape_markup, lay_out_map

# Orange and blue differ to every kind of colour vision; both arms have equal steps in OKLab, as the scales of `plots`.
DIFFERENCE_SCALE: tuple[str, ...] = (
    *("#6e2f00", "#914100", "#b35715", "#c6774a", "#d59876", "#e2b9a2", "#efd9cd", "#fafafa"),
    *("#d3dfef", "#adc5e3", "#88aad6", "#6390c9", "#4076b9", "#2d5c96", "#1f4472"),
)


def plot_difference_heatmap(
    difference: FlowDifference, title: str | None = None, show: bool = True, *, height: int | None = None
) -> go.Figure:
    """Draw a difference of two maps: blue where the second restores more of its answer, orange where the first does.

    Args:
        difference: What to draw; the scale is symmetric about 0.
        title: None takes one that says what is subtracted; "" leaves it out.
        show: Open the figure.
        height: Height in pixels; None follows the number of rows.

    Returns:
        The figure. Cells that either result lacks are gaps.
    """
    values = difference.values.tolist()
    known = [abs(value) for row in values for value in row if not math.isnan(value)]
    limit = max([*known, 1e-6])
    labels = row_labels(difference)
    figure = go.Figure(
        go.Heatmap(
            z=[[None if math.isnan(value) else value for value in row] for row in values],
            customdata=[[(escape_markup(label), _layers(pair)) for pair in difference.layers] for label in labels],
            hovertemplate="<b>%{customdata[0]}</b>, %{customdata[1]}<br>difference %{z:+.4f}<extra></extra>",
            hoverongaps=False,
            colorscale=list(DIFFERENCE_SCALE),
            zmin=-limit,
            zmax=limit,
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": "B − A", "side": "top"}, "thickness": 14, "tickformat": "+.3~g"},
        )
    )
    lay_out_map(
        figure,
        title="Difference of the indirect effects, B − A" if title is None else title,
        xlabel="layer" if _same_depth(difference) else "layer of the model with fewer layers, at equal relative depth",
        columns={column: str(column) for column in range(0, len(difference.layers), 5)},
        rows=labels,
        height=height,
    )
    if show:
        figure.show()
    return figure


def row_labels(difference: FlowDifference) -> list[str]:
    """What each row is: a token role, or a token with the subject's marked; both tokens where they differ."""
    if difference.aligned_by == "roles":
        return [role for role, _ in difference.rows]
    start, end = difference.first.subject_range
    return [
        (display_token(a) if a == b else f"{display_token(a)} | {display_token(b)}") + ("*" if start <= i < end else "")
        for i, (a, b) in enumerate(difference.rows)
    ]


def _layers(pair: tuple[int, int]) -> str:
    return f"layer {pair[0]}" if pair[0] == pair[1] else f"layer {pair[0]} of A, {pair[1]} of B"


def _same_depth(difference: FlowDifference) -> bool:
    return difference.first.scores.shape[1] == difference.second.scores.shape[1]
