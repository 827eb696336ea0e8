"""The texts beside a map: numbers, peaks, warnings, status, and how the map was made, as escaped HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from causal_tracer.request.sites import SITES
from causal_tracer.results.analysis import Peak, effects, has_expected_sign
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.labels import display_token, low_run_name, map_title, metric_label, metric_of
from causal_tracer.results.settings_line import settings_line
from causal_tracer.web.service.inspection import map_warnings
from causal_tracer.web.service.registry import ModelStatus, model_title
from causal_tracer.web.service.updates import RunUpdate

# A layer belongs to a peak's stretch while its effect is at least this share of the peak's.
_STRETCH = 0.5


def numbers_html(*flows: HiddenFlow, filling: bool = False) -> str:
    """Return the numbers above maps of one prompt, and their peaks. User's text is escaped."""
    flow = flows[0]
    metric, label = metric_of(flow), metric_label(flow)
    numbers = [
        ("Answer", f"“{display_token(flow.answer)}”", _answer_words(flow)),
        ("Clean run", metric.format_value(flow.high_score), label),
    ]
    if (low := low_run_name(flow.settings)) is not None:
        name = "Corrupted run" if low == "corrupted" else low.capitalize()
        numbers += [
            (name, metric.format_value(flow.low_score), f"mean {label}"),
            ("Total effect", metric.format_value(flow.total_effect), f"clean − {low}"),
        ]
    cards = "".join(
        f'<div class="ct-card"><dt>{escape(name)} <small>{escape(hint)}</small></dt>'
        f'<dd dir="auto">{escape(value)}</dd></div>'
        for name, value, hint in numbers
    )
    peaks = "".join(f'<p class="ct-peaks">{"" if filling else peaks_html(each)}</p>' for each in flows)
    return f'<dl class="ct-cards">{cards}</dl>{peaks}'


def warnings_html(*flows: HiddenFlow) -> str:
    """Return warnings and notes of maps of one prompt. Each note comes once, with its maps if not all have it."""
    noted = {note: [flow for flow in flows if note in flow.notes] for flow in flows for note in flow.notes}
    notes = [
        note if len(having) == len(flows) else f"{' and '.join(SITES[flow.kind].label for flow in having)}: {note}"
        for note, having in noted.items()
    ]
    return _paragraphs("ct-warning", map_warnings(flows[0])) + _paragraphs("ct-note", notes)


def peaks_html(flow: HiddenFlow) -> str:
    """Return a sentence that names the strongest cells: token, layers, score and share of the total effect."""
    strongest = [peak for peak in flow.peaks(2) if has_expected_sign(flow, peak.effect)]
    what, corrupt = metric_of(flow).restored, flow.settings.direction == "corrupt"
    done = f"takes {what} away" if corrupt else f"brings {what} back"
    if not strongest:
        return f"<b>{escape(map_title(flow))}</b> {escape(done)} nowhere."
    told = " and ".join(_peak(flow, peak) for peak in strongest)
    return f"<b>{escape(map_title(flow))}</b> {escape(done)} most at {told}."


def details_html(flow: HiddenFlow, *, origin: str = "") -> str:
    """Return the map's prompt, title and settings, and where it comes from. User's text is escaped."""
    subject = f"“{flow.subject}”" + (" (guessed)" if flow.subject_guessed else "")
    made = settings_line(flow, model_title(flow.settings.model)) + (f" · {origin}" if origin else "")
    others = {"Second prompt": flow.settings.second, "Placebo": flow.settings.placebo}
    other = "".join(
        f'<p class="ct-prompt" dir="auto"><b>{name}</b> {escape(text)}</p>' for name, text in others.items() if text
    )
    return (
        f'<p class="ct-prompt" dir="auto"><b>Prompt</b> {escape(flow.prompt)}</p>'
        f'<p class="ct-prompt" dir="auto"><b>Subject</b> {escape(subject)}</p>'
        f"{other}"
        f'<p class="ct-prompt"><b>Map</b> {escape(map_title(flow))}: {escape(metric_label(flow))}</p>'
        f'<p class="ct-made">{escape(made)}</p>'
    )


