"""A logit lens as HTML: a grid for mouse, touch and keyboard (`static/lens_grid.js`), and one cell in detail."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from causal_tracer.results.labels import bidi_isolated, display_token, probability_label
from causal_tracer.results.lens import LogitLens
from causal_tracer.results.top_tokens import Tokens

SHADES = (("top token's probability", "top"), ("answer's probability", "answer"), ("entropy", "entropy"))
"""The choices of the cells' colour, as label and value. `static/lens.css` reads the value."""

NO_LENS_CELL = '<p class="ct-hint">Choose a cell to read it in detail: click it, or move with the arrow keys.</p>'

CellClass = Callable[[int, int], str]
"""Returns the CSS classes of the cell at a token and a layer."""


def grid_html(
    lens: LogitLens, name: str, *, title: str = "", most: float | None = None, css: CellClass = lambda *_: ""
) -> str:
    """Return a lens as a grid: tokens down, layers across, the most probable next token in each cell.

    Args:
        lens: The lens.
        name: The grid's name, which the script reports with a chosen cell. Cells of the grid "source" can be dragged.
        title: The heading, which the prompt follows; empty for no heading.
        most: The entropy that gets the strongest colour; None takes that of `most_entropy`.
        css: Returns the CSS classes of a cell.
    """
    layers = range(lens.entropies.shape[1])
    most = most or most_entropy(lens)
    head = "".join(f'<th scope="col">{layer}</th>' for layer in layers)
    rows = "".join(
        f'<tr><th scope="row" dir="auto" title="{_quoted(token)}">{escape(display_token(token))}</th>'
        f"{''.join(_cell(lens, name, (position, layer), most, css) for layer in layers)}</tr>"
        for position, token in enumerate(lens.input_tokens)
    )
    heading = f'<p class="ct-prompt" dir="auto"><b>{escape(title)}</b> {escape(lens.prompt)}</p>' if title else ""
    label = escape(f"{title or 'Logit lens'}: tokens down, layers across. Prompt: {lens.prompt}")
    return (
        f'{heading}<div class="ct-lens-scroll"><table class="ct-lens" role="grid" data-lens="{escape(name)}" '
        f'aria-label="{label}" style="--layers:{len(layers)}"><thead><tr><th scope="col">layer</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def legend_html(*lenses: LogitLens) -> str:
    """Return the colour scale for each of `SHADES`; `static/lens.css` shows that of the chosen one."""
    scales = {
        "top": ("P(top token)", "0", "1"),
        "answer": (probability_label(lenses[0].answer), "0", "1"),
        "entropy": ("entropy", "0", f"{most_entropy(*lenses):.1f} nats"),
    }
    return "".join(
        f'<p class="ct-lens-legend" data-for="{shade}">{escape(label)} <span>{low}</span><i></i><span>{high}</span></p>'
        for shade, (label, low, high) in scales.items()
    )


def most_entropy(*lenses: LogitLens) -> float:
    """Return the entropy that gets the strongest colour: the highest of these lenses, at least 1 nat."""
    return max(1.0, *(float(lens.entropies.max()) for lens in lenses))


def lens_cell_html(lens: LogitLens, token: int, layer: int, before: LogitLens | None = None) -> str:
    """Return a cell in detail: top tokens, the answer's probability and rank, entropy. User's text is escaped.

    Args:
        lens: The lens.
        token: The cell's token.
        layer: Its layer.
        before: The lens of the base run, if `lens` is of a patched run; its cell is shown too.

    Raises:
        SettingsError: The lens has no such cell.
    """
    runs = [("Top tokens", lens)] if before is None else [("Patched run", lens), ("Base run", before)]
    lists = "".join(_run_html(name, each, each.top(token, layer), (token, layer)) for name, each in runs)
    return (
        '<div class="ct-detail" role="region" tabindex="0" aria-live="polite" aria-label="The chosen cell">'
        f"<h3>{_quoted(lens.input_tokens[token])}, layer {layer}</h3>"
        f'<div class="ct-columns">{lists}</div></div>'
    )


def _run_html(name: str, lens: LogitLens, top: Tokens, place: tuple[int, int]) -> str:
    listed = "".join(f"<li><bdi>{escape(display_token(each.text))}</bdi> {each.probability:.4f}</li>" for each in top)
    return (
        f"<section><h4>{name}</h4><ol>{listed}</ol>"
        f'<p class="ct-made">{escape(probability_label(lens.answer))} = {float(lens.answer_probabilities[place]):.4g}, '
        f"rank {int(lens.answer_ranks[place])}<br>entropy {float(lens.entropies[place]):.3g} nats</p></section>"
    )


def _cell(lens: LogitLens, name: str, place: tuple[int, int], most: float, css: CellClass) -> str:
    text = lens.texts[int(lens.top_ids[place][0])]
    top, answer = float(lens.top_probabilities[place][0]), float(lens.answer_probabilities[place])
    shades = f"--t:{top:.0%};--a:{answer:.0%};--e:{float(lens.entropies[place]) / most:.0%}"
    classes = css(*place)
    return (
        # One stop for the Tab key; arrows do the rest.
        f'<td tabindex="{0 if place == (0, 0) else -1}" style="{shades}" title="{_quoted(text)} {top:.3f}"'
        f"{f' class={chr(34)}{classes}{chr(34)}' if classes else ''}"
        f"{' draggable=true' if name == 'source' else ''}><bdi>{escape(display_token(text))}</bdi></td>"
    )


def _quoted(token: str) -> str:
    return f"“{escape(bidi_isolated(display_token(token)))}”"
