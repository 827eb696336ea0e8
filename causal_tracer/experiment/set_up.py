"""What a trace's cells depart from: prompt, answer, clean run, and the base run of some samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from causal_tracer.arguments import function, shown
from causal_tracer.corruption import Corruption, NoiseRule, SubjectEmbeddings, corruption_named
from causal_tracer.errors import CausalTracerError, SettingsError
from causal_tracer.experiment.answers import asked_answer
from causal_tracer.experiment.base_run import BaseRun, Watch, base_run
from causal_tracer.experiment.embeddings import corrupted_embeddings, subject_embeddings
from causal_tracer.experiment.noise_levels import noise_level
from causal_tracer.experiment.sources import BASE, CORRUPTED, PLACEBO
from causal_tracer.metrics.metric import Metric, Target, metric_named
from causal_tracer.metrics.values import metric_values
from causal_tracer.model.causal_lm import require_weights
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.runs import Activations, CleanRun, clean_run
from causal_tracer.prompts.alignment import aligned_positions
from causal_tracer.prompts.chat import ChatText, chat_prompt
from causal_tracer.prompts.prompt import Prompt, make_prompt
from causal_tracer.prompts.subject import Occurrence
from causal_tracer.request.records import MapSpec, Text, TraceRequest
from causal_tracer.request.sites import KINDS, SiteName


@dataclass(frozen=True, eq=False)
class TracingContext:
    """A model with its tokenizer and noise level.

    Attributes:
        traced: The model.
        tokenizer: Its tokenizer.
        model_id: The model's name in results.
        revision: Its revision in results.
        noise: The noise level of requests that name none.
        noise_rule: Where that number came from, in words.
        noise_given: The tracer's own noise setting; None is the automatic level.
    """

    traced: TracedModel
    tokenizer: Any
    model_id: str
    revision: str | None
    noise: float
    noise_rule: str
    noise_given: NoiseRule = None


def prompt_for(context: TracingContext, text: Text, part: str | None, occurrence: Occurrence = "last") -> Prompt:
    """The prompt, tokenized and checked against the model."""
    traced = context.traced
    if isinstance(text, Prompt):
        return text
    limits: dict[str, Any] = {"context_length": traced.context_length, "vocab_size": traced.vocab_size}
    if isinstance(text, ChatText):
        return chat_prompt(context.tokenizer, text, part, occurrence=occurrence, **limits)
    return make_prompt(context.tokenizer, text, part, occurrence=occurrence, **limits)


@dataclass(frozen=True, eq=False)
class Experiment:
    """Everything about a trace but its samples.

    Attributes:
        context: The model.
        request: The request. If it sets no noise level, the tracer's own setting is filled in.
        prompt: The prompt.
        sequence: What is run: the prompt with the answer's tokens but the last after it, and with the tokens that are
            corrupted as its subject.
        reads: The positions whose next tokens are read.
        answer_ids: The answer's tokens.
        clean: The clean run of the sequence.
        metric: What is read.
        corruption: What is done to the subject.
        noise: The noise level, for corruptions that take one.
        noise_rule: Where that number came from.
        foil_id: The first token of the foil, where there is one.
        notes: What a reader of the result has to know of prompt and answer.
    """

    context: TracingContext
    request: TraceRequest
    prompt: Prompt
    sequence: Prompt
    reads: tuple[int, ...]
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

    @cached_property
    def subject(self) -> SubjectEmbeddings:
        """The embeddings that are corrupted."""
        return subject_embeddings(self.context.traced, self.sequence, self.context.tokenizer)

    def embeddings(self, start: int, stop: int) -> Tensor:
        """The corrupted embeddings of the samples start ... stop - 1 [samples, subject tokens, width]."""
        return corrupted_embeddings(self.corruption, self.subject, stop)[start:]


def set_up(context: TracingContext, request: TraceRequest, sites: Iterable[SiteName] = KINDS) -> Experiment:
    """Return the prompt, answer, clean run, metric and corruption of a request; the clean run records `sites`.

    Raises:
        SettingsError, PromptError, TokenizerError: The request does not fit the model.
        ModelStructureError: The model's weights have no values any more.
        NumericsError: The clean run gave NaN or infinite logits.
    """
    require_weights(context.traced.model)
    prompt = prompt_for(context, request.prompt, request.subject, request.occurrence)
    corrupted = _corrupted_range(request, prompt)
    answer = asked_answer(context, request, prompt, sites)
    if min(answer.reads) < corrupted[0]:
        raise SettingsError(
            f"read={min(answer.reads)} comes before the corrupted tokens, which begin at {corrupted[0]}: nothing "
            "there can change. Read at a later token."
        )
    target = Target(answer.ids, answer.clean.logits, answer.foil_id)
    metric = metric_named(request.metric, target) if isinstance(request.metric, str) else _own(request.metric, target)
    corruption: Any = request.corruption
    noise, noise_rule = context.noise, context.noise_rule
    if request.noise is not None:
        noise, noise_rule = noise_level(context.traced, context.tokenizer, request.noise)
    if isinstance(corruption, str):
        corruption = corruption_named(corruption, noise, request.seed)
    return Experiment(
        context=context,
        request=replace(request, noise=context.noise_given if request.noise is None else request.noise),
        prompt=prompt,
        sequence=replace(answer.sequence, subject_range=corrupted),
        reads=answer.reads,
        answer_ids=answer.ids,
        foil_id=answer.foil_id,
        clean=answer.clean,
        metric=metric,
        corruption=corruption,
        noise=noise,
        noise_rule=noise_rule,
        notes=prompt.notes + answer.notes,
    )


def _own(make: Callable[[Target], Metric], target: Target) -> Metric:
    """The metric that a user's function makes of a target."""
    try:
        return function("The metric that metric=... makes", make(target))
    except CausalTracerError:
        raise
    except Exception as error:
        raise SettingsError(f"metric={shown(make)} failed to make a metric: {type(error).__name__}: {error}") from error


