"""Tracing one fact of a study: a check that the model knows it, its maps, and an audit of some cells."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from causal_tracer.errors import CausalTracerError, TraceCancelled
from causal_tracer.experiment.set_up import TracingContext, prompt_for
from causal_tracer.prompts.decoding import token_text
from causal_tracer.request.records import MapSpec, OtherPrompt, RunOptions, TraceRequest
from causal_tracer.request.sites import SITES
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.study.counterfactuals import partner_for, second_prompt
from causal_tracer.study.facts import Fact, predict_facts
from causal_tracer.study.records import AuditedCell, FactRecord, MapResult
from causal_tracer.study.settings import StudySettings, derived_seed
from causal_tracer.tracing.loop import trace_maps


def study_fact(
    context: TracingContext,
    settings: StudySettings,
    fact: Fact,
    facts: Sequence[Fact],
    cancelled: Callable[[], bool] = lambda: False,
) -> FactRecord:
    """Trace one fact and return its record. A fact that is unknown to the model or fails has a record with the cause.

    Args:
        context: The model.
        settings: The study's settings.
        fact: The fact.
        facts: The whole set of facts, from which placebos and partners are drawn. It is the same for any limit, so that
            the draws do not depend on the limit.
        cancelled: Called during the sweep; True stops it.

    Raises:
        TraceCancelled: `cancelled` returned True.
    """
    try:
        answers, refused = predict_facts(context, [fact], settings.request)
        if refused:
            return FactRecord(fact, "failed", cause=refused[fact.fact_id])
        (found,) = answers
        if not found.known:
            answer = token_text(context.tokenizer, found.top_id)
            return FactRecord(fact, "unknown", cause=f"the model's answer is {answer!r}")
        return _traced(context, settings, fact, facts, found.answer_id, cancelled)
    except TraceCancelled:
        raise
    except (CausalTracerError, RuntimeError, MemoryError) as error:
        # torch raises RuntimeError, also for out of memory.
        first_line = str(error).partition("\n")[0]
        failed = FactRecord(fact, "failed", cause=f"{type(error).__name__}: {first_line}")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return failed


def placebo_for(seed: int, fact: Fact, facts: Sequence[Fact]) -> Fact | None:
    """Draw the fact whose activations the placebo restores: one of another relation if there is one.

    Returns:
        A fact with another attribute; None if there is none.
    """
    others = sorted((other for other in facts if other.attribute != fact.attribute), key=lambda other: other.fact_id)
    others = [other for other in others if other.relation != fact.relation] or others
    return others[derived_seed(seed, fact.fact_id, "placebo") % len(others)] if others else None


def _traced(
    context: TracingContext,
    settings: StudySettings,
    fact: Fact,
    facts: Sequence[Fact],
    answer_id: int,
    cancelled: Callable[[], bool],
) -> FactRecord:
    prompt = prompt_for(context, fact.prompt, fact.subject, settings.request.occurrence)
    placebo = placebo_for(settings.request.seed, fact, facts)
    partner = partner_for(context.tokenizer, settings.request.seed, prompt, fact, facts) if settings.pairs else None
    # noise=None takes the tracer's level: the study's noise rule was applied when the model was loaded.
    request = replace(
        settings.request,
        prompt=prompt,
        answer_id=answer_id,
        seed=settings.seed_of(fact.fact_id),
        noise=None,
        second=None if partner is None else second_prompt(prompt, partner.subject, settings.request.occurrence),
        placebo=None if placebo is None else OtherPrompt(placebo.prompt, placebo.subject, align="spans"),
    )
    specs = settings.maps_of(prompt)
    if placebo is None:
        specs = {name: spec for name, spec in specs.items() if spec.source != "placebo"}
    flows = _flows(context, request, specs, settings.options, cancelled)
    first = next(iter(flows.values()))
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
        maps=tuple(MapResult(name, flow.scores.numpy(), flow.standard_error.numpy()) for name, flow in flows.items()),
        audit=_audit(context, settings, fact, request, specs, flows, cancelled),
        partner="" if partner is None else partner.subject,
    )


def _flows(
    context: TracingContext,
    request: TraceRequest,
    specs: Mapping[str, MapSpec],
    options: RunOptions,
    cancelled: Callable[[], bool],
) -> Mapping[str, HiddenFlow]:
    (last,) = deque(trace_maps(context, request, specs, options, cancelled), maxlen=1)
    return last.flows


def _audit(
    context: TracingContext,
    settings: StudySettings,
    fact: Fact,
    request: TraceRequest,
    specs: Mapping[str, MapSpec],
    flows: Mapping[str, HiddenFlow],
    cancelled: Callable[[], bool],
) -> tuple[AuditedCell, ...]:
    """Compute some cells again by the full sweep. The seed and the fact determine which cells."""
    chosen: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name, flow in flows.items():
        for position, row in enumerate(flow.scores.tolist()):
            for layer, score in enumerate(row):
                draw = derived_seed(settings.request.seed, fact.fact_id, "audit", name, str(position), str(layer))
                if not math.isnan(score) and draw < settings.audit_share * 2**32:
                    chosen[position, layer].append(name)
    full = replace(settings.options, engine="full")
    audited = []
    for (position, layer), group in sorted(chosen.items()):
        cells = {
            # A map of spans has no positions, so all spans of the layer are computed again.
            name: replace(
                specs[name],
                positions=(position,) if SITES[specs[name].kind].rows == "tokens" else None,
                start_layer=layer,
                end_layer=layer + 1,
            )
            for name in group
        }
        for name, flow in _flows(context, request, cells, full, cancelled).items():
            score, full_score = float(flows[name].scores[position, layer]), float(flow.scores[position, layer])
            audited.append(AuditedCell(name, flow.kind, position, layer, score, full_score))
    return tuple(audited)
