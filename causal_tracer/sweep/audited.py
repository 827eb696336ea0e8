"""Sweeps with an audit: a few cells of every map are recomputed by the full sweep.

The first-use check compares the sweeps on a made-up prompt. The audit compares them on the traced prompt, at random
cells of different tokens and layers, in one noise sample. If a difference is larger than rounding explains, the full
sweep recomputes the whole map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from causal_tracer.experiment.base_run import BaseRun, LogitsCallback, renumbered
from causal_tracer.metrics.metric import AnswerRank
from causal_tracer.results.audit import Audit
from causal_tracer.sweep.check import EngineCheck, tolerance
from causal_tracer.sweep.engine import run_sweep
from causal_tracer.sweep.full import full_sweep
from causal_tracer.sweep.plan import Cell, Sweep, SweepChunk
from causal_tracer.sweep.shared import shared_sweep

# The audit's cost as a share of the sweep's, rounded up to whole rows.
_SHARE = 0.015
_MOST_CELLS = 6


def audited_sweep(
    sweeps: Sequence[Sweep],
    engine_check: EngineCheck,
    cancelled: Callable[[], bool],
    *,
    audit: bool = True,
    logits_callbacks: Sequence[LogitsCallback | None] = (None,),
    on_halved_batch: Callable[[int], None] = lambda _size: None,
    on_restart: Callable[[int], None] = lambda _sweep: None,
    on_audit: Callable[[int, int, Audit], None] = lambda _sweep, _map, _audit: None,
) -> Iterator[tuple[int, SweepChunk]]:
    """Compute and audit the cells of one sweep, or of several that can share passes; see `shared_sweep`.

    Args:
        works: The sweeps.
        engine_check: The engine to use. The full sweep is not audited.
        cancelled: Called between batches; returning True stops the sweeps.
        audit: Whether to audit.
        logits_callbacks: For each sweep, a callback for the logits of every row.
        on_halved_batch: Called with the new batch size when a batch did not fit in memory.
        on_restart: Called with a sweep's number before maps of it are recomputed.
        on_audit: Called with (number of the sweep, number of the map, audit) for each map.

    Yields:
        The number of a sweep, and scores as they are computed. The last scores of a sweep follow its audit. Maps that
        fail the audit are yielded again, first as NaN, then with the full sweep's scores.
    """
    chunks = shared_sweep(sweeps, engine_check, cancelled, logits_callbacks, on_halved_batch)
    if not audit or engine_check.mode is None:
        yield from chunks
        return
    shapes = [(len(sweep.plan.cells), sweep.base.samples) for sweep in sweeps]
    scores = [torch.full(shape, torch.nan, dtype=torch.float32) for shape in shapes]
    left = [torch.ones(shape, dtype=torch.bool) for shape in shapes]
    held: list[tuple[int, SweepChunk]] = []
    for number, chunk in chunks:
        scores[number][chunk.cells, chunk.samples] = chunk.scores
        left[number][chunk.cells, chunk.samples] = False
        if bool(left[number].any()):
            yield number, chunk
        else:
            held.append((number, chunk))
    for number, chunk in held:
        failed = []
        for map_number in sorted(set(_maps(sweeps[number]).tolist())):
            found = audit_scores(sweeps[number], scores[number], map_number, cancelled)
            on_audit(number, map_number, found)
            if found.recomputed:
                failed.append(map_number)
        yield number, chunk
        if failed:
            on_restart(number)
            for again in _computed_again(sweeps[number], failed, cancelled, logits_callbacks[number], on_halved_batch):
                yield number, again


def _computed_again(
    sweep: Sweep,
    failed: Sequence[int],
    cancelled: Callable[[], bool],
    on_logits: LogitsCallback | None,
    on_halved_batch: Callable[[int], None],
) -> Iterator[SweepChunk]:
    """Yield the maps with the numbers in `failed` as NaN, and then with the full sweep's scores."""
    again = torch.isin(_maps(sweep), torch.tensor(failed)).nonzero()[:, 0]
    unknown = torch.full((len(again) * sweep.base.samples,), torch.nan, dtype=torch.float32)
    samples = torch.arange(sweep.base.samples).repeat(len(again))
    yield SweepChunk(again.repeat_interleave(sweep.base.samples), samples, unknown)
    for chunk in run_sweep(
        EngineCheck(None, ()), sweep.part(again), cancelled, renumbered(on_logits, again), on_halved_batch
    ):
        yield replace(chunk, cells=again[chunk.cells])


