"""A sweep that audits itself: a few cells of every map are computed again by the full sweep.

The first-use check compares the sweeps on a made-up prompt. The audit compares them on the prompt that is traced: on
random cells at different tokens and layers, in one noise sample. Where a difference is larger than rounding explains,
the whole map is computed again by the full sweep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from causal_tracer.experiment.base_run import BaseRun, Watch, renumbered
from causal_tracer.metrics.metric import AnswerRank
from causal_tracer.results.audit import Audit
from causal_tracer.sweep.check import EngineCheck, tolerance
from causal_tracer.sweep.engine import sweep
from causal_tracer.sweep.full import full_sweep
from causal_tracer.sweep.plan import Cell, Sweep, SweepChunk

# Share of a sweep's work that its audit may add, as far as whole rows allow.
_SHARE = 0.015
_MOST_CELLS = 6


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
        work: The sweep.
        engine_check: The engine to use. The full sweep needs no audit.
        cancelled: Called as the sweep runs; True stops it.
        audit: Whether to audit at all.
        watch: Called with the logits of every row.
        halved: Called with the smaller batch size where memory did not hold a batch.
        restarted: Called before maps are computed again.
        report: Called with each map's number and audit.

    Yields:
        Scores as they are computed, the last ones after the audit. Maps that fail it come once more: first as NaN, then
        as the full sweep's scores.
    """
    if not audit or engine_check.mode is None or not work.plan.cells:
        yield from sweep(engine_check, work, cancelled, watch, halved)
        return
    scores = torch.full((len(work.plan.cells), work.base.samples), torch.nan, dtype=torch.float32)
    left = torch.ones_like(scores, dtype=torch.bool)
    held: list[SweepChunk] = []
    for chunk in sweep(engine_check, work, cancelled, watch, halved):
        scores[chunk.cells, chunk.samples] = chunk.scores
        left[chunk.cells, chunk.samples] = False
        if bool(left.any()):
            yield chunk
        else:
            held.append(chunk)
    maps = torch.zeros(len(work.plan.cells), dtype=torch.long) if work.maps is None else work.maps
    failed = []
    for number in sorted(set(maps.tolist())):
        found = audit_scores(work, scores, number, cancelled)
        report(number, found)
        if found.recomputed:
            failed.append(number)
    yield from held
    if not failed:
        return
    restarted()
    again = torch.isin(maps, torch.tensor(failed)).nonzero()[:, 0]
    unknown = torch.full((len(again) * work.base.samples,), torch.nan, dtype=torch.float32)
    samples = torch.arange(work.base.samples).repeat(len(again))
    yield SweepChunk(again.repeat_interleave(work.base.samples), samples, unknown)
    for chunk in sweep(EngineCheck(None, ()), work.part(again), cancelled, renumbered(watch, again), halved):
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
    members = torch.arange(len(work.plan.cells))
    if work.maps is not None:
        members = members[work.maps == number]
    cells = [work.plan.cells[cell] for cell in members.tolist()]
    chosen = members[_chosen(cells, _count(work, cells), generator)]
    sample = int(torch.randint(work.base.samples, (1,), generator=generator))
    expected = torch.full((len(chosen),), torch.nan, dtype=torch.float32)
    part = replace(work.part(chosen), base=_one_sample(work.base, sample))
    for chunk in full_sweep(part, cancelled):
        expected[chunk.cells] = chunk.scores
    allowed = _allowed(work, expected, scores[members] - work.base.scores)
    largest = float((scores[chosen, sample] - expected).abs().max())
    return Audit(
        cells=tuple((cell.position, cell.layer) for cell in part.plan.cells),
        sample=sample,
        largest_difference=largest,
        allowed=allowed,
        recomputed=not largest <= allowed,  # true for cells that the sweep left out as well
    )


def _one_sample(base: BaseRun, sample: int) -> BaseRun:
    """Return the base run of one of its samples."""
    part = slice(sample, sample + 1)
    sources = {
        name: {module: values if len(values) == 1 else values[part] for module, values in run.items()}
        for name, run in base.sources.items()
    }
    return replace(base, embeddings=base.embeddings[part], scores=base.scores[part], sources=sources)


def _chosen(cells: Sequence[Cell], count: int, generator: torch.Generator) -> Tensor:
    """Return the numbers of `count` random cells, those at tokens and layers that are not among them yet first."""
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


def _count(work: Sweep, cells: Sequence[Cell]) -> int:
    """Return how many cells of a map to audit: as many full rows as `_SHARE` of its work pays for, rounded up."""
    tokens, layers = len(work.base.prompt), work.traced.n_layers
    reached = [found for cell in cells if (found := work.reach(cell)) is not None]
    blocks = sum((tokens - found.first_token) * (layers - found.join) for found in reached)
    rows = _SHARE * blocks * work.base.samples / (tokens * layers)
    return max(1, min(_MOST_CELLS, math.ceil(rows), len(cells)))


def _allowed(work: Sweep, expected: Tensor, effects: Tensor) -> float:
    """Return the largest difference that rounding explains, in units of the metric."""
    rounding, share = tolerance(work.traced)

    def largest(values: Tensor) -> float:
        return max(values[values.isfinite()].abs().tolist(), default=0.0)

    # Tokens of nearly equal logits swap ranks.
    step = 1.0 if isinstance(work.metric, AnswerRank) else 0.0
    return rounding * max(1.0, largest(expected)) + share * largest(effects) + step
