"""What stands beside a map: its numbers, its warnings and how it was made, as words and as safe HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable

from causal_tracer.flow import HiddenFlow
from causal_tracer.plots import display_token
from causal_tracer.web.registry import ModelStatus, model_title
from causal_tracer.web.service import RunUpdate

LOW_PROBABILITY = 0.1
SMALL_EFFECT = 0.05


def warnings(flow: HiddenFlow) -> list[str]:
    """Why the map should not be read, if it should not."""
    found = []
    if flow.high_score < LOW_PROBABILITY:
        found.append(
            f"The model is unsure of its answer: P = {flow.high_score:.3f} in the clean run. A map of an answer that "
            f"the model hardly gives (below {LOW_PROBABILITY}) says little about a fact."
        )
    if flow.total_effect < SMALL_EFFECT:
        found.append(
            f"The total effect is too small to read a map from: {flow.total_effect:.3f}. Corrupting the subject hardly "
            f"changes this answer, so there is nothing to restore (below {SMALL_EFFECT})."
        )
    return found


def recipe(flow: HiddenFlow) -> str:
    """How the map was made, in one line."""
    settings = flow.settings
    if settings.noise_rule == "given":
        noise = f"noise {settings.noise:.4g}, given"
    else:
        noise = f"noise {settings.noise:.4g}, automatic ({settings.noise_rule})"
    window = "single layers" if settings.window == 1 else f"windows of {settings.window} layers"
    tokens = ", subject tokens only" if settings.subject_tokens_only else ""
    samples = "1 noise sample" if settings.samples == 1 else f"{settings.samples} noise samples"
    return (
        f"{model_title(settings.model)}, {settings.dtype} · {window}{tokens} · {samples}, seed {settings.seed} · "
        f"{noise} · {settings.engine} sweep"
    )


def numbers_html(flow: HiddenFlow) -> str:
    """The numbers above a map, and what warns of reading it. All that a user typed is escaped."""
    numbers = [
        ("Answer", f"“{display_token(flow.answer)}”", "what the model says next"),
        ("Clean run", f"{flow.high_score:.3f}", "P(answer)"),
        ("Corrupted run", f"{flow.low_score:.3f}", "mean P(answer)"),
        ("Total effect", f"{flow.total_effect:.3f}", "clean − corrupted"),
    ]
    cards = "".join(
        f'<div class="ct-card"><dt>{_safe(name)}</dt><dd>{_safe(value)}</dd>'
        f'<dd class="ct-hint">{_safe(hint)}</dd></div>'
        for name, value, hint in numbers
    )
    return f'<dl class="ct-cards">{cards}</dl>{_paragraphs("ct-warning", warnings(flow))}'


def details_html(flow: HiddenFlow, *, stored: bool = False) -> str:
    """What the map is of and how it was made. All that a user typed is escaped."""
    subject = f"“{flow.subject}”" + (" (guessed)" if flow.subject_guessed else "")
    made = recipe(flow) + (" · a stored result" if stored else "")
    return (
        f'<p class="ct-prompt" dir="auto"><b>Prompt</b> {_safe(flow.prompt)}</p>'
        f'<p class="ct-prompt" dir="auto"><b>Subject</b> {_safe(subject)}</p>'
        f"{_paragraphs('ct-note', flow.notes)}"
        f'<p class="ct-made">{_safe(made)}</p>'
    )


def progress_words(update: RunUpdate) -> str:
    """How far a run is, and how long it may still take."""
    if update.waiting:
        return f"Waiting for {update.waiting}."
    if update.done >= update.total:
        return f"Done: {update.total} restored runs in {_duration(update.seconds)}."
    if not update.done:
        return f"Clean and corrupted run done; {update.total} restored runs to do."
    left = update.seconds * (update.total - update.done) / update.done
    return f"{update.done} of {update.total} restored runs · about {_duration(left)} left"


def model_words(status: ModelStatus) -> str:
    """How far the model is, for people."""
    if status.state == "ready":
        license_words = f", under the {status.license}" if status.license else ""
        noise_words = "" if status.noise is None else f" Automatic noise level: {status.noise:.4g}."
        return f"Model ready: {status.title}{license_words}.{noise_words}"
    if status.state == "failed":
        return f"{status.title} could not be loaded. {status.error}"
    share = "" if status.fraction is None else f", {status.fraction:.0%}"
    stage = f" ({status.stage}{share})" if status.stage else ""
    return f"Loading {status.title}{stage}. Run will wait for it; the maps below are stored ones."


def status_html(words: str, *, state: str = "") -> str:
    """A line that screen readers read out when it changes."""
    return f'<div class="ct-status {_safe(state)}" role="status" aria-live="polite">{_safe(words)}</div>'


def message_html(words: str) -> str:
    """An error beside the fields; nothing where there are no words."""
    return f'<div class="ct-error" role="alert">{_safe(words)}</div>' if words else ""


def _paragraphs(css_class: str, texts: Iterable[str]) -> str:
    return "".join(f'<p class="{css_class}">{_safe(text)}</p>' for text in texts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    return f"{seconds / 60:.0f} min"


def _safe(text: str) -> str:
    return html.escape(text)
