"""Sweeps of several prompts in shared passes.

Sharing is faster when launching many small passes costs more than their arithmetic. With S samples per prompt, sample
p·S + s of the shared sweep is sample s of prompt p. All prompts have the same length, and the embeddings and other runs
are given for each sample, so the passes can use the token ids of the first prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from causal_tracer.experiment.base_run import BaseRun, LogitsCallback, RowLogits
from causal_tracer.experiment.embeddings import corruption_edit
from causal_tracer.experiment.noise_levels import embedded_tokens
from causal_tracer.metrics.metric import Metric
from causal_tracer.metrics.values import GroupedMetric
from causal_tracer.model.runs import Activations, read_logits
from causal_tracer.sweep.check import EngineCheck
from causal_tracer.sweep.engine import sweep
from causal_tracer.sweep.plan import Cell, Sweep, SweepChunk, SweepPlan

_ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-3}
_HALF_ROUNDING = 0.5


def can_share_passes(works: Sequence[Sweep]) -> bool:
    """Return whether sweeps can share passes: equal cells, reads, prompt lengths and numbers of samples.

    This is not possible for a model that uses token ids outside its embedding.
    """
    return len({_form(work) for work in works}) == 1 and _only_embeddings_know_tokens(works)


def shared_sweep(
    works: Sequence[Sweep],
    engine_check: EngineCheck,
    cancelled: Callable[[], bool],
    logits_callbacks: Sequence[LogitsCallback | None],
    on_halved_batch: Callable[[int], None],
) -> Iterator[tuple[int, SweepChunk]]:
    """Compute one sweep, or several that can share passes; see `engine.sweep` for the arguments.

    Yields:
        The number of a sweep, and some of its scores.
    """
    if len(works) == 1:
        for chunk in sweep(engine_check, works[0], cancelled, logits_callbacks[0], on_halved_batch):
            yield 0, chunk
        return
    samples = works[0].base.samples
    numbers = torch.tensor([_numbers(work, works[0]) for work in works], dtype=torch.long)
    reached = torch.tensor([[work.reach(cell) is not None for cell in works[0].plan.cells] for work in works])
    # The shared sweep does not know the subjects' positions, so cells without effect in any prompt are skipped here.
    unchanged, run = (~reached.any(dim=0)).nonzero()[:, 0], reached.any(dim=0).nonzero()[:, 0]
    for number, work in enumerate(works):
        if len(unchanged):
            cells = numbers[number, unchanged].repeat_interleave(samples)
            low = work.base.scores.repeat(len(unchanged))
            yield number, SweepChunk(cells, torch.arange(samples).repeat(len(unchanged)), low)
    numbers = numbers[:, run]

    def distribute(computed: RowLogits) -> None:
        for number, one in enumerate(logits_callbacks):
            rows = (computed.samples // samples == number).nonzero()[:, 0]
            if one is not None and len(rows):
                logits = computed.logits[rows.to(computed.logits.device)]
                one(RowLogits(numbers[number, computed.cells[rows]], computed.samples[rows] % samples, logits))

    callback = distribute if any(one is not None for one in logits_callbacks) else None
    for chunk in sweep(engine_check, _stacked(works).part(run), cancelled, callback, on_halved_batch):
        owner = chunk.samples // samples
        for number in sorted(set(owner.tolist())):
            rows = owner == number
            cells = numbers[number, chunk.cells[rows]]
            yield number, SweepChunk(cells, chunk.samples[rows] % samples, chunk.scores[rows])


def _form(work: Sweep) -> tuple[object, ...]:
    """Return the properties that must be equal for sweeps to share passes."""
    runs = frozenset(work.base.sources)
    return len(work.base.prompt), work.base.samples, work.reads, work.batch_size, runs, frozenset(_named(work))


def _named(work: Sweep) -> list[tuple[int, Cell]]:
    """Return the cells, each with its map's number."""
    maps = [0] * len(work.plan.cells) if work.maps is None else work.maps.tolist()
    return list(zip(maps, work.plan.cells, strict=True))


def _numbers(work: Sweep, first: Sweep) -> list[int]:
    """Return the number in `work` of each cell of `first`. Different prompts order their cells differently."""
    places = {cell: number for number, cell in enumerate(_named(work))}
    return [places[cell] for cell in _named(first)]


def _stacked(works: Sequence[Sweep]) -> Sweep:
    """Return one sweep of all prompts' samples."""
    first = works[0]
    sources = {name: _joined([work.base.sources[name] for work in works]) for name in first.base.sources}
    if all(len(work.clean.input_ids) == len(first.base.prompt) for work in works):
        clean = [{name: values[None] for name, values in work.clean.activations.items()} for work in works]
        sources = {"clean": _joined(clean), **sources}
    base = BaseRun(
        prompt=replace(first.base.prompt, subject_range=(0, len(first.base.prompt))),
        embeddings=torch.cat([_all_embeddings(work) for work in works]),
        scores=torch.cat([work.base.scores for work in works]),
        sources=sources,
    )
    metric = GroupedMetric(tuple(cast(Metric, work.metric) for work in works), first.base.samples)
    return replace(first, base=base, plan=SweepPlan(first.plan.cells, first.reads), metric=metric)


def _joined(runs: Sequence[Activations]) -> Activations:
    """Return the runs' activations, concatenated over samples."""
    return {name: torch.cat([run[name] for run in runs]) for name in runs[0]}


def _all_embeddings(work: Sweep) -> Tensor:
    """Return all tokens' embeddings in the base run [samples, tokens, width], float32 on the CPU."""
    clean = embedded_tokens(work.traced, work.base.prompt.input_ids)
    whole = clean.expand(work.base.samples, -1, -1).clone()
    whole[:, slice(*work.base.prompt.subject_range)] = work.base.embeddings
    return whole


def _only_embeddings_know_tokens(works: Sequence[Sweep]) -> bool:
    """Check that each prompt's embeddings, run with the first prompt's token ids, give the prompt's own logits."""
    first, rows = works[0], torch.arange(len(works))
    traced, prompt = first.traced, replace(first.base.prompt, subject_range=(0, len(first.base.prompt)))
    clean = torch.stack([embedded_tokens(traced, work.base.prompt.input_ids) for work in works])
    ids = torch.tensor(prompt.input_ids).expand(len(rows), -1)
    edits = {traced.embedding: corruption_edit(clean, prompt, rows)}
    found = read_logits(traced, ids, edits, "clean", first.reads).log_softmax(dim=-1).cpu()
    own_ids = torch.tensor([work.base.prompt.input_ids for work in works])
    expected = read_logits(traced, own_ids, {}, "clean", first.reads).log_softmax(dim=-1).cpu()
    best = expected.topk(min(8, expected.shape[-1])).indices
    difference = float((found.gather(-1, best) - expected.gather(-1, best)).abs().max())
    return difference <= _ROUNDING.get(traced.dtype, _HALF_ROUNDING)
