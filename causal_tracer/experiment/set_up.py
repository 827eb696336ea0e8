"""Sets up a request for its runs: prompts, answer, clean run, metric and corruption."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from causal_tracer.arguments import function, quoted
from causal_tracer.corruption import Corruption, NoCorruption, NoiseRule, SubjectEmbeddings, corruption_named
from causal_tracer.errors import CausalTracerError, SettingsError
from causal_tracer.experiment.answers import ResolvedAnswer, resolve_answer
from causal_tracer.experiment.counterparts import Counterpart, counterpart
from causal_tracer.experiment.embeddings import corrupted_embeddings, subject_embeddings
from causal_tracer.experiment.noise_levels import noise_level
from causal_tracer.metrics.metric import Metric, Target, metric_named
from causal_tracer.metrics.values import metric_values
from causal_tracer.model.causal_lm import require_weights
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.runs import CleanRun, clean_run
from causal_tracer.prompts.chat import ChatText, chat_prompt
from causal_tracer.prompts.decoding import decode_together
from causal_tracer.prompts.prompt import Prompt, make_prompt
from causal_tracer.prompts.subject import Occurrence
from causal_tracer.request.records import MapSpec, OtherPrompt, Text, TraceRequest
from causal_tracer.request.sites import KINDS, SiteName


@dataclass(frozen=True, eq=False)
class TracingContext:
    """A model with its tokenizer and noise level.

    Attributes:
        traced: The model.
        tokenizer: The model's tokenizer.
        model_id: The model's name in results.
        revision: The model's revision in results.
        noise: The noise level of requests that do not set one.
        noise_rule: How `noise` was determined, in words.
        noise_given: The tracer's noise setting; None is the automatic level.
    """

    traced: TracedModel
    tokenizer: Any
    model_id: str
    revision: str | None
    noise: float
    noise_rule: str
    noise_given: NoiseRule = None


def prompt_for(context: TracingContext, text: Text, part: str | None, occurrence: Occurrence = "last") -> Prompt:
    """Return the prompt, tokenized and checked against the model.

    Args:
        context: The model and its tokenizer.
        text: A text, a conversation, or a tokenized prompt, which is returned unchanged.
        part: The subject; None guesses it.
        occurrence: Which occurrence of the subject is used.
    """
    traced = context.traced
    if isinstance(text, Prompt):
        return text
    limits: dict[str, Any] = {"context_length": traced.context_length, "vocab_size": traced.vocab_size}
    if isinstance(text, ChatText):
        return chat_prompt(context.tokenizer, text, part, occurrence=occurrence, **limits)
    return make_prompt(context.tokenizer, text, part, occurrence=occurrence, **limits)


@dataclass(frozen=True, eq=False)
class RunInput:
    """The input of a run.

    Attributes:
        sequence: The prompt, followed by all tokens of the answer except the last. Its subject are the tokens that are
            corrupted.
        reads: The positions whose next tokens are read.
    """

    sequence: Prompt
    reads: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Experiment:
    """The parts of a trace that do not depend on the samples.

    Attributes:
        context: The model.
        request: The request. If it sets no noise level, the tracer's noise setting is filled in.
        prompt: The prompt.
        clean_input: The input of the clean run.
        corrupted_input: The input of the corrupted run: that of the clean run, or the request's second prompt.
        second: The second prompt, if the request has one.
        answer_ids: The answer's token ids.
        clean: The clean run.
        metric: The metric.
        corruption: The corruption of the subject.
        noise: The noise level, for corruptions that take one.
        noise_rule: How `noise` was determined.
        foil_id: The first token id of the foil, if there is one.
        notes: Notes on prompt and answer for the result.
    """

    context: TracingContext
    request: TraceRequest
    prompt: Prompt
    clean_input: RunInput
    corrupted_input: RunInput
    second: Counterpart | None
    answer_ids: tuple[int, ...]
    foil_id: int | None
    clean: CleanRun
    metric: Metric
    corruption: Corruption
    noise: float
    noise_rule: str
    notes: tuple[str, ...] = ()

    @property
    def high_score(self) -> float:
        """The metric in the clean run."""
        return float(metric_values(self.metric, self.clean.logits[None]))

    @property
    def base_input(self) -> RunInput:
        """The input of the base run."""
        return self.clean_input if self.request.direction == "corrupt" else self.corrupted_input

    @property
    def base_prompt(self) -> Prompt:
        """The prompt of the base run."""
        restores = self.request.direction == "restore"
        return self.second.prompt if self.second is not None and restores else self.prompt

    @cached_property
    def subject(self) -> SubjectEmbeddings:
        """The embeddings that are corrupted."""
        return subject_embeddings(self.context.traced, self.corrupted_input.sequence, self.context.tokenizer)

    def embeddings(self, start: int, stop: int) -> Tensor:
        """Return the corrupted embeddings of the samples start ... stop - 1 [samples, subject tokens, width]."""
        return corrupted_embeddings(self.corruption, self.subject, stop)[start:]

    @cached_property
    def placebo(self) -> Counterpart | None:
        """The placebo prompt, if the request has one.

        Raises:
            SettingsError: The placebo equals the prompt, or cannot be aligned with it.
        """
        asked = self.request.placebo
        return None if asked is None else _counterpart(self.context, self.prompt, asked)

    def base_tokens(self, spec: MapSpec) -> dict[int, int]:
        """Return, for each token of the prompt that a map can patch, the aligned token of the base run.

        Raises:
            SettingsError: The map is a placebo map, and the request has no placebo.
        """
        tokens = {token: token for token in range(len(self.prompt))}
        if self.second is not None and not spec.in_clean_run:
            restores = self.request.direction == "restore"
            tokens = {token: other if restores else token for token, other in self.second.partner_of.items()}
        if spec.source != "placebo":
            return tokens
        if self.placebo is None:
            raise SettingsError(
                "source='placebo' restores another prompt's activations, and no placebo is given. Give placebo=..."
            )
        return {token: base for token, base in tokens.items() if token in self.placebo.partner_of}


def set_up(context: TracingContext, request: TraceRequest, sites: Iterable[SiteName] = KINDS) -> Experiment:
    """Return the prompts, answer, clean run, metric and corruption of a request.

    Args:
        context: The model.
        request: The request.
        sites: The sites whose activations the clean run records.

    Raises:
        SettingsError, PromptError, TokenizerError: The request does not fit the model.
        ModelStructureError: Weights of the model are on the meta device and have no values.
        NumericsError: The clean run gave NaN or infinite logits.
    """
    require_weights(context.traced.model)
    prompt = prompt_for(context, request.prompt, request.subject, request.occurrence)
    corrupted = _corrupted_range(request, prompt)
    answer = resolve_answer(context, request, prompt, sites)
    second = None if request.second is None else _counterpart(context, prompt, request.second)
    if second is None and min(answer.reads) < corrupted[0]:
        raise SettingsError(
            f"read={min(answer.reads)} is before the first corrupted token ({corrupted[0]}), so its prediction cannot "
            f"change. Give read={corrupted[0]} or later."
        )
    clean_input = RunInput(replace(answer.sequence, subject_range=corrupted), answer.reads)
    corrupted_input = clean_input if second is None else _second_input(context, answer, second)
    foil_id = answer.foil_id
    # User-defined metrics may use a foil too.
    reads_foil = not isinstance(request.metric, str) or request.metric == "logit difference"
    if second is not None and foil_id is None and reads_foil:
        foil_id = _other_answer(context, corrupted_input, second, answer, request)
    target = Target(answer.ids, answer.clean.logits, foil_id)
    metric = metric_named(request.metric, target) if isinstance(request.metric, str) else _own(request.metric, target)
    corruption: Any = NoCorruption() if second is not None else request.corruption
    noise, noise_rule = context.noise, context.noise_rule
    if request.noise is not None:
        noise, noise_rule = noise_level(context.traced, context.tokenizer, request.noise)
    if isinstance(corruption, str):
        corruption = corruption_named(corruption, noise, request.seed)
    own_noise = context.noise_given if request.noise is None and second is None else request.noise
    return Experiment(
        context=context,
        request=replace(request, noise=own_noise),
        prompt=prompt,
        clean_input=clean_input,
        corrupted_input=corrupted_input,
        second=second,
        answer_ids=answer.ids,
        foil_id=foil_id,
        clean=answer.clean,
        metric=metric,
        corruption=corruption,
        noise=noise,
        noise_rule=noise_rule,
        notes=prompt.notes + answer.notes + (() if second is None else second.prompt.notes),
    )


def _counterpart(context: TracingContext, prompt: Prompt, asked: OtherPrompt) -> Counterpart:
    return counterpart(prompt, prompt_for(context, asked.text, asked.subject, asked.occurrence), asked)


def _second_input(context: TracingContext, answer: ResolvedAnswer, second: Counterpart) -> RunInput:
    """Return the second prompt with all but the last of the answer's tokens inserted after the position read."""
    first, forced = answer.reads[0], answer.ids[:-1]
    prompt, limit = second.prompt, context.traced.context_length
    read = len(prompt) - 1
    if first != len(answer.sequence) - 1 - len(forced):
        partner = second.partners[first]
        if partner is None:
            raise SettingsError(
                f"read={first} has no partner in the second prompt. Read at a token that has one, or give "
                f"pairs=[({first}, other token), ...]."
            )
        read = partner
    end = read + 1 if forced else len(prompt)
    sequence = replace(
        prompt, input_ids=prompt.input_ids[:end] + forced, tokens=prompt.tokens[:end] + ("",) * len(forced)
    )
    if limit is not None and len(sequence) > limit:
        raise SettingsError(
            f"The second prompt and the answer have {len(sequence)} tokens, and the model takes at most {limit}. "
            "Shorten the second prompt."
        )
    return RunInput(sequence, tuple(range(read, read + len(answer.reads))))