def _corrupted_range(request: TraceRequest, prompt: Prompt) -> tuple[int, int]:
    start, end = prompt.subject_range
    if request.elsewhere is None:
        return start, end
    other, stop = request.elsewhere, request.elsewhere + end - start
    if other < 0 or stop > len(prompt) or (other < end and stop > start):
        raise SettingsError(
            f"elsewhere={other} names the tokens {other} to {stop - 1}, and the prompt has {len(prompt)}, its subject "
            f"{start} to {end - 1}. Give the first of {end - start} tokens outside the subject."
        )
    return other, stop


def base_of_samples(
    experiment: Experiment, embeddings: Tensor, specs: Iterable[MapSpec], batch_size: int, watch: Watch | None
) -> tuple[BaseRun, Tensor]:
    """The run that the cells of some samples depart from, with the other runs that the maps take activations from.

    Returns:
        The base run, and the metric in the corrupted run [samples].
    """
    traced, specs = experiment.context.traced, list(specs)
    reverse = experiment.request.direction == "corrupt"
    sites: set[SiteName] = {spec.kind for spec in specs} if reverse else {s.severed for s in specs if s.severed}
    names = [name for site in sites for name in traced.activation_names(site)]

    def run(values: Tensor, record: Iterable[str], watching: Watch | None) -> tuple[BaseRun, Activations]:
        return base_run(
            traced,
            experiment.sequence,
            values,
            experiment.metric,
            batch_size,
            reads=experiment.reads,
            record=record,
            watch=watching,
        )

    base, recorded = run(embeddings, names, watch)
    low_scores = base.scores
    sources = {BASE: recorded}
    if reverse:
        clean = experiment.subject.embedded.expand_as(embeddings)
        base = run(clean, (), None)[0]
        held = {name: values[None] for name, values in experiment.clean.activations.items()}
        sources = {CORRUPTED: recorded, BASE: held}
    if replaced := {spec.kind for spec in specs if spec.source == "placebo"}:
        sources[PLACEBO] = _placebo(experiment, replaced)
    return replace(base, sources=sources), low_scores


def _placebo(experiment: Experiment, sites: Iterable[SiteName]) -> Activations:
    """The other prompt's clean activations at the tokens that stand for this one's [1, tokens, ...], by name."""
    query = experiment.request.placebo
    if query is None:
        raise SettingsError("A placebo map restores to another prompt's activations, and none is given (placebo=...).")
    other = prompt_for(experiment.context, query.text, query.subject)
    if other.input_ids == experiment.prompt.input_ids:
        raise SettingsError("The placebo's prompt is the prompt itself. Give another one.")
    clean = clean_run(experiment.context.traced, other.input_ids, (len(other) - 1,), sites)
    places = aligned_positions(experiment.sequence, other)
    return {name: values[places.to(values.device)][None] for name, values in clean.activations.items()}
