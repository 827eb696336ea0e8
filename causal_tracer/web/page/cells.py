"""Maps as tables, for the keyboard and screen readers; a map's component also hears clicks on the plotted one."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator

from causal_tracer.metrics.descriptions import MetricDescription
from causal_tracer.plots.difference import row_labels
from causal_tracer.results.comparison import FlowDifference
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.words import KIND_NAMES, effect_label, map_title, metric_label, metric_of, token_axis_labels


def table_html(flow: HiddenFlow, plot_id: str) -> str:
    """The table of a result, closed at first; `static/click_bridge.js` reads `plot_id` and the cells' places."""
    layers = int(flow.scores.shape[1])
    head = "".join(f'<th scope="col">{layer}</th>' for layer in range(layers))
    return (
        f'<div data-plot="{html.escape(plot_id)}" hidden></div>'
        f'<details class="ct-table"><summary>The map of {KIND_NAMES[flow.kind]} as a table</summary>'
        '<p class="ct-hint">Arrow keys move, Enter shows a cell in detail.</p>'
        '<div class="ct-scroll"><table>'
        f"<caption>{html.escape(f'{metric_label(flow)} for each token and layer. {map_title(flow)}')}</caption>"
        f'<thead><tr><th scope="col">token</th>{head}</tr></thead>'
        f"<tbody>{''.join(_rows(flow))}</tbody></table></div></details>"
    )


def difference_table_html(difference: FlowDifference) -> str:
    """The table of a difference, closed at first. Its cells are no buttons: there is nothing more to say of them."""
    row = "role" if difference.aligned_by == "roles" else "token"
    column = "layer" if all(a == b for a, b in difference.layers) else "layer of A | of B"
    head = "".join(f'<th scope="col">{a if a == b else f"{a} | {b}"}</th>' for a, b in difference.layers)
    metric = metric_of(difference.first)
    rows = "".join(
        f'<tr><th scope="row" dir="auto">{html.escape(label)}</th>'
        f"{''.join(_difference(metric, value) for value in values)}</tr>"
        for label, values in zip(row_labels(difference), difference.values.tolist(), strict=True)
    )
    caption = (
        f"Difference of the {effect_label(difference.first)}s, B − A, for each {row} and {column}: {difference.label}"
    )
    return (
        '<details class="ct-table"><summary>The difference as a table</summary>'
        # It can be focused, so that arrow keys scroll it.
        '<div class="ct-scroll" tabindex="0" role="region" aria-label="The difference as a table">'
        f"<table><caption>{html.escape(caption)}</caption>"
        f'<thead><tr><th scope="col">{row}</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )


def _difference(metric: MetricDescription, value: float) -> str:
    return f"<td>{metric.written(value, sign=True)}</td>"


def _rows(flow: HiddenFlow) -> Iterator[str]:
    metric = metric_of(flow)
    for row, (label, scores) in enumerate(zip(token_axis_labels(flow), flow.scores.tolist(), strict=True)):
        cells = "".join(_cell(metric, row, column, score) for column, score in enumerate(scores))
        yield f'<tr><th scope="row" dir="auto">{html.escape(label)}</th>{cells}</tr>'


def _cell(metric: MetricDescription, row: int, column: int, score: float) -> str:
    if math.isnan(score):
        return "<td>–</td>"
    # One stop for the Tab key; arrows do the rest.
    stop = 0 if (row, column) == (0, 0) else -1
    return (
        f'<td><button type="button" tabindex="{stop}" data-row="{row}" data-column="{column}">'
        f"{metric.written(score)}</button></td>"
    )
