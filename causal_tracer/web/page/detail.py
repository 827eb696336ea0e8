"""One cell of a map in detail, as HTML: its noise samples, its effect, and the most probable tokens. Needs no model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from causal_tracer.errors import SettingsError
from causal_tracer.results.analysis import base_score, effects, share
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.labels import (
    display_token,
    effect_label,
    low_run_name,
    metric_label,
    metric_of,
    patched_layers,
    patched_word,
)
from causal_tracer.results.top_tokens import TokenProbability

NO_CELL = (
    '<p class="ct-hint">Click a cell for its noise samples, its indirect effect and the most probable tokens. '
    "By keyboard: use the table below.</p>"
)

_WIDTH, _LEFT, _RIGHT = 600.0, 10.0, 590.0


@dataclass(frozen=True, eq=False)
class CellDetails:
    """One cell of a map in detail; if it was not computed, numbers are None and samples are empty.

    Attributes:
        flow: The map.
        position: The row: the restored token's index in the prompt.
        layer: The layer.
        samples: The metric in each patched run.
        score: The mean of `samples`.
        effect: The patch's effect, as in `Peak.effect`.
        interval: The effect's 95 % interval over noise samples; None with a single sample too.
        share: The effect as a share of the total effect; None if that cannot be computed.
        restored: The most probable next tokens of the patched runs, if the result has them.
    """

    flow: HiddenFlow
    position: int
    layer: int
    samples: tuple[float, ...] = ()
    score: float | None = None
    effect: float | None = None
    interval: tuple[float, float] | None = None
    share: float | None = None
    restored: tuple[TokenProbability, ...] = ()


def cell_details(flow: HiddenFlow, position: int, layer: int) -> CellDetails:
    """Return a cell in detail.

    Raises:
        SettingsError: The map has no such cell.
    """
    tokens, layers = flow.scores.shape
    if not (0 <= position < tokens and 0 <= layer < layers):
        raise SettingsError(
            f"The map has no cell at token {position}, layer {layer}: it has {tokens} tokens and {layers} layers."
        )
    score, effect = float(flow.scores[position, layer]), float(effects(flow)[position, layer])
    if math.isnan(score):
        return CellDetails(flow, position, layer)
    low, high = (float(bound[position, layer]) for bound in flow.interval())
    part = share(flow, effect)
    return CellDetails(
        flow,
        position,
        layer,
        samples=tuple(flow.sample_scores[:, position, layer].tolist()),
        score=score,
        effect=effect,
        interval=(low, high) if math.isfinite(low) and math.isfinite(high) else None,
        share=None if math.isnan(part) else part,
        restored=flow.top_tokens.cells(position, layer) if flow.top_tokens is not None else (),
    )


def detail_html(cell: CellDetails) -> str:
    """Return the details of a cell as HTML. Users' text is escaped."""
    flow = cell.flow
    first, last = patched_layers(flow, cell.layer)
    window = "" if first == last else f", with layers {first} to {last} {patched_word(flow)}"
    title = f"“{escape(display_token(flow.input_tokens[cell.position]))}”, layer {cell.layer}{window}"
    if cell.score is None or cell.effect is None:
        return f'<div class="ct-detail"><h3>{title}</h3><p>This cell was not computed.</p></div>'
    clean, corrupted = (flow.top_tokens.clean, flow.top_tokens.corrupted) if flow.top_tokens is not None else ((), ())
    return (
        '<div class="ct-detail" role="region" tabindex="0" aria-live="polite" aria-label="The chosen cell">'
        f"<h3>{title}</h3>"
        f"<p>{_effect_words(cell, cell.score, cell.effect)}</p>{_strip(cell, cell.score)}"
        f'<div class="ct-columns">{_list(_patched_run(flow), cell.restored)}'
        f"{_list('Clean run', clean)}{_list('Corrupted run', corrupted)}</div></div>"
    )


