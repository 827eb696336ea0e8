"""One cell of a map in detail, as HTML: the noise samples, the indirect effect, and what the model says there."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from causal_tracer.plots import display_token
from causal_tracer.top_tokens import TokenProbability
from causal_tracer.web.cell_details import CellDetails

NO_CELL = (
    '<p class="ct-hint">Click a cell for its noise samples, its indirect effect and what the model says there. '
    "By keyboard: the table below.</p>"
)

_WIDTH, _LEFT, _RIGHT = 600.0, 10.0, 590.0


def detail_html(cell: CellDetails) -> str:
    """The details of a cell. All that a user typed is escaped."""
    first, last = cell.restored_layers
    layers = f"layer {first}" if first == last else f"layer {cell.layer}, with layers {first} to {last} restored"
    title = f"“{html.escape(display_token(cell.token))}”, {layers}"
    if cell.score is None:
        return f'<div class="ct-detail"><h3>{title}</h3><p>This cell was not computed.</p></div>'
    return (
        f'<div class="ct-detail" role="region" aria-live="polite" aria-label="The chosen cell"><h3>{title}</h3>'
        f"<p>{_effect_words(cell, cell.score)}</p>{_strip(cell, cell.score)}"
        f'<div class="ct-columns">{_list("Restored run", cell.restored)}'
        f"{_list('Clean run', cell.clean)}{_list('Corrupted run', cell.corrupted)}</div></div>"
    )


def _effect_words(cell: CellDetails, score: float) -> str:
    words = f"P(answer) = <b>{score:.4f}</b>. Indirect effect <b>{cell.indirect_effect:+.4f}</b>"
    if cell.interval is not None:
        low, high = cell.interval
        words += f" (95 % interval {low:+.4f} to {high:+.4f})"
    if cell.share is not None:
        words += f", {cell.share:.0%} of the total effect"
    return f"{words}. Each dot is one noise sample: corrupted runs above, restored runs below, their mean as a line."


def _strip(cell: CellDetails, score: float) -> str:
    """Samples of the corrupted and the restored runs on one axis, as SVG."""
    top = max([*cell.samples, *cell.low_samples, cell.high_score, 1e-9])

    def across(value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * value / top

    interval = ""
    if cell.interval is not None:
        low, high = (min(max(cell.low_score + bound, 0.0), top) for bound in cell.interval)
        interval = f'<line class="ct-interval" x1="{across(low):.1f}" x2="{across(high):.1f}" y1="28" y2="28"></line>'
    label = (
        f"{len(cell.samples)} noise samples: restored from {min(cell.samples):.3f} to {max(cell.samples):.3f}, "
        f"corrupted from {min(cell.low_samples):.3f} to {max(cell.low_samples):.3f}; clean {cell.high_score:.3f}"
    )
    return (
        f'<svg class="ct-strip" viewBox="0 0 {_WIDTH:.0f} 46" preserveAspectRatio="xMinYMid" role="img" '
        f'aria-label="{html.escape(label)}">'
        f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="44" y2="44"></line>{interval}'
        f"{_dots(map(across, cell.low_samples), 10, 'ct-low')}{_dots(map(across, cell.samples), 28, 'ct-high')}"
        f'<line class="ct-mean" x1="{across(score):.1f}" x2="{across(score):.1f}" y1="19" y2="37"></line>'
        f'</svg><p class="ct-hint ct-ends"><span>0</span><span>P = {top:.3f}</span></p>'
    )


def _dots(places: Iterable[float], y: int, css_class: str) -> str:
    return "".join(f'<circle class="{css_class}" cx="{x:.1f}" cy="{y}" r="5"></circle>' for x in places)


def _list(title: str, tokens: Sequence[TokenProbability]) -> str:
    rows = "".join(
        f"<li><bdi>{html.escape(display_token(token.text))}</bdi> {token.probability:.4f}</li>" for token in tokens
    )
    return f"<section><h4>{title}</h4><ol>{rows or '<li>not kept in this result</li>'}</ol></section>"
