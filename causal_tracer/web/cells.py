"""A map as a table, for the keyboard and screen readers; its component also hears clicks on the plotted map."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator

from causal_tracer.flow import HiddenFlow
from causal_tracer.plots import token_axis_labels


def table_html(flow: HiddenFlow, plot_id: str) -> str:
    """The table of a result, closed at first; `static/click_bridge.js` reads `plot_id` and the cells' places."""
    layers = int(flow.scores.shape[1])
    head = "".join(f'<th scope="col">{layer}</th>' for layer in range(layers))
    return (
        f'<div data-plot="{html.escape(plot_id)}" hidden></div>'
        '<details class="ct-table"><summary>The map as a table</summary>'
        '<p class="ct-hint">Arrow keys move, Enter shows a cell in detail.</p>'
        '<div class="ct-scroll"><table>'
        "<caption>P(answer) for each token and layer restored</caption>"
        f'<thead><tr><th scope="col">token</th>{head}</tr></thead>'
        f"<tbody>{''.join(_rows(flow))}</tbody></table></div></details>"
    )


def _rows(flow: HiddenFlow) -> Iterator[str]:
    for row, (label, scores) in enumerate(zip(token_axis_labels(flow), flow.scores.tolist(), strict=True)):
        cells = "".join(_cell(row, column, score) for column, score in enumerate(scores))
        yield f'<tr><th scope="row" dir="auto">{html.escape(label)}</th>{cells}</tr>'


def _cell(row: int, column: int, score: float) -> str:
    if math.isnan(score):
        return "<td>–</td>"
    # One stop for the Tab key; arrows do the rest.
    stop = 0 if (row, column) == (0, 0) else -1
    return (
        f'<td><button type="button" tabindex="{stop}" data-row="{row}" data-column="{column}">{score:.3f}</button></td>'
    )
