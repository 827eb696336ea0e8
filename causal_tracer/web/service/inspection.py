"""Inspection of a prompt before it is traced: tokens, subject, the model's answers, problems and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from causal_tracer.errors import CausalTracerError, SubjectError
from causal_tracer.experiment.set_up import TracingContext, prompt_for
from causal_tracer.metrics.descriptions import METRIC_DESCRIPTIONS, MetricDescription
from causal_tracer.prompts.chat import ChatText, render_chat
from causal_tracer.prompts.encoding import encode_with_spans
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.prompts.subject import Occurrence, guess_subject, occurrences, subject_not_found_message
from causal_tracer.request.records import Text, TraceRequest
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.labels import made_in_clean_run, metric_label, metric_of
from causal_tracer.results.top_tokens import TokenProbability
from causal_tracer.web.service.known_answers import KnownAnswers, ModelAnswers
from causal_tracer.web.service.limits import too_long
from causal_tracer.web.service.settings import ServiceSettings

Field = Literal["prompt", "subject", "answer", "settings"]


@dataclass(frozen=True)
class TokenSpan:
    """A token of the prompt.

    Attributes:
        text: Its label, as on the map's axis.
        start: Index of its first character in the typed text: the prompt, or the user's message.
        end: One past its last character; equal to `start` for tokens outside the typed text.
    """

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Problem:
    """A reason why a prompt cannot be traced as it is.

    Attributes:
        field: The field to change.
        words: The message: what is wrong, and what to do.
    """

    field: Field
    words: str


@dataclass(frozen=True)
class Inspection:
    """The result of inspecting a prompt before it is traced.

    Attributes:
        tokens: The prompt's tokens; empty while the model loads.
        subject: The subject, given or guessed; empty if there is none.
        subject_range: The subject's first token, and one past its last.
        guessed: Whether the subject was guessed.
        answers: The most probable answers, best first.
        answer: The answer that would be traced.
        problems: The reasons why the prompt cannot be traced.
        warnings: The reasons why a map of the prompt would be hard to read.
        noise: The model's automatic noise level.
        loading: While the model loads, its loading status in words.
    """

    tokens: tuple[TokenSpan, ...] = ()
    subject: str = ""
    subject_range: tuple[int, int] | None = None
    guessed: bool = False
    answers: tuple[TokenProbability, ...] = ()
    answer: TokenProbability | None = None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    noise: float | None = None
    loading: str = ""


def inspect_prompt(
    context: TracingContext, request: TraceRequest, typed: str, settings: ServiceSettings, known: KnownAnswers
) -> Inspection:
    """Inspect a prompt; invalid input is reported in `problems`.

    Args:
        context: The model.
        request: The request.
        typed: The typed text: the prompt, or the user's message.
        settings: The app's limits.
        known: The model's answers to earlier prompts.

    Raises:
        NumericsError: The clean run gave NaN or infinite logits.
    """
    try:
        prompt, problems = _prompt(context, request, typed)
    except CausalTracerError as error:
        return Inspection(noise=context.noise, problems=(Problem("prompt", str(error)),))
    spans = _typed_spans(context, request.prompt, typed, prompt)
    found = Inspection(
        tokens=tuple(TokenSpan(label, *span) for label, span in zip(prompt.tokens, spans, strict=True)),
        noise=context.noise,
        problems=problems,
    )
    if not problems:
        found = replace(
            found, subject=prompt.subject, subject_range=prompt.subject_range, guessed=prompt.subject_guessed
        )
    if words := too_long(len(prompt), settings):
        return replace(found, problems=(*problems, Problem("prompt", words)))
    return _with_answers(found, prompt, known.answers(context, request, prompt))


def inspect_unloaded(text: str, subject: str | None, loading: str) -> Inspection:
    """Inspect the subject of a prompt, which needs no model."""
    try:
        guessed = guess_subject(text) if subject is None else subject
    except SubjectError as error:
        return Inspection(problems=(Problem("subject", str(error)),), loading=loading)
    if not occurrences(text, guessed):
        return Inspection(problems=(Problem("subject", subject_not_found_message(text, guessed)),), loading=loading)
    return Inspection(subject=guessed, guessed=subject is None, loading=loading)


def subject_of_tokens(inspection: Inspection, prompt: str, first: int, last: int) -> tuple[str, Occurrence]:
    """Return the text of a range of tokens as a subject, and which of its occurrences it is.

    Args:
        inspection: The prompt's inspection.
        prompt: The prompt.
        first, last: The first and the last token of the subject, in either order.

    Raises:
        SubjectError: The tokens have no text, or are neither the first nor the last occurrence of their text.
    """
    chosen = inspection.tokens[max(0, min(first, last)) : max(first, last) + 1]
    covered = [token for token in chosen if token.end > token.start]
    if not covered:
        raise SubjectError("These tokens have no text. Choose others as the subject.")
    start, end = covered[0].start, covered[-1].end
    subject = prompt[start:end].strip()
    if not subject:
        raise SubjectError("These tokens are blanks only. Choose others as the subject.")
    start = prompt.index(subject, start)
    if start == prompt.rfind(subject):
        return subject, "last"
    if start == prompt.find(subject):
        return subject, "first"
    raise SubjectError(
        f"{subject!r} occurs in the prompt {prompt.count(subject)} times, and only the first or the last can be "
        "traced. Choose more tokens, so that the subject is unique."
    )


def map_warnings(flow: HiddenFlow) -> tuple[str, ...]:
    """Return the reasons why a map should not be interpreted; empty if there are none."""
    metric, label = metric_of(flow), metric_label(flow)
    found = list(_answer_warnings(metric, label, flow.high_score))
    if made_in_clean_run(flow):
        # Without a corruption, there is no total effect to judge.
        return tuple(found)
    worse = flow.total_effect if metric.higher_is_better else -flow.total_effect
    if not worse > 0 or worse < metric.readable_effect:
        corrupted = "Corrupting " + ("the subject" if flow.settings.elsewhere is None else "these other tokens")
        if flow.settings.second is not None:
            corrupted = "The second prompt"
        limit_ = f" (below {metric.readable_effect:g})" if metric.readable_effect else ""
        found.append(
            f"The total effect is too small to read a map from: {metric.format_value(flow.total_effect)}{limit_}. "
            f"{corrupted} hardly worsens {label}, so the map has nothing to show."
        )
    return tuple(found)


def _answer_warnings(metric: MetricDescription, label: str, clean: float) -> tuple[str, ...]:
    """Return a warning if the clean run is unsure of its answer."""
    limit_ = metric.doubtful_beyond
    if limit_ is None or (clean >= limit_ if metric.higher_is_better else clean <= limit_):
        return ()
    side = "below" if metric.higher_is_better else "above"
    return (
        f"The model is unsure of this answer: {label} = {metric.format_value(clean)} in the clean run. A map of an "
        f"answer that the model hardly gives ({side} {limit_:.4g}) says little about a fact.",
    )


def _typed_spans(context: TracingContext, text: Text, typed: str, prompt: Prompt) -> Sequence[tuple[int, int]]:
    """Return each token's character span in the typed text; the chat template's own tokens have empty spans."""
    spans = encode_with_spans(context.tokenizer, prompt.text, prompt.special_tokens)[1]
    if not isinstance(text, ChatText):
        return spans
    start, end = render_chat(context.tokenizer, text)[1][0]
    # A template may trim the message. If it rewrites the message, no token can be clicked.
    shift = typed.find(prompt.text[start:end])
    if shift < 0:
        return [(0, 0)] * len(spans)
    clipped = [(min(max(first, start), end), min(max(last, start), end)) for first, last in spans]
    return [(first - start + shift, last - start + shift) for first, last in clipped]


def _prompt(context: TracingContext, request: TraceRequest, typed: str) -> tuple[Prompt, tuple[Problem, ...]]:
    """Return the prompt and its problems. If its subject is wrong, the whole prompt is taken as the subject."""
    try:
        return prompt_for(context, request.prompt, request.subject, request.occurrence), ()
    except SubjectError as error:
        return prompt_for(context, request.prompt, typed.strip() or None), (Problem("subject", str(error)),)


def _with_answers(found: Inspection, prompt: Prompt, read: ModelAnswers) -> Inspection:
    if read.answer is None:
        problems = (*found.problems, Problem("answer", read.problem))
        return replace(found, answers=read.candidates, problems=problems, warnings=prompt.notes)
    metric = METRIC_DESCRIPTIONS["probability"]
    unsure = _answer_warnings(metric, metric.labelled("answer"), read.answer.probability)
    warnings = (*prompt.notes, *read.notes, *unsure)
    return replace(found, answers=read.candidates, answer=read.answer, warnings=warnings)
