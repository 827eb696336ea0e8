"""The Plotly heatmap of a `HiddenFlow`, and writing figures to files. Uses only the result, never a model."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import plotly.graph_objects as go

from causal_tracer.plots.options import check_plot_options
from causal_tracer.plots.saving import save_figure
from causal_tracer.plots.scale import ColorLimits, color_limits, heatmap_colors
from causal_tracer.request.sites import SITES
from causal_tracer.results.analysis import effects
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.labels import (
    axis_labels,
    effect_label,
    layer_axis_title,
    map_title,
    metric_label,
    metric_of,
    patched_layers,
    patched_word,
    row_names,
)
from causal_tracer.results.labels import display_token as display_token

_CELL_CHARACTERS = 8
# Characters that fit in a line of a title, and in one above a colour bar without narrowing the map.
_TITLE_CHARACTERS, _BAR_CHARACTERS = 72, 20
_GAP_COLOR = "rgba(128,128,128,0.18)"


def plot_hidden_flow_heatmap(
    result: HiddenFlow,
    savepdf: str | PathLike[str] | None = None,
    title: str | None = None,
    xlabel: str | None = None,
    show: bool = True,
    font_family: str = "",
    color: str | Sequence[str] | None = None,
    tick_interval: int = 5,
    skip_final_labels_portion: float = 0.1,
    *,
    height: int | None = None,
    limits: ColorLimits | tuple[float, float] | None = None,
    write_top_tokens: bool = False,
) -> go.Figure:
    """Draw a map as a heatmap: tokens or heads as rows, layers as columns, the metric as colour.

    The subject's tokens have a star. The strongest colour is the metric's best value, or in direction "corrupt" its
    worst. White is the patched run's value. Sand-coloured cells change it the wrong way. Cells not computed are gaps.

    Args:
        result: The map.
        savepdf: Also write the figure to this PDF file.
        title: The title; None takes one that describes the map, "" leaves it out.
        xlabel: Title of the layer axis; None takes one that describes a column.
        show: Open the figure.
        font_family: Font; "" takes Plotly's default.
        color: A Plotly colour scale, by name or as a list of colours; None takes the one of the map's kind.
        tick_interval: Number every n-th layer.
        skip_final_labels_portion: The share of the layers, at the end, that get no number.
        height: Height in pixels; None follows the number of rows.
        limits: The ends of the colour scale, as values of the metric; None covers all values of this map.
        write_top_tokens: Write each cell's most probable token into the cell, if the result has `top_tokens`.

    Raises:
        SettingsError, ExportError: An argument is out of range, or `savepdf` could not be written.
    """
    check_plot_options(
        result,
        texts={"title": title, "xlabel": xlabel, "font_family": font_family},
        color=color,
        tick_interval=tick_interval,
        unlabelled_share=skip_final_labels_portion,
        height=height,
        limits=limits,
        write_top_tokens=write_top_tokens,
    )
    figure = go.Figure(_heatmap(result, SITES[result.kind].color_scale if color is None else color, limits))
    if write_top_tokens:
        figure.update_traces(text=_top_tokens(result), texttemplate="%{text}", textfont={"size": 10})
    lay_out_map(
        figure,
        title=map_title(result) if title is None else title,
        xlabel=xlabel if xlabel is not None else layer_axis_title(result),
        columns=numbered_layers(result.scores.shape[1], skip_final_labels_portion, tick_interval),
        rows=axis_labels(result),
        height=height,
    )
    figure.update_layout(font_family=font_family or None)
    return save_and_show(figure, savepdf, show)


def save_and_show(figure: go.Figure, savepdf: str | PathLike[str] | None, show: bool) -> go.Figure:
    """Save a figure as PDF if `savepdf` is given, open it if `show` is true, and return it."""
    if savepdf is not None:
        save_figure(figure, savepdf)
    if show:
        figure.show()
    return figure


def numbered_layers(layers: int, unlabelled_share: float, tick_interval: int) -> dict[int, str]:
    """Return the label of every n-th layer (n = `tick_interval`), without a share of the layers at the end."""
    labelled = range(0, max(1, layers - math.ceil(layers * unlabelled_share)), max(1, tick_interval))
    return {layer: str(layer) for layer in labelled}


def lay_out_map(
    figure: go.Figure, *, title: str, xlabel: str, columns: Mapping[int, str], rows: Sequence[str], height: int | None
) -> None:
    """Set the title, the axes and the size of a heatmap.

    Args:
        figure: The figure with the heatmap.
        title: The title; "" leaves it out.
        xlabel: Title of the layer axis.
        columns: The labels of the numbered columns, by column.
        rows: The labels of all rows.
        height: Height in pixels; None follows the number of rows.
    """
    lines = wrapped(title, _TITLE_CHARACTERS)
    above = 40 + 20 * (lines.count("<br>") + 1) if lines else 10
    figure.update_layout(
        title=lines or None,
        height=height or 100 + 26 * len(rows) + above,
        margin={"l": 10, "r": 10, "t": above, "b": 10},
        plot_bgcolor=_GAP_COLOR,
        paper_bgcolor="rgba(0,0,0,0)",
    )
    # Integer axes with tick texts: as categories, repeated tokens would share a row.
    figure.update_xaxes(
        title=escape_markup(xlabel),
        tickvals=list(columns),
        ticktext=list(columns.values()),
        showgrid=False,
        zeroline=False,
        automargin=True,
    )
    figure.update_yaxes(
        autorange="reversed",
        tickvals=list(range(len(rows))),
        ticktext=[escape_markup(label) for label in rows],
        showgrid=False,
        zeroline=False,
        automargin=True,
    )


def shared_limits(results: Sequence[HiddenFlow]) -> ColorLimits:
    """Return one colour scale for several maps.

    Raises:
        SettingsError: The maps differ in metric or direction.
    """
    return color_limits(*results)


def _heatmap(
    result: HiddenFlow, color: str | Sequence[str], limits: ColorLimits | tuple[float, float] | None
) -> go.Heatmap:
    heatmap = go.Heatmap(
        customdata=_hover_data(result),
        hovertemplate=(
            "<b>%{customdata[0]}</b>, layer %{x}%{customdata[1]}<br>"
            f"{hover_text(metric_label(result))} = %{{customdata[3]}}<br>"
            f"{effect_label(result)} %{{customdata[2]}}<extra></extra>"
        ),
        hoverongaps=False,
        xgap=1,
        ygap=1,
        **heatmap_colors(result, color, limits),
    )
    heatmap.update(colorbar={"title": color_bar_title(metric_label(result))})
    return heatmap


def _top_tokens(result: HiddenFlow) -> list[list[str]]:
    """Return the text of each cell's top token in the restored run, cut to the width of a cell."""
    tops = result.top_tokens
    rows, columns = result.scores.shape
    if tops is None:
        return [[""] * columns for _ in range(rows)]
    return [
        [cell_text(cell[0].text) if (cell := tops.cells(row, column)) else "" for column in range(columns)]
        for row in range(rows)
    ]


