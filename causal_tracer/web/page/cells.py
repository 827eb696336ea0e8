"""Maps as HTML tables, for the keyboard and screen readers; a table's component also receives clicks on the figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from causal_tracer.metrics.descriptions import MetricDescription
from causal_tracer.plots.difference import row_labels
from causal_tracer.request.sites import SITES
from causal_tracer.results.comparison import FlowDifference
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.labels import axis_labels, effect_label, map_title, metric_label, metric_of


def table_html(flow: HiddenFlow, plot_id: str) -> str:
    """Return the table of a result, closed at first; `static/click_bridge.js` reads `plot_id` and the cells' places."""
    metric = metric_of(flow)
    rows = [
        (label, [_button(metric, row, column, score) for column, score in enumerate(scores)])
        for row, (label, scores) in enumerate(zip(axis_labels(flow), flow.scores.tolist(), strict=True))
    ]
    layers = [str(layer) for layer in range(flow.scores.shape[1])]
    caption = f"{metric_label(flow)} for each token and layer. {map_title(flow)}"
    return (
        f'<div data-plot="{escape(plot_id)}" hidden></div>'
        f'<details class="ct-table"><summary>The map of {SITES[flow.kind].label} as a table</summary>'
        '<p class="ct-hint">Arrow keys move, Enter shows a cell in detail.</p>'
        f'<div class="ct-scroll">{_table(caption, ["token", *layers], rows)}</div></details>'
    )


def difference_table_html(difference: FlowDifference) -> str:
    """Return the table of a difference, closed at first. Its cells are not buttons: they have no details."""
    metric = metric_of(difference.first)
    row = difference.aligned_by.removesuffix("s")
    column = "layer" if all(a == b for a, b in difference.layers) else "layer of A | of B"
    rows = [
        (label, [metric.format_value(value, sign=True) for value in values])
        for label, values in zip(row_labels(difference), difference.values.tolist(), strict=True)
    ]
    layers = [str(a) if a == b else f"{a} | {b}" for a, b in difference.layers]
    caption = (
        f"Difference of the {effect_label(difference.first)}s, B − A, for each {row} and {column}: {difference.label}"
    )
    return (
        '<details class="ct-table"><summary>The difference as a table</summary>'
        # Focusable, so that arrow keys scroll it.
        '<div class="ct-scroll" tabindex="0" role="region" aria-label="The difference as a table">'
        f"{_table(caption, [row, *layers], rows)}</div></details>"
    )


def _table(caption: str, header: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return a table; the cells of its rows are HTML."""
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row" dir="auto">{escape(label)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for label, cells in rows
    )
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _button(metric: MetricDescription, row: int, column: int, score: float) -> str:
    if math.isnan(score):
        return "–"
    # One stop for the Tab key; arrows do the rest.
    stop = 0 if (row, column) == (0, 0) else -1
    return (
        f'<button type="button" tabindex="{stop}" data-row="{row}" data-column="{column}">'
        f"{metric.format_value(score)}</button>"
    )
