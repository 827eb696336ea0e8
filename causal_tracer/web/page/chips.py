"""A prompt before it is traced, as HTML: its tokens as chips, and the model's most probable answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from causal_tracer.plots.heatmap import display_token
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.web.service.inspection import Inspection, TokenSpan


def inspection_html(inspection: Inspection, *, enabled: bool = True) -> str:
    """Return chips and answers; `static/chips.js` handles clicks. Users' text is escaped."""
    if not inspection.tokens:
        words = f"Loading the model ({inspection.loading})." if inspection.loading else "No tokens yet."
        return f'<div class="ct-inspect"><p class="ct-hint">{escape(words)}</p></div>'
    guessed = " ct-guessed" if inspection.guessed else ""
    return (
        f'<div class="ct-inspect"><p class="ct-hint">{_subject_words(inspection)}</p>'
        f'<ol class="ct-chips{guessed}" aria-label="Tokens of the prompt">'
        f"{''.join(_chips(inspection, enabled))}</ol>{_answers(inspection, enabled)}</div>"
    )


def stored_inspection(flow: HiddenFlow) -> Inspection:
    """Return the inspection of a stored result, shown until the model is loaded."""
    answers = () if flow.top_tokens is None else flow.top_tokens.clean
    return Inspection(
        tokens=tuple(TokenSpan(token, 0, len(token)) for token in flow.input_tokens),
        subject=flow.subject,
        subject_range=flow.subject_range,
        guessed=flow.subject_guessed,
        answers=answers,
        answer=next((answer for answer in answers if answer.token_id == flow.answer_id), None),
        noise=flow.settings.noise,
    )


def _subject_words(inspection: Inspection) -> str:
    marked = f"The subject is {'guessed' if inspection.guessed else 'marked'}."
    if inspection.subject_range is None:
        marked = "No subject is marked."
    return f"<b>Tokens.</b> {marked} Click its first and last token, or type it."


def _chips(inspection: Inspection, enabled: bool) -> Iterable[str]:
    start, end = inspection.subject_range or (0, 0)
    for place, token in enumerate(inspection.tokens):
        # A token such as <bos> has no text in the prompt, so it cannot be part of a subject.
        disabled = "" if enabled and token.end > token.start else " disabled"
        yield (
            f'<li><button type="button" data-token="{place}" data-start="{token.start}" data-end="{token.end}" '
            f'aria-pressed="{str(start <= place < end).lower()}" '
            f'dir="auto"{disabled}>{escape(display_token(token.text))}</button></li>'
        )


def _answers(inspection: Inspection, enabled: bool) -> str:
    if not inspection.answers:
        return ""
    chosen = None if inspection.answer is None else inspection.answer.token_id
    names = _distinct_labels([answer.text for answer in inspection.answers])
    listed = "".join(
        f'<li><button type="button" data-answer="{place}" aria-pressed="{str(answer.token_id == chosen).lower()}" '
        f'dir="auto" style="--p:{answer.probability:.0%}"{"" if enabled else " disabled"}>'
        f"{escape(name)}<small>{answer.probability:.3f}</small></button></li>"
        for place, (answer, name) in enumerate(zip(inspection.answers, names, strict=True))
    )
    extra = ""
    if inspection.answer is not None and chosen not in {answer.token_id for answer in inspection.answers}:
        extra = (
            f" Traced: <b>{escape(display_token(inspection.answer.text))}</b> "
            f"(P = {inspection.answer.probability:.4f})."
        )
    return (
        f'<p class="ct-hint"><b>Next tokens.</b> The first is traced if none is chosen.{extra}</p>'
        f'<ol class="ct-answers" aria-label="Answers and their probabilities">{listed}</ol>'
    )


def _distinct_labels(texts: Sequence[str]) -> list[str]:
    """Return labels of tokens. Where two would be equal, the one that starts with a space shows it as ␣."""
    shown = [display_token(text) for text in texts]
    return [
        f"␣{name}" if shown.count(name) > 1 and text.startswith(" ") and name != "␣" else name
        for name, text in zip(shown, texts, strict=True)
    ]
