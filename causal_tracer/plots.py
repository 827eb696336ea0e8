"""Plotly figures of a HiddenFlow, and files made of them. Knows no model and no torch module."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from causal_tracer.arguments import file_path, instance, real_number
from causal_tracer.errors import ExportError
from causal_tracer.flow import HiddenFlow
from causal_tracer.layers import LayerKind
from causal_tracer.plot_options import check_plot_options

# Steps of equal size in OKLab (Ottosson 2020), lightness 0.985 to 0.30 in one hue: even to the eye, and in order for
# colour-blind readers and on paper, where only lightness is left.
COLOR_SCALES: dict[LayerKind, tuple[str, ...]] = {
    "hidden": ("#fafafa", "#e2d9f5", "#cab8ef", "#b497e7", "#9e75de", "#8952d2", "#6c3bab", "#512a82", "#371d59"),
    "mlp": ("#fafafa", "#d3e3d6", "#adccb2", "#88b590", "#619e6f", "#3a874f", "#276b3b", "#1a502a", "#12361c"),
    "attention": ("#fafafa", "#f3d7d4", "#eab3ae", "#de908a", "#d06c66", "#bf4744", "#9a3231", "#752322", "#501817"),
}
KIND_TITLES: dict[LayerKind, str] = {"hidden": "hidden state", "mlp": "MLP", "attention": "attention"}

_CELL_CHARACTERS = 8
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
    limits: tuple[float, float] | None = None,
    write_top_tokens: bool = False,
) -> go.Figure:
    """Draw a map: tokens down with the subject's marked, layers across, the answer's probability as colour.

    Args:
        result: The map.
        savepdf: Also write it to this PDF file.
        title: None takes one that says what was restored; "" leaves it out.
        xlabel: Label of the layer axis; None takes one that says what a column is.
        show: Open the figure.
        font_family: Font; "" takes Plotly's.
        color: A Plotly colour scale, by name or as a list of colours; None takes the kind's: purple, green or red.
        tick_interval: Every how many layers one is numbered.
        skip_final_labels_portion: Share of the layers at the end that are left without numbers.
        height: Height in pixels; None follows the number of tokens.
        limits: The probabilities at which the colour scale begins and ends; None takes low_score and the highest score.
        write_top_tokens: Write into each cell the most probable token of the restored run, where the result has it.

    Returns:
        The figure. Cells that were not computed are gaps.

    Raises:
        SettingsError: An argument is of another type or out of range.
        ExportError: `savepdf` could not be written.
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
    layers = result.scores.shape[1]
    answer = display_token(result.answer)
    scale = COLOR_SCALES[result.kind] if color is None else color
    heatmap = _heatmap(result, scale if isinstance(scale, str) else list(scale), answer, limits)
    if write_top_tokens:
        heatmap.update(text=_top_tokens(result), texttemplate="%{text}", textfont={"size": 10})
    figure = go.Figure(heatmap)
    labelled = range(0, max(1, layers - math.ceil(layers * skip_final_labels_portion)), max(1, tick_interval))
    lay_out_map(
        figure,
        title=_default_title(result.kind) if title is None else title,
        xlabel=xlabel if xlabel is not None else _layer_axis_title(result),
        columns={layer: str(layer) for layer in labelled},
        rows=token_axis_labels(result),
        height=height,
    )
    figure.update_layout(font_family=font_family or None)
    if savepdf is not None:
        save_figure(figure, savepdf)
    if show:
        figure.show()
    return figure


def lay_out_map(
    figure: go.Figure, *, title: str, xlabel: str, columns: Mapping[int, str], rows: Sequence[str], height: int | None
) -> None:
    """Give a heatmap of a map its axes and room: rows down, layers across, `columns` the numbered ones."""
    figure.update_layout(
        title=escape_markup(title) or None,
        height=height or 110 + 26 * len(rows) + (60 if title else 0),
        margin={"l": 10, "r": 10, "t": 60 if title else 10, "b": 10},
        plot_bgcolor=_GAP_COLOR,
        paper_bgcolor="rgba(0,0,0,0)",
    )
    # Integer axes with tick texts: as categories, repeated tokens would fall together.
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


def token_axis_labels(result: HiddenFlow) -> list[str]:
    """The tokens as an axis shows them, those of the subject with a star."""
    start, end = result.subject_range
    return [
        display_token(token) + ("*" if start <= position < end else "")
        for position, token in enumerate(result.input_tokens)
    ]


def display_token(token: str) -> str:
    """A token's text for people: no outer blanks, and a sign for what would not be seen."""
    shown = token.replace("\r", "").replace("\n", "⏎").replace("\t", "⇥").strip(" ")
    if any(character.isprintable() for character in shown):
        return shown
    return " ".join(f"U+{ord(character):04X}" for character in shown) or "␣"