def progress_words(update: RunUpdate, begun: RunUpdate | None = None) -> str:
    """Return the progress of a run, and about how long it still takes.

    Args:
        update: The latest update.
        begun: The first update with computed cells. Some of its cells need no computation, so the speed is measured
            from this update on.
    """
    if update.waiting:
        return f"Waiting for {update.waiting}."
    if update.cached:
        return "Done: this result was computed earlier."
    if update.done >= update.total:
        return f"Done: {update.total} restored runs in {_duration(update.seconds)}."
    if not update.done:
        return f"Clean and corrupted run done. {update.total} restored runs to do."
    done, seconds = update.done, update.seconds
    if begun is not None:
        done, seconds = done - begun.done, seconds - begun.seconds
    words = f"{update.done} of {update.total} restored runs"
    return f"{words} · about {_duration(seconds * (update.total - update.done) / done)} left" if done else words


def model_words(status: ModelStatus) -> str:
    """Return the model's status as a sentence."""
    if status.state == "ready":
        license_words = f", under the {status.license}" if status.license else ""
        return f"Model ready: {status.title}{license_words}."
    if status.state == "failed":
        return f"{status.title} could not be loaded. {status.error}"
    if status.state == "waiting":
        return f"{status.title} is loaded when it is first needed."
    return f"Loading {status.loading_words}. Run waits until it is ready; the maps shown are stored."


def status_html(words: str, *, state: str = "") -> str:
    """Return a status line, which screen readers read out when it changes."""
    return f'<div class="ct-status {escape(state)}" role="status" aria-live="polite">{escape(words)}</div>'


def message_html(*problems: str, warned: Sequence[str] = ()) -> str:
    """Return problems and warnings as HTML; an empty text if there are none."""
    # Focusable, so that a long message can be scrolled by keyboard.
    error = '<div class="ct-error" role="alert" tabindex="0">'
    wrong = "".join(f"{error}{escape(words)}</div>" for words in problems if words)
    return wrong + "".join(f'<div class="ct-warning" role="status">{escape(words)}</div>' for words in warned)


def _answer_words(flow: HiddenFlow) -> str:
    if flow.top_tokens is None or not flow.top_tokens.clean:
        return "traced"
    top = flow.top_tokens.clean[0]
    own = top.token_id == flow.answer_id
    return "the model's own" if own else f"the model says “{display_token(top.text)}”"


def _peak(flow: HiddenFlow, peak: Peak) -> str:
    first, last = _stretch(flow, peak)
    layers = f"layer {peak.layer}" if first == last else f"layers {first}–{last}, best {peak.layer}"
    score = f"{escape(metric_label(flow))} = {metric_of(flow).format_value(peak.score)}"
    share = "" if math.isnan(peak.share) else f", {peak.share:.0%} of the total effect"
    name = f"“{display_token(peak.token)}”" if peak.head is None else peak.row_name
    return f"<b>{escape(name)}</b> ({layers}): {score}{share}"


def _stretch(flow: HiddenFlow, peak: Peak) -> tuple[int, int]:
    """Return the first and last of the consecutive layers around a peak with at least half of its effect."""
    least = _STRETCH * abs(peak.effect)
    strong = [has_expected_sign(flow, effect) and abs(effect) >= least for effect in effects(flow)[peak.row].tolist()]
    before, after = strong[: peak.layer][::-1], strong[peak.layer + 1 :]
    return peak.layer - [*before, False].index(False), peak.layer + [*after, False].index(False)


def _paragraphs(css_class: str, texts: Iterable[str]) -> str:
    return "".join(f'<p class="{css_class}">{escape(text)}</p>' for text in texts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    return f"{seconds / 60:.0f} min"
