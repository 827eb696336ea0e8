"""What a study will cost, before it is begun: its size by counting, its speed by tracing a few of its facts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from causal_tracer.errors import StudyError
from causal_tracer.experiment.set_up import TracingContext, prompt_for
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.study.facts import Fact, recall
from causal_tracer.study.records import MapSettings
from causal_tracer.study.settings import StudySettings, derived_seed, map_spec
from causal_tracer.study.tracing import control_positions, placebo_for, study_fact
from causal_tracer.sweep.plan import SweepPlan, map_plan, reach


@dataclass(frozen=True)
class Work:
    """The size of a part of a study.

    Attributes:
        cells: Cells of its maps.
        rows: Restored runs: cells times samples, without those that cannot change anything.
        flops: Floating-point operations that no exact sweep can leave out.
        audit_flops: Operations of the audit's full runs.
    """

    cells: int
    rows: int
    flops: float
    audit_flops: float

    def __add__(self, other: Work) -> Work:
        """Both together."""
        return Work(
            self.cells + other.cells,
            self.rows + other.rows,
            self.flops + other.flops,
            self.audit_flops + other.audit_flops,
        )


@dataclass(frozen=True)
class CostEstimate:
    """What a study will cost.

    Attributes:
        facts: Facts asked for.
        known: How many of them the model knows, and so will be traced.
        refused: How many cannot be traced at all.
        work: The size of all that is to be traced.
        tried: Facts that were traced to measure the speed.
        rate: Operations per second that they reached, audit included.
        memory: Peak memory of a device, in bytes, while they were traced.
        processes: Processes that share the work.
        hours: How long the study will take with these.
    """

    facts: int
    known: int
    refused: int
    work: Work
    tried: int
    rate: float
    memory: int
    processes: int
    hours: float

    def text(self) -> str:
        """The estimate for people."""
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
    """Count the work of the wanted facts, and trace a few of them to see how fast it goes; nothing is written.

    Args:
        context: The model.
        settings: The study's.
        facts: The whole set of facts, from which placebos come.
        wanted: The facts to trace.
        processes: Processes that will share the work, as fast as this one each.
        tries: Facts to trace. They are drawn by the seed from those of middling size.
        clock: Seconds; the study's own time is measured by the same one.

    Raises:
        StudyError: The model knows none of the facts, or none of those tried could be traced.
    """
    answers, refused = recall(context, wanted)
    known = [found.fact for found in answers if found.known]
    if not known:
        raise StudyError(
            f"The model knows none of these {len(wanted)} facts: its most probable next token is never the "
            "attribute's first. Give facts that it knows."
        )
    sizes = {fact.fact_id: fact_work(context, settings, fact) for fact in known}
    work = sum(sizes.values(), Work(0, 0, 0.0, 0.0))
    by_size = sorted(known, key=lambda fact: sizes[fact.fact_id].flops)
    middling = by_size[len(by_size) // 4 : max(len(by_size) * 3 // 4, len(by_size) // 4 + tries)]
    chosen = sorted(middling, key=lambda fact: derived_seed(settings.seed, fact.fact_id, "tried"))[:tries]
    # The first trace of a process also checks the engine: that is no part of what each fact takes.
    study_fact(context, replace(settings, samples=1), chosen[0], placebo_for(settings.seed, chosen[0], facts))
    seconds = flops = 0.0
    traced = 0
    memory = _MemoryWatch()
    for fact in chosen:
        begun = clock()
        record = study_fact(context, settings, fact, placebo_for(settings.seed, fact, facts))
        if record.status == "traced":
            seconds += clock() - begun
            flops += sizes[fact.fact_id].flops
            traced += 1
        memory.look()
    if not traced:
        raise StudyError(f"None of the {len(chosen)} facts tried could be traced; {record.cause}")
    rate = flops / seconds
    return CostEstimate(
        facts=len(wanted),
        known=len(known),
        refused=len(refused),
        work=work,
        tried=traced,
        rate=rate,
        memory=memory.peak,
        processes=processes,
        hours=work.flops / rate / processes / 3600,
    )


def fact_work(context: TracingContext, settings: StudySettings, fact: Fact) -> Work:
    """The size of one fact's maps and of their audit."""
    prompt = prompt_for(context, fact.prompt, fact.subject)
    return sum((_map_work(context, settings, prompt, asked) for asked in settings.maps()), Work(0, 0, 0.0, 0.0))


def _map_work(context: TracingContext, settings: StudySettings, prompt: Prompt, asked: MapSettings) -> Work:
    traced = context.traced
    positions = range(len(prompt)) if asked.everywhere else control_positions(prompt)
    spec = map_spec(asked)
    plan: SweepPlan = map_plan(
        traced, prompt, spec.kind, spec.window, positions, range(traced.n_layers), severed=spec.severed
    )
    block = 2.0 * _matrix_weights(traced.blocks) / traced.n_layers
    head = 2.0 * traced.d_model * traced.vocab_size
    reads = plan.read_positions(len(prompt))
    rows, flops = 0, 0.0
    for cell in plan.cells:
        reached = reach(cell, prompt.subject_range[0], reads, traced.n_layers, traced.tokens_meet_again)
        if reached is not None:
            rows += settings.samples
            tokens = len(prompt) - reached.first_token
            flops += settings.samples * ((traced.n_layers - reached.join) * tokens * block + head)
    # Each audited cell takes its restored runs and the corrupted ones.
    full = 2 * settings.samples * (traced.n_layers * len(prompt) * block + head)
    return Work(len(plan.cells), rows, flops, settings.audit_share * len(plan.cells) * full)


def _matrix_weights(modules: Sequence[Any]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters() if parameter.dim() > 1)


class _MemoryWatch:
    """The most memory held so far: a GPU's own count, or this process's resident set when looked at."""

    def __init__(self) -> None:
        self.peak = 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.look()

    def look(self) -> None:
        if torch.cuda.is_available():
            self.peak = max(self.peak, torch.cuda.max_memory_allocated())
        else:
            memory = psutil.Process().memory_info()
            # Windows knows the peak; elsewhere the set does not shrink much between looks.
            self.peak = max(self.peak, getattr(memory, "peak_wset", memory.rss))