def save_figure(figure: go.Figure, path: str | PathLike[str], *, scale: float = 2.0) -> Path:
    """Write a figure as HTML, PNG, SVG or PDF, by the file's ending; missing folders are made.

    The HTML holds all it needs and opens from disk with no network. The images are drawn by Kaleido, which needs a
    Chrome or Chromium on the machine.

    Args:
        figure: The figure.
        path: Where to write it.
        scale: Pixels per unit, for PNG.

    Raises:
        SettingsError: An argument is of another type.
        ExportError: The ending is none of these, the file cannot be written, or Kaleido or its Chrome is missing.
    """
    path = file_path(path)
    instance("figure", figure, go.Figure)
    scale = real_number("scale", scale)
    ending = path.suffix.lower().removeprefix(".")
    if ending not in ("html", "png", "svg", "pdf"):
        raise ExportError(f"{path.name!r} ends in {path.suffix!r}. Figures are written as .html, .png, .svg or .pdf.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if ending == "html":
            figure.write_html(path, include_plotlyjs=True)
            return path
    except (OSError, ValueError) as error:
        raise ExportError(f"{str(path)!r} could not be written: {error}") from error
    if find_spec("kaleido") is None:
        raise ExportError(
            f"Writing {path.name!r} needs Kaleido, and it is not installed: pip install kaleido. "
            "An .html file needs nothing more."
        )
    from choreographer.errors import BrowserFailedError, ChromeNotFoundError
    from kaleido.errors import ChromeNotFoundError as KaleidoChromeNotFoundError

    try:
        figure.write_image(path, format=ending, scale=scale)
    except (OSError, ValueError) as error:
        raise ExportError(f"{str(path)!r} could not be written: {error}") from error
    except (ChromeNotFoundError, KaleidoChromeNotFoundError, BrowserFailedError, RuntimeError) as error:
        raise ExportError(
            f"Writing {path.name!r} needs Chrome or Chromium, and Kaleido could not start one ({error}). Install one, "
            "or run plotly_get_chrome, or write an .html file."
        ) from error
    return path


def shared_limits(results: Sequence[HiddenFlow]) -> tuple[float, float]:
    """One colour scale for several maps: from the lowest low_score to the highest score of any."""
    limits = [_limits(result) for result in results]
    return min(low for low, _ in limits), max(high for _, high in limits)


def _limits(result: HiddenFlow) -> tuple[float, float]:
    known = [score for row in result.scores.tolist() for score in row if not math.isnan(score)]
    low = result.low_score
    return low, max([*known, low + 1e-6]) if known else max(result.high_score, low + 1e-6)


def _heatmap(result: HiddenFlow, color: str | list[str], answer: str, limits: tuple[float, float] | None) -> go.Heatmap:
    scores = result.scores.tolist()
    low, high = _limits(result) if limits is None else limits
    return go.Heatmap(
        z=[[None if math.isnan(score) else score for score in row] for row in scores],
        customdata=_hover_data(result),
        hovertemplate=(
            "<b>%{customdata[0]}</b>, layer %{x}%{customdata[1]}<br>"
            f"P({escape_markup(answer).replace('{', '&#123;')}) = %{{z:.4f}}<br>"
            "indirect effect %{customdata[2]}<extra></extra>"
        ),
        hoverongaps=False,
        colorscale=color,
        zmin=low,
        zmax=high,
        xgap=1,
        ygap=1,
        colorbar={
            "title": {"text": f"P({escape_markup(answer)})", "side": "top"},
            "thickness": 14,
            "tickformat": ".3~g",
        },
    )


def _top_tokens(result: HiddenFlow) -> list[list[str]]:
    """For each cell, the most probable token of the restored run, cut to what a cell has room for."""
    tops = result.top_tokens
    rows, columns = result.scores.shape
    if tops is None:
        return [[""] * columns for _ in range(rows)]
    return [
        [
            escape_markup(_shortened(display_token(cell[0].text))) if (cell := tops.cells(row, column)) else ""
            for column in range(columns)
        ]
        for row in range(rows)
    ]


def _shortened(text: str) -> str:
    return text if len(text) <= _CELL_CHARACTERS else text[: _CELL_CHARACTERS - 1] + "…"


def _hover_data(result: HiddenFlow) -> list[list[tuple[str, str, str]]]:
    """For each cell: the token, the layers restored with it, and the indirect effect with its standard error."""
    effects, errors = result.indirect_effect.tolist(), result.standard_error.tolist()
    layers = result.scores.shape[1]
    window = result.settings.window
    rows = []
    for position, token in enumerate(result.input_tokens):
        cells = []
        for layer in range(layers):
            first, last = max(0, layer - window // 2), min(layers, layer - (-window // 2)) - 1
            restored = f" (restored {first}–{last})" if window > 1 else ""
            error = errors[position][layer]
            spread = "" if math.isnan(error) else f" ± {error:.4f} (s.e.)"
            cells.append((escape_markup(display_token(token)), restored, f"{effects[position][layer]:+.4f}{spread}"))
        rows.append(cells)
    return rows


def _default_title(kind: LayerKind) -> str:
    return f"Impact of restoring {KIND_TITLES[kind]} after corrupted input"


def _layer_axis_title(result: HiddenFlow) -> str:
    name = KIND_TITLES[result.kind]
    window = result.settings.window
    if window == 1:
        return f"single restored {name} layer"
    return f"centre of interval of {window} restored {name} layers"


def escape_markup(text: Any) -> str:
    """Plotly reads a small HTML in labels; tokens such as "<bos>" must stand as they are."""
    return html.escape(str(text), quote=False)
