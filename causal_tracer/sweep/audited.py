"""A sweep that audits itself: a few cells of every map are computed again by the full sweep.

The first-use check compares the sweeps on a made-up prompt. The audit compares them on the prompt that is traced: on
cells chosen at random, at different tokens and layers, in one noise sample. Where a difference is larger than rounding
explains, the map is computed again by the full sweep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from causal_tracer.experiment.base_run import BaseRun, Watch, renumbered
from causal_tracer.metrics.metric import AnswerRank, Metric
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.runs import CleanRun
from causal_tracer.results.audit import Audit
from causal_tracer.sweep.check import EngineCheck, tolerance
from causal_tracer.sweep.engine import sweep
from causal_tracer.sweep.full import full_sweep
from causal_tracer.sweep.plan import Cell, SweepChunk, SweepPlan, reach

# Share of a sweep's work that its audit may add, as far as whole rows allow.
_SHARE = 0.02
_MOST_CELLS = 8


@dataclass(frozen=True, eq=False)
class Sweep:
    """One sweep to run and audit: what `engine.sweep` takes.

    Attributes:
        maps: For each cell of the plan, the number of its map [cells].
        seed: Seed that the audited cells are chosen with.
    """

    traced: TracedModel
    clean: CleanRun
    base: BaseRun
    plan: SweepPlan
    metric: Metric
    batch_size: int
    maps: Tensor
    seed: int


def audited_sweep(
    work: Sweep,
    engine_check: EngineCheck,
    cancelled: Callable[[], bool],
    *,
    audit: bool = True,
    watch: Watch | None = None,
    halved: Callable[[int], None] = lambda _size: None,
    restarted: Callable[[], None] = lambda: None,
    report: Callable[[int, Audit], None] = lambda _map, _audit: None,
) -> Iterator[SweepChunk]:
    """Compute the plan's cells and audit them; see `engine.sweep`.

    Args:
        work: What to compute.
        engine_check: The sweep to use. The full sweep needs no audit.
        cancelled: Called as the sweep runs; True stops it.
        audit: Whether to audit at all.
        watch: Called with the logits of every row.
        halved: Called with the smaller batch size where memory did not hold a batch.
        restarted: Called before maps are computed again.
        report: Called with each map's number and audit.

    Yields:
        Scores as they come, the last ones after the audit. Maps that fail it come once more: first as NaN, then as the
        full sweep's scores.
    """
    needed = audit and engine_check.mode is not None and len(work.plan.cells) > 0
    scores = torch.full((len(work.plan.cells), work.base.samples), torch.nan, dtype=torch.float32)
    left = torch.ones_like(scores, dtype=torch.bool)
    arguments = (work.traced, work.clean, work.base)
    held: list[SweepChunk] = []
    for chunk in sweep(engine_check, *arguments, work.plan, work.metric, work.batch_size, cancelled, watch, halved):
        scores[chunk.cells, chunk.samples] = chunk.scores
        left[chunk.cells, chunk.samples] = False
        if needed and not bool(left.any()):
            held.append(chunk)
        else:
            yield chunk
    if not needed:
        return
    failed = []
    for number in sorted(set(work.maps.tolist())):
        found = audit_scores(work, scores, number, cancelled)
        report(number, found)
        if found.recomputed:
            failed.append(number)
    yield from held
    if not failed:
        return
    restarted()
    again = torch.isin(work.maps, torch.tensor(failed)).nonzero()[:, 0]
    samples = torch.arange(work.base.samples).repeat(len(again))
    yield SweepChunk(
        again.repeat_interleave(work.base.samples), samples, torch.full((len(samples),), torch.nan, dtype=torch.float32)
    )
    plan = replace(work.plan, cells=tuple(work.plan.cells[cell] for cell in again.tolist()))
    full = EngineCheck(None, ())
    seen = renumbered(watch, again)
    for chunk in sweep(full, *arguments, plan, work.metric, work.batch_size, cancelled, seen, halved):
        yield replace(chunk, cells=again[chunk.cells])


def audit_scores(work: Sweep, scores: Tensor, number: int, cancelled: Callable[[], bool] = lambda: False) -> Audit:
    """Compare some cells of map `number` with the full sweep, in one sample.

    Args:
        work: The sweep that gave the scores.
        scores: The metric of each cell and sample [cells, samples].
        number: The map.
        cancelled: Called before the full sweep runs; True stops it.
    """
    generator = torch.Generator().manual_seed(work.seed)
    members = (work.maps == number).nonzero()[:, 0]
    chosen = members[_chosen([work.plan.cells[cell] for cell in members.tolist()], _count(work, members), generator)]
    sample = int(torch.randint(work.base.samples, (1,), generator=generator))
    plan = replace(work.plan, cells=tuple(work.plan.cells[cell] for cell in chosen.tolist()))
    expected = torch.full((len(chosen),), torch.nan, dtype=torch.float32)
    base = one_sample(work.base, sample)
    for chunk in full_sweep(work.traced, work.clean, base, plan, work.metric, work.batch_size, cancelled):
        expected[chunk.cells] = chunk.scores
    found = scores[chosen, sample]
    allowed = _allowed(work, expected, scores[members] - work.base.scores)
    largest = float((found - expected).abs().max())
    return Audit(
        cells=tuple((work.plan.cells[cell].position, work.plan.cells[cell].layer) for cell in chosen.tolist()),
        sample=sample,
        largest_difference=largest,
        allowed=allowed,
        recomputed=not largest <= allowed,  # true for cells that the sweep left out as well
    )


def one_sample(base: BaseRun, sample: int) -> BaseRun:
    """The base run of one of its samples."""
    part = slice(sample, sample + 1)
    sources = {
        name: {module: values if len(values) == 1 else values[part] for module, values in run.items()}
        for name, run in base.sources.items()
    }
    return replace(base, embeddings=base.embeddings[part], scores=base.scores[part], sources=sources)


def _chosen(cells: Sequence[Cell], count: int, generator: torch.Generator) -> Tensor:
    """Numbers of `count` cells, at random: first of tokens and layers that are not among them yet."""
    order = torch.randperm(len(cells), generator=generator).tolist()
    chosen: list[int] = []
    for tokens_too, layers_too in ((True, True), (True, False), (False, False)):
        tokens = {cells[number].position for number in chosen}
        layers = {cells[number].layer for number in chosen}
        for number in order:
            cell = cells[number]
            if len(chosen) == count or number in chosen:
                continue
            if (tokens_too and cell.position in tokens) or (layers_too and cell.layer in layers):
                continue
            chosen.append(number)
            tokens.add(cell.position)
            layers.add(cell.layer)
    return torch.tensor(chosen)


def _count(work: Sweep, members: Tensor) -> int:
    """How many cells to audit: as many full rows as `_SHARE` of the map's own work pays for, rounded up."""
    tokens, layers, samples = len(work.base.prompt), work.traced.n_layers, work.base.samples
    reads = work.plan.read_positions(tokens)
    first = work.base.prompt.subject_range[0]
    blocks = 0
    for number in members.tolist():
        found = reach(work.plan.cells[number], first, reads, layers, work.traced.tokens_meet_again)
        if found is not None:
            blocks += (tokens - found.first_token) * (layers - found.join)
    rows = _SHARE * blocks * samples / (tokens * layers)
    return max(1, min(_MOST_CELLS, math.ceil(rows), len(members)))


def _allowed(work: Sweep, expected: Tensor, effects: Tensor) -> float:
    """The largest difference that rounding explains, in units of the metric."""
    rounding, share = tolerance(work.traced)
    finite = expected[expected.isfinite()].abs()
    size = max(1.0, float(finite.max())) if len(finite) else 1.0
    known = effects[effects.isfinite()].abs()
    largest = float(known.max()) if len(known) else 0.0
    # Tokens of nearly equal logits change places.
    step = 1.0 if isinstance(work.metric, AnswerRank) else 0.0
    return rounding * size + share * largest + step
