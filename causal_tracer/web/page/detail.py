"""One cell of a map in detail, as HTML: the noise samples, the indirect effect, and what the model says there."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from causal_tracer.results.top_tokens import TokenProbability
from causal_tracer.results.words import display_token
from causal_tracer.web.page.cell_details import CellDetails

NO_CELL = (
    '<p class="ct-hint">Click a cell for its noise samples, its indirect effect and what the model says there. '
    "By keyboard: the table below.</p>"
)

_WIDTH, _LEFT, _RIGHT = 600.0, 10.0, 590.0


def detail_html(cell: CellDetails) -> str:
    """The details of a cell. All that a user typed is escaped."""
    first, last = cell.restored_layers
    layers = f"layer {first}" if first == last else f"layer {cell.layer}, with layers {first} to {last} {cell.patched}"
    title = f"“{html.escape(display_token(cell.token))}”, {layers}"
    if cell.score is None:
        return f'<div class="ct-detail"><h3>{title}</h3><p>This cell was not computed.</p></div>'
    return (
        f'<div class="ct-detail" role="region" aria-live="polite" aria-label="The chosen cell"><h3>{title}</h3>'
        f"<p>{_effect_words(cell, cell.score)}</p>{_strip(cell, cell.score)}"
        f'<div class="ct-columns">{_list(_patched_run(cell), cell.restored)}'
        f"{_list('Clean run', cell.clean)}{_list('Corrupted run', cell.corrupted)}</div></div>"
    )


def _effect_words(cell: CellDetails, score: float) -> str:
    metric, effect = cell.metric, cell.effect if cell.effect is not None else math.nan
    words = (
        f"{html.escape(cell.metric_label)} = <b>{metric.written(score, more=1)}</b>. "
        f"{html.escape(_capital(cell.effect_label))} <b>{metric.written(effect, sign=True, more=1)}</b>"
    )
    if cell.interval is not None:
        low, high = (metric.written(bound, sign=True, more=1) for bound in cell.interval)
        words += f" (95 % interval {low} to {high})"
    if cell.share is not None:
        words += f", {cell.share:.0%} of the total effect"
    return (
        f"{words}. Each dot is one noise sample: corrupted runs above, {_patched_run(cell, plural=True)} below, their "
        "mean as a line."
    )


def _strip(cell: CellDetails, score: float) -> str:
    """Samples of the corrupted and the patched runs on one axis, as SVG."""
    metric, base = cell.metric, cell.high_score if cell.patched == "corrupted" else cell.low_score
    bounds = () if cell.interval is None else tuple(base + bound for bound in cell.interval)
    left, right = _axis(cell)

    def across(value: float) -> float:
        # Infinite values are drawn at the end that they are beyond.
        part = (min(max(metric.place(value), left), right) - left) / (right - left)
        return _LEFT + (_RIGHT - _LEFT) * part

    interval = ""
    if bounds:
        low, high = map(across, bounds)
        interval = f'<line class="ct-interval" x1="{low:.1f}" x2="{high:.1f}" y1="28" y2="28"></line>'
    runs = (
        metric.written(value) for values in (cell.samples, cell.low_samples) for value in (min(values), max(values))
    )
    label = "{} noise samples: {} from {} to {}, corrupted from {} to {}; clean {}".format(
        len(cell.samples), _patched_run(cell, plural=True), *runs, metric.written(cell.high_score)
    )
    ends = [metric.written(metric.value_at(end)) for end in (left, right)]
    return (
        f'<svg class="ct-strip" viewBox="0 0 {_WIDTH:.0f} 46" preserveAspectRatio="xMinYMid" role="img" '
        f'aria-label="{html.escape(label)}">'
        f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="44" y2="44"></line>{interval}'
        f"{_dots(map(across, cell.low_samples), 10, 'ct-low')}{_dots(map(across, cell.samples), 28, 'ct-high')}"
        f'<line class="ct-mean" x1="{across(score):.1f}" x2="{across(score):.1f}" y1="19" y2="37"></line>'
        f'</svg><p class="ct-hint ct-ends"><span>{ends[0]}</span>'
        f"<span>{html.escape(cell.metric_label)} = {ends[1]}</span></p>"
    )


def _axis(cell: CellDetails) -> tuple[float, float]:
    """Places of the axis' ends: over all finite values, and from or to the metric's limit where it has one side only.

    A probability's axis begins at 0, a log-probability's ends at 0.
    """
    metric = cell.metric
    limit = metric.lowest if metric.lowest is not None else metric.highest
    values = [*cell.samples, *cell.low_samples, cell.high_score, *(() if limit is None else (limit,))]
    places = [place for value in values if math.isfinite(place := metric.place(value))]
    left, right = min(places, default=0.0), max(places, default=1.0)
    return left, right if right > left else left + 1e-9


def _patched_run(cell: CellDetails, *, plural: bool = False) -> str:
    if cell.patched == "corrupted":
        return "patched clean runs" if plural else "Patched clean run"
    return "restored runs" if plural else "Restored run"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _dots(places: Iterable[float], y: int, css_class: str) -> str:
    return "".join(f'<circle class="{css_class}" cx="{x:.1f}" cy="{y}" r="5"></circle>' for x in places)


def _list(title: str, tokens: Sequence[TokenProbability]) -> str:
    rows = "".join(
        f"<li><bdi>{html.escape(display_token(token.text))}</bdi> {token.probability:.4f}</li>" for token in tokens
    )
    return f"<section><h4>{title}</h4><ol>{rows or '<li>not kept in this result</li>'}</ol></section>"