def _effect_words(cell: CellDetails, score: float, effect: float) -> str:
    flow, metric = cell.flow, metric_of(cell.flow)
    label = effect_label(flow)
    words = (
        f"{escape(metric_label(flow))} = <b>{metric.format_value(score, more=1)}</b>. "
        f"{escape(label[:1].upper() + label[1:])} <b>{metric.format_value(effect, sign=True, more=1)}</b>"
    )
    if cell.interval is not None:
        low, high = (metric.format_value(bound, sign=True, more=1) for bound in cell.interval)
        words += f" (95 % interval {low} to {high})"
    if cell.share is not None:
        words += f", {cell.share:.0%} of the total effect"
    dots = f"{_low_runs(flow)} above, {_patched_run(flow, plural=True)} below, their mean as a line."
    if len(cell.samples) > 1:
        return f"{words}. Each dot is one noise sample: {dots}"
    return f"{words}. {dots[:1].upper()}{dots[1:]}"


def _low_runs(flow: HiddenFlow) -> str:
    low = low_run_name(flow.settings)
    return "the clean run" if low is None else "corrupted runs" if low == "corrupted" else f"the {low}"


def _strip(cell: CellDetails, score: float) -> str:
    """Return the samples of the corrupted and the patched runs on one axis, as SVG."""
    flow, metric = cell.flow, metric_of(cell.flow)
    low_samples = flow.low_sample_scores.tolist()
    left, right = _axis(cell)

    def across(value: float) -> float:
        # Infinite values are drawn at the axis' end.
        part = (min(max(metric.axis_position(value), left), right) - left) / (right - left)
        return _LEFT + (_RIGHT - _LEFT) * part

    interval = ""
    if cell.interval is not None:
        low, high = (across(base_score(flow) + bound) for bound in cell.interval)
        interval = f'<line class="ct-interval" x1="{low:.1f}" x2="{high:.1f}" y1="28" y2="28"></line>'
    first, last, lowest, highest = (
        metric.format_value(value) for values in (cell.samples, low_samples) for value in (min(values), max(values))
    )
    label = (
        f"{len(cell.samples)} noise samples: {_patched_run(flow, plural=True)} from {first} to {last}, "
        f"{_low_runs(flow)} from {lowest} to {highest}; clean {metric.format_value(flow.high_score)}"
    )
    ends = [metric.format_value(metric.value_at_position(end)) for end in (left, right)]
    return (
        f'<svg class="ct-strip" viewBox="0 0 {_WIDTH:.0f} 46" preserveAspectRatio="xMinYMid" role="img" '
        f'aria-label="{escape(label)}">'
        f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="44" y2="44"></line>{interval}'
        f"{_dots(map(across, low_samples), 10, 'ct-low')}{_dots(map(across, cell.samples), 28, 'ct-high')}"
        f'<line class="ct-mean" x1="{across(score):.1f}" x2="{across(score):.1f}" y1="19" y2="37"></line>'
        f'</svg><p class="ct-hint ct-ends"><span>{ends[0]}</span>'
        f"<span>{escape(metric_label(flow))} = {ends[1]}</span></p>"
    )


def _axis(cell: CellDetails) -> tuple[float, float]:
    """Return the places of the axis' ends, which include all finite values and the metric's own limit.

    A probability's axis begins at 0, a log-probability's ends at 0.
    """
    metric = metric_of(cell.flow)
    limit = metric.lowest if metric.lowest is not None else metric.highest
    values = [*cell.samples, *cell.flow.low_sample_scores.tolist(), cell.flow.high_score, limit]
    places = [place for value in values if value is not None and math.isfinite(place := metric.axis_position(value))]
    left, right = min(places, default=0.0), max(places, default=1.0)
    return left, right if right > left else left + 1e-9


def _patched_run(flow: HiddenFlow, *, plural: bool = False) -> str:
    if flow.settings.direction == "corrupt":
        return "patched clean runs" if plural else "Patched clean run"
    return "restored runs" if plural else "Restored run"


def _dots(places: Iterable[float], y: int, css_class: str) -> str:
    return "".join(f'<circle class="{css_class}" cx="{x:.1f}" cy="{y}" r="5"></circle>' for x in places)


def _list(title: str, tokens: Sequence[TokenProbability]) -> str:
    rows = "".join(
        f"<li><bdi>{escape(display_token(token.text))}</bdi> {token.probability:.4f}</li>" for token in tokens
    )
    return f"<section><h4>{title}</h4><ol>{rows or '<li>not kept in this result</li>'}</ol></section>"