def cell_text(token: str) -> str:
    """Return a token's text for a cell of a heatmap, cut to the width of a cell."""
    text = display_token(token)
    return escape_markup(text if len(text) <= _CELL_CHARACTERS else text[: _CELL_CHARACTERS - 1] + "…")


def _hover_data(result: HiddenFlow) -> list[list[tuple[str, str, str, str]]]:
    """Return the hover texts of each cell: row name, window of layers, effect with its standard error, score."""
    metric, done = metric_of(result), patched_word(result)
    scores, changes, errors = result.scores.tolist(), effects(result).tolist(), result.standard_error.tolist()
    rows = []
    for row, name in enumerate(row_names(result)):
        cells = []
        for layer, score in enumerate(scores[row]):
            first, last = patched_layers(result, layer)
            window = f" ({done} {first}–{last})" if result.settings.window > 1 else ""
            error = errors[row][layer]
            spread = "" if math.isnan(error) else f" ± {metric.format_value(error, more=1)} (s.e.)"
            effect = metric.format_value(changes[row][layer], sign=True, more=1) + spread
            cells.append((escape_markup(name), window, effect, metric.format_value(score, more=1)))
        rows.append(cells)
    return rows


def color_bar_title(label: str) -> dict[str, str]:
    """Return the title of a colour bar, placed above it and wrapped to keep it narrow."""
    return {"text": wrapped(label, _BAR_CHARACTERS), "side": "top"}


def hover_text(label: str) -> str:
    """Escape a text for a hover template, in which Plotly would take braces for a placeholder."""
    return escape_markup(label).replace("{", "&#123;")


def wrapped(text: str, width: int) -> str:
    """Return a text wrapped at `width` characters, escaped, with Plotly's line breaks."""
    return "<br>".join(escape_markup(line) for line in textwrap.wrap(text, width, break_long_words=False))


def escape_markup(text: Any) -> str:
    """Escape a text for a Plotly label: Plotly reads simple HTML there, and tokens such as "<bos>" look like it."""
    return html.escape(str(text), quote=False)
