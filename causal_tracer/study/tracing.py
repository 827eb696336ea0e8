"""One fact of a study: is it known, its maps, and the audit of some of their cells."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from causal_tracer.errors import CausalTracerError, TraceCancelled
from causal_tracer.experiment.set_up import TracingContext, prompt_for
from causal_tracer.prompts.decoding import token_text
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.records import HiddenFlowQuery, MapSpec, RunOptions, TraceRequest
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.study.facts import Fact, recall
from causal_tracer.study.records import AuditedCell, FactRecord, MapResult, MapSettings
from causal_tracer.study.settings import StudySettings, derived_seed, map_spec
from causal_tracer.tracing.loop import trace_maps


def never() -> bool:
    """Nobody cancels."""
    return False


def study_fact(
    context: TracingContext,
    settings: StudySettings,
    fact: Fact,
    placebo: Fact | None,
    cancelled: Callable[[], bool] = never,
) -> FactRecord:
    """What comes of one fact: traced, unknown to the model, or failed with a cause.

    Args:
        context: The model.
        settings: The study's.
        fact: The fact.
        placebo: The fact whose activations its placebo maps restore to.
        cancelled: Asked as the sweep goes; True stops it.

    Raises:
        TraceCancelled: `cancelled` said so.
    """
    try:
        answers, refused = recall(context, [fact])
        if refused:
            return FactRecord(fact, "failed", cause=refused[fact.fact_id])
        (found,) = answers
        if not found.known:
            said = token_text(context.tokenizer, found.top_id)
            return FactRecord(fact, "unknown", cause=f"the model's answer is {said!r}")
        return _traced(context, settings, fact, placebo, found.answer_id, cancelled)
    except TraceCancelled:
        raise
    except (CausalTracerError, RuntimeError, MemoryError) as error:
        # RuntimeError: torch's own failures, running out of a device's memory among them.
        said = str(error).splitlines()[0] if str(error) else ""
        failed = FactRecord(fact, "failed", cause=f"{type(error).__name__}: {said}")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return failed


def placebo_for(seed: int, fact: Fact, facts: Sequence[Fact]) -> Fact | None:
    """The fact whose activations stand in for this one's: drawn among other relations, else other attributes."""
    others = [other for other in facts if other.relation != fact.relation and other.attribute != fact.attribute]
    others = others or [other for other in facts if other.attribute != fact.attribute]
    if not others:
        return None
    ordered = sorted(others, key=lambda other: other.fact_id)
    return ordered[derived_seed(seed, fact.fact_id, "placebo") % len(ordered)]


def control_positions(prompt: Prompt) -> tuple[int, ...]:
    """The tokens of control maps that are not made everywhere: the last of the subject, and the last."""
    return tuple(sorted({prompt.subject_range[1] - 1, len(prompt) - 1}))


def _traced(
    context: TracingContext,
    settings: StudySettings,
    fact: Fact,
    placebo: Fact | None,
    answer_id: int,
    cancelled: Callable[[], bool],
) -> FactRecord:
    begun = time.perf_counter()
    prompt = prompt_for(context, fact.prompt, fact.subject)
    request = TraceRequest(
        prompt,
        answer_id=answer_id,
        samples=settings.samples,
        seed=settings.seed_of(fact.fact_id),
        metric=settings.metric,
        placebo=None if placebo is None else HiddenFlowQuery(placebo.prompt, placebo.subject),
    )
    maps = [asked for asked in settings.maps() if placebo is not None or not asked.placebo]
    options = RunOptions(batch_size=settings.batch_size)
    specs = {
        asked.name: replace(map_spec(asked), positions=None if asked.everywhere else control_positions(prompt))
        for asked in maps
    }
    flows = _flows(context, request, specs, options, cancelled)
    first = flows[maps[0].name]
    audit = _audit(context, settings, fact, request, maps, flows, options, cancelled)
    return FactRecord(
        fact=fact,
        status="traced",
        high=first.high_score,
        low=first.low_score,
        roles=tuple(first.roles),
        tokens=tuple(first.input_tokens),
        seed=request.seed,
        engine=first.settings.engine,
        batch_size=first.settings.batch_size,
        seconds=time.perf_counter() - begun,
        maps=tuple(MapResult.of(asked, flows[asked.name]) for asked in maps),
        audit=audit,
    )


def _flows(
    context: TracingContext,
    request: TraceRequest,
    specs: Mapping[str, MapSpec],
    options: RunOptions,
    cancelled: Callable[[], bool],
) -> Mapping[str, HiddenFlow]:
    flows: Mapping[str, HiddenFlow] = {}
    for update in trace_maps(context, request, specs, options, cancelled):
        flows = update.flows
    return flows


def _audit(
    context: TracingContext,
    settings: StudySettings,
    fact: Fact,
    request: TraceRequest,
    maps: Sequence[MapSettings],
    flows: Mapping[str, HiddenFlow],
    options: RunOptions,
    cancelled: Callable[[], bool],
) -> tuple[AuditedCell, ...]:
    """Some cells once more, by the full sweep; which ones follows from the seed and the fact."""
    chosen: dict[tuple[int, int], list[MapSettings]] = defaultdict(list)
    for asked in maps:
        for position, row in enumerate(flows[asked.name].scores.tolist()):
            for layer, score in enumerate(row):
                draw = derived_seed(settings.seed, fact.fact_id, "audit", asked.name, str(position), str(layer))
                if not math.isnan(score) and draw < settings.audit_share * 2**32:
                    chosen[position, layer].append(asked)
    audited = []
    for (position, layer), group in sorted(chosen.items()):
        specs = {
            asked.name: replace(map_spec(asked), positions=(position,), start_layer=layer, end_layer=layer + 1)
            for asked in group
        }
        for name, flow in _flows(context, request, specs, replace(options, engine="full"), cancelled).items():
            score, full_score = float(flows[name].scores[position, layer]), float(flow.scores[position, layer])
            audited.append(AuditedCell(name, flow.kind, position, layer, score, full_score))
    return tuple(audited)