def _other_answer(
    context: TracingContext, given: RunInput, second: Counterpart, answer: ResolvedAnswer, request: TraceRequest
) -> int:
    """Return the second prompt's most probable next token, as a token id."""
    found = clean_run(context.traced, second.prompt.input_ids, given.reads[:1], ()).top_id
    if found == answer.ids[0] and request.metric == "logit difference":
        raise SettingsError(
            f"Both prompts have the answer {decode_together(context.tokenizer, [found])!r}, so the logit difference of "
            "their answers is 0. Give answer=..., foil=..., or another metric."
        )
    return found


def _own(make: Callable[[Target], Metric], target: Target) -> Metric:
    """Return the metric that a user-defined function makes for a target."""
    try:
        return function("The metric returned by metric=...", make(target))
    except CausalTracerError:
        raise
    except Exception as error:
        raise SettingsError(
            f"metric={quoted(make)} failed to make a metric: {type(error).__name__}: {error}"
        ) from error


def _corrupted_range(request: TraceRequest, prompt: Prompt) -> tuple[int, int]:
    start, end = prompt.subject_range
    if request.elsewhere is None:
        return start, end
    other, stop = request.elsewhere, request.elsewhere + end - start
    if other < 0 or stop > len(prompt) or (other < end and stop > start):
        raise SettingsError(
            f"elsewhere={other} does not fit: the tokens {other} to {stop - 1} must be in the prompt (0 to "
            f"{len(prompt) - 1}) and outside the subject ({start} to {end - 1}). Give the first of {end - start} such "
            "tokens."
        )
    return other, stop
