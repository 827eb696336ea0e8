"""An estimate of a study's cost: its size is counted, and its speed is measured on a few of its facts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import psutil
import torch

from causal_tracer.errors import StudyError
from causal_tracer.experiment.set_up import TracingContext, prompt_for
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.records import MapSpec
from causal_tracer.study.facts import Fact, predict_facts
from causal_tracer.study.settings import StudySettings, derived_seed
from causal_tracer.study.tracing import study_fact
from causal_tracer.sweep.plan import reach
from causal_tracer.tracing.cells import map_source, spec_plan


class Work(NamedTuple):
    """The size of a study or of a part of it.

    Attributes:
        cells: Number of cells in the maps.
        rows: Number of restored runs: cells times samples, without cells that cannot change the output.
        flops: Floating-point operations that an exact sweep needs at least.
        audit_flops: Floating-point operations of the audit's runs.
    """

    cells: int
    rows: int
    flops: float
    audit_flops: float


@dataclass(frozen=True)
class CostEstimate:
    """The estimated cost of a study.

    Attributes:
        facts: Number of facts in the study.
        known: Number of facts that the model knows. Only these are traced.
        refused: Number of facts that cannot be traced, for example because the subject is not found.
        work: The size of the study.
        tried: Number of facts that were traced to measure the speed.
        rate: Floating-point operations of the maps (`work.flops`) per second, measured with the audit's time included.
        memory: Peak memory of a device, in bytes.
        processes: Number of processes that share the work.
    """

    facts: int
    known: int
    refused: int
    work: Work
    tried: int
    rate: float
    memory: int
    processes: int

    @property
    def hours(self) -> float:
        """The study's duration in hours, with `processes` processes."""
        return self.work.flops / self.rate / self.processes / 3600

    def text(self) -> str:
        """Return the estimate as lines of text."""
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return "\n".join(
            [
                f"facts    {self.known} known of {self.facts}"
                + (f", {self.refused} cannot be traced" if self.refused else ""),
                f"cells    {self.work.cells:,}",
                f"rows     {self.work.rows:,} restored runs",
                f"FLOPs    {self.work.flops:.3g} for the maps, {self.work.audit_flops:.3g} for the audit",
                f"memory   {self.memory / 2**30:.1f} GiB per process and device",
                f"hours    {self.hours:.2f} with {processes}, at {self.rate / 1e9:.1f} GFLOP/s each "
                f"(measured on {self.tried} facts)",
            ]
        )


def estimate_cost(
    context: TracingContext,
    settings: StudySettings,
    facts: Sequence[Fact],
    wanted: Sequence[Fact],
    *,
    processes: int = 1,
    tries: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> CostEstimate:
    """Count the work of the wanted facts, and trace a few of them to measure the speed. Writes nothing.

    Args:
        context: The model.
        settings: The study's settings.
        facts: The whole set of facts, from which placebos and partners are drawn.
        wanted: The facts that the study will trace.
        processes: Number of processes that will share the work, each as fast as this one.
        tries: Number of facts to trace now. The seed draws them from the facts of medium size.
        clock: Returns the time in seconds.

    Raises:
        StudyError: The model knows none of the facts, or none of the tried facts could be traced.
    """
    answers, refused = predict_facts(context, wanted, settings.request)
    known = [found.fact for found in answers if found.known]
    if not known:
        raise StudyError(
            f"The model knows none of these {len(wanted)} facts: its most probable next token is never the first token "
            "of the attribute. Give facts that it knows."
        )
    sizes = {fact: fact_work(context, settings, fact) for fact in known}
    by_size = sorted(known, key=lambda fact: sizes[fact].flops)
    middling = by_size[len(by_size) // 4 : max(len(by_size) * 3 // 4, len(by_size) // 4 + tries)]
    chosen = sorted(middling, key=lambda fact: derived_seed(settings.request.seed, fact.fact_id, "tried"))[:tries]
    # The first trace of a process also checks the engine. That time must not count for each fact.
    once = replace(settings, request=replace(settings.request, samples=1))
    study_fact(context, once, chosen[0], facts)
    seconds: dict[Fact, float] = {}
    memory = 0
    for fact in chosen:
        begun = clock()
        record = study_fact(context, settings, fact, facts)
        if record.status == "traced":
            seconds[fact] = clock() - begun
        memory = max(memory, _memory_used())
    if not seconds:
        raise StudyError(f"None of the {len(chosen)} tried facts could be traced. The last error: {record.cause}")
    return CostEstimate(
        facts=len(wanted),
        known=len(known),
        refused=len(refused),
        work=_together(sizes.values()),
        tried=len(seconds),
        rate=sum(sizes[fact].flops for fact in seconds) / sum(seconds.values()),
        memory=memory,
        processes=processes,
    )


def fact_work(context: TracingContext, settings: StudySettings, fact: Fact) -> Work:
    """Count the work of one fact's maps and of their audit."""
    prompt = prompt_for(context, fact.prompt, fact.subject, settings.request.occurrence)
    return _together(_map_work(context, settings, prompt, spec) for spec in settings.maps_of(prompt).values())


def _together(parts: Iterable[Work]) -> Work:
    return Work(*map(sum, zip(*parts, strict=True)))


def _map_work(context: TracingContext, settings: StudySettings, prompt: Prompt, spec: MapSpec) -> Work:
    traced = context.traced
    plan = spec_plan(traced, prompt, spec, map_source(spec, settings.request))
    block = 2.0 * _matrix_weights(traced.blocks) / traced.n_layers
    head = 2.0 * traced.d_model * traced.vocab_size
    reads = plan.read_positions(len(prompt))
    rows, flops = 0, 0.0
    for cell in plan.cells:
        reached = reach(cell, prompt.subject_range[0], reads, traced.n_layers, traced.outputs_reach_later_tokens)
        if reached is not None:
            rows += settings.samples
            tokens = len(prompt) - reached.first_token
            flops += settings.samples * ((traced.n_layers - reached.join) * tokens * block + head)
    # An audited cell needs its restored runs and the corrupted ones, all of them full.
    full = 2 * settings.samples * (traced.n_layers * len(prompt) * block + head)
    return Work(len(plan.cells), rows, flops, settings.audit_share * len(plan.cells) * full)


def _matrix_weights(modules: Sequence[Any]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters() if parameter.dim() > 1)


def _memory_used() -> int:
    """Return the peak memory of the GPU, or without one the memory of this process, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    memory = psutil.Process().memory_info()
    # Only Windows reports the peak. Elsewhere the resident set is close to it: it hardly shrinks between facts.
    return int(getattr(memory, "peak_wset", memory.rss))