def _maps(sweep: Sweep) -> Tensor:
    """Return each cell's map number [cells]."""
    return torch.zeros(len(sweep.plan.cells), dtype=torch.long) if sweep.maps is None else sweep.maps


def audit_scores(sweep: Sweep, scores: Tensor, number: int, cancelled: Callable[[], bool] = lambda: False) -> Audit:
    """Compare some cells of map `number` with the full sweep, in one sample.

    Args:
        sweep: The sweep that the scores are from.
        scores: The metric of each cell and sample [cells, samples].
        number: The number of the map.
        cancelled: Called between batches; returning True stops the full sweep.
    """
    generator = torch.Generator().manual_seed(sweep.seed)
    members = (_maps(sweep) == number).nonzero()[:, 0]
    cells = [sweep.plan.cells[cell] for cell in members.tolist()]
    chosen = members[_chosen(cells, _count(sweep, cells), generator)]
    sample = int(torch.randint(sweep.base.samples, (1,), generator=generator))
    expected = torch.full((len(chosen),), torch.nan, dtype=torch.float32)
    part = replace(sweep.part(chosen), base=_one_sample(sweep.base, sample))
    for chunk in full_sweep(part, cancelled):
        expected[chunk.cells] = chunk.scores
    allowed = _allowed(sweep, expected, scores[members] - sweep.base.scores)
    largest = float((scores[chosen, sample] - expected).abs().max())
    return Audit(
        cells=tuple((cell.position, cell.layer) for cell in part.plan.cells),
        sample=sample,
        largest_difference=largest,
        allowed=allowed,
        recomputed=not largest <= allowed,  # true for cells that the sweep left out as well
    )


def _one_sample(base: BaseRun, sample: int) -> BaseRun:
    """Return the part of a base run that belongs to one sample."""
    part = slice(sample, sample + 1)
    sources = {
        name: {module: values if len(values) == 1 else values[part] for module, values in run.items()}
        for name, run in base.sources.items()
    }
    return replace(base, embeddings=base.embeddings[part], scores=base.scores[part], sources=sources)


def _chosen(cells: Sequence[Cell], count: int, generator: torch.Generator) -> Tensor:
    """Return the numbers of `count` random cells, at different tokens and layers as far as possible."""
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


def _count(sweep: Sweep, cells: Sequence[Cell]) -> int:
    """Return the number of cells of a map to audit, so that their full rows cost `_SHARE` of the map's work."""
    tokens, layers = len(sweep.base.prompt), sweep.traced.n_layers
    reached = [found for cell in cells if (found := sweep.reach(cell)) is not None]
    blocks = sum((tokens - found.first_token) * (layers - found.join) for found in reached)
    rows = _SHARE * blocks * sweep.base.samples / (tokens * layers)
    return max(1, min(_MOST_CELLS, math.ceil(rows), len(cells)))


def _allowed(sweep: Sweep, expected: Tensor, effects: Tensor) -> float:
    """Return the largest difference that rounding explains, in units of the metric."""
    rounding, share = tolerance(sweep.traced)

    def largest(values: Tensor) -> float:
        return max(values[values.isfinite()].abs().tolist(), default=0.0)

    # Rounding swaps the ranks of tokens with nearly equal logits.
    step = 1.0 if isinstance(sweep.metric, AnswerRank) else 0.0
    return rounding * max(1.0, largest(expected)) + share * largest(effects) + step
