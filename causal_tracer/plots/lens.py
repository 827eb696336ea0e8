"""The Plotly heatmap of a logit lens. Uses only the result, never a model."""

from __future__ import annotations

from typing import Literal, cast, get_args

import plotly.graph_objects as go

from causal_tracer.arguments import choice, flag, instance, optional, text, whole_number
from causal_tracer.plots.heatmap import (
    cell_text,
    color_bar_title,
    escape_markup,
    lay_out_map,
    numbered_layers,
    save_and_show,
)
from causal_tracer.plots.pages import LEAST_WIDTH
from causal_tracer.request.sites import SITES
from causal_tracer.results.labels import bidi_isolated, display_token, probability_label
from causal_tracer.results.lens import LogitLens

Shade = Literal["top", "answer", "entropy"]
"""The value that colours a lens's cells: the top token's probability, the answer's probability, or the entropy."""

# Pixels: the width of a cell with its text, and the width of labels and colour bar.
_CELL_WIDTH, _BESIDE = 48, 190
_FONT = 10


def plot_lens(
    lens: LogitLens,
    shade: Shade = "top",
    *,
    title: str | None = None,
    show: bool = True,
    height: int | None = None,
) -> go.Figure:
    """Draw a logit lens: tokens as rows, layers as columns, and the most probable next token in each cell.

    Args:
        lens: The lens.
        shade: The value shown as colour: "top" (the top token's probability), "answer" (the answer's probability) or
            "entropy".
        title: The title; None takes one that names the run, "" leaves it out.
        show: Open the figure.
        height: Height in pixels; None follows the number of tokens.

    Raises:
        SettingsError: An argument has the wrong type or an unknown value.
    """
    instance("lens", lens, LogitLens)
    optional(text)("title", title)
    if height is not None:
        whole_number("height", height, least=10)
    shade = cast(Shade, choice("shade", shade, get_args(Shade)))
    values, label = {
        "top": (lens.top_probabilities[..., 0], "P(top token)"),
        "answer": (lens.answer_probabilities, probability_label(lens.answer)),
        "entropy": (lens.entropies, "entropy (nats)"),
    }[shade]
    tokens, layers = lens.entropies.shape
    best = [[lens.top(token, layer) for layer in range(layers)] for token in range(tokens)]
    figure = go.Figure(
        go.Heatmap(
            z=values.tolist(),
            zmin=0,
            zmax=max(1.0, float(lens.entropies.max())) if shade == "entropy" else 1,
            colorscale=SITES["hidden"].color_scale,
            colorbar={"title": color_bar_title(label), "thickness": 14},
            text=[[cell_text(cell[0].text) for cell in row] for row in best],
            # No font colour is set, so that Plotly writes dark on light cells and light on dark ones.
            texttemplate="%{text}",
            textfont={"size": _FONT},
            customdata=_hover_data(lens),
            hovertemplate="<b>%{customdata[0]}</b>, layer %{x}<br>%{customdata[1]}<extra></extra>",
            xgap=1,
            ygap=1,
        )
    )
    lay_out_map(
        figure,
        title=f"Logit lens of the {lens.run}" if title is None else title,
        xlabel="layer",
        columns=numbered_layers(layers, 0, 1 if layers <= 12 else 5),
        rows=[display_token(token) for token in lens.input_tokens],
        height=height,
    )
    figure.update_layout(meta={LEAST_WIDTH: _CELL_WIDTH * layers + _BESIDE})
    return save_and_show(figure, None, flag("show", show))


def _hover_data(lens: LogitLens) -> list[list[tuple[str, str]]]:
    """Return the hover texts of each cell: its token, and lines with the top tokens, the answer and the entropy."""
    tokens, layers = lens.entropies.shape
    return [
        [
            (escape_markup(display_token(lens.input_tokens[token])), "<br>".join(_lines(lens, token, layer)))
            for layer in range(layers)
        ]
        for token in range(tokens)
    ]


def _lines(lens: LogitLens, token: int, layer: int) -> list[str]:
    place = token, layer
    answer = f"{bidi_isolated(display_token(lens.answer))}: {float(lens.answer_probabilities[place]):.4g}"
    return [
        *(
            f"{escape_markup(bidi_isolated(display_token(best.text)))} {best.probability:.4g}"
            for best in lens.top(*place)
        ),
        f"{escape_markup(answer)}, rank {int(lens.answer_ranks[place])}",
        f"entropy {float(lens.entropies[place]):.3g} nats",
    ]
