"""A map as one slide of a talk: the prompt above the map, its settings and a link below it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from unicodedata import east_asian_width

import plotly.graph_objects as go

from causal_tracer.arguments import text
from causal_tracer.errors import SettingsError
from causal_tracer.plots.heatmap import escape_markup, plot_hidden_flow_heatmap
from causal_tracer.prompts.chat import ChatText
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.labels import display_token, map_title, metric_label, metric_of, runs_line
from causal_tracer.results.settings_line import settings_line

SLIDE_SIZE = (1920, 1080)
"""Width and height in pixels, 16:9."""

_ABOVE, _BELOW, _BESIDE = 175, 235, 60
_AXIS = 90
_TITLE, _WORDS, _LABELS, _SMALL = 40, 26, 24, 19
# The number of characters that fit in a line of a slide at these font sizes, and the number of lines that fit.
_TITLE_WIDTH, _WORDS_WIDTH, _SMALL_WIDTH, _LINK_WIDTH = 84, 135, 165, 135
_TITLE_LINES, _WORDS_LINES, _WARNING_LINES, _RECIPE_LINES, _LINK_LINES = 2, 2, 2, 2, 3
# Lines break between words, so that some columns of a line stay empty.
_SPARE = 10
_LINK_TOO_LONG = "The result's link is too long for a slide."


def slide_figure(result: HiddenFlow, *, link: str = "", model: str = "", warnings: Sequence[str] = ()) -> go.Figure:
    """Draw a map as a slide of `SLIDE_SIZE`. `save_figure` writes it as PNG, SVG or PDF.

    Args:
        result: The map.
        link: The result's URL, which is written below the map.
        model: The model's title; "" takes the model's name.
        warnings: Reasons not to rely on the map, which are written in bold below it.

    Raises:
        SettingsError: An argument has the wrong type.
    """
    link, model = text("link", link), text("model", model)
    width, height = SLIDE_SIZE
    layers, rows = int(result.scores.shape[1]), int(result.scores.shape[0])
    figure = plot_hidden_flow_heatmap(
        result,
        title="",
        show=False,
        height=height,
        tick_interval=-(-layers // 18),
        skip_final_labels_portion=0.0,
    )
    room = height - _ABOVE - _BELOW - _AXIS
    figure.update_layout(
        width=width,
        margin={"l": _BESIDE, "r": _BESIDE, "t": _ABOVE, "b": _BELOW},
        paper_bgcolor="white",
        font={"size": _LABELS, "color": "#1b1b1b"},
    )
    # Many rows get smaller labels, so that none is left out.
    figure.update_yaxes(tickfont={"size": min(_LABELS, max(6, int(0.85 * room / rows)))})
    figure.update_traces(colorbar={"title": {"font": {"size": _LABELS}}, "thickness": 26})
    # The mark keeps the answer to the right of a prompt that is written from right to left.
    answer = f"\N{LEFT-TO-RIGHT MARK} → {display_token(result.answer)}"
    room_for_prompt = _TITLE_LINES * (_TITLE_WIDTH - _SPARE) - _columns(answer)
    title = _lines(_shortened(_prompt(result), room_for_prompt) + answer, _TITLE_WIDTH, _TITLE_LINES)
    _write(figure, height - 24, "top", _TITLE, title)
    below_title = height - 32 - 1.3 * _TITLE * len(title)
    _write(figure, below_title, "top", _WORDS, _lines(_measured(result), _WORDS_WIDTH, _WORDS_LINES))
    made = _lines(_made(result, model), _SMALL_WIDTH, _RECIPE_LINES)
    doubts = [f"<b>{line}</b>" for line in _lines(" ".join(warnings), _SMALL_WIDTH, _WARNING_LINES)]
    _write(figure, 16, "bottom", _SMALL, [*doubts, *made, *_link_lines(link)])
    return figure


def _prompt(result: HiddenFlow) -> str:
    """Return the prompt's text, or the last message of a conversation."""
    try:
        prompt = result.stored_request().request.prompt
    except SettingsError:
        return result.prompt
    return str(prompt.messages[-1]["content"]) if isinstance(prompt, ChatText) else result.prompt


def _measured(result: HiddenFlow) -> str:
    what = f"{map_title(result)}: {metric_label(result)}"
    return f"Subject “{result.subject}” · {what} ({runs_line(result, metric_of(result).format_value)})"


def _made(result: HiddenFlow, model: str) -> str:
    version = result.settings.versions.get("causal_tracer")
    return settings_line(result, model) + (f" · causal-tracer {version}" if version else "")


def _columns(words: str) -> int:
    """Return the width of a text in columns. Wide characters (Chinese, Japanese, Korean) take two."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in words)


def _shortened(words: str, columns: int) -> str:
    """Return a text of at most `columns` columns: a longer one loses its middle."""
    if _columns(words) <= columns:
        return words
    kept = max(1, int(len(words) * columns / _columns(words) / 2) - 2)
    return f"{words[:kept]} … {words[-kept:]}"


def _lines(words: str, columns: int, most: int) -> list[str]:
    """Return a text as at most `most` lines of `columns` columns, escaped for Plotly."""
    width = int(columns * max(1, len(words)) / max(1, _columns(words)))
    lines = textwrap.wrap(words, width, max_lines=most, placeholder=" …")
    return [escape_markup(line) for line in lines]


def _link_lines(link: str) -> list[str]:
    """Return a URL as lines, or a notice if it is too long."""
    shown = link if len(link) <= _LINK_LINES * _LINK_WIDTH else _LINK_TOO_LONG
    return [escape_markup(shown[start : start + _LINK_WIDTH]) for start in range(0, len(shown), _LINK_WIDTH)]


def _write(figure: go.Figure, height: float, anchor: str, size: int, lines: Iterable[str]) -> None:
    """Add lines of text to a slide.

    Args:
        figure: The slide.
        height: The height above the slide's lower edge, in pixels.
        anchor: The side of the text that is at this height: "top" or "bottom".
        size: Font size.
        lines: The lines, escaped.
    """
    figure.add_annotation(
        text="<br>".join(lines),
        font={"size": size},
        align="left",
        showarrow=False,
        xref="paper",
        x=0,
        xanchor="left",
        xshift=0,
        yref="paper",
        y=0,
        yanchor=anchor,
        yshift=height - _BELOW,
    )
