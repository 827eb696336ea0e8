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
from causal_tracer.sweep.engine import run_sweep
from causal_tracer.sweep.plan import Cell, Sweep, SweepChunk, SweepPlan

_ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-3}
_HALF_ROUNDING = 0.5


def can_share_passes(sweeps: Sequence[Sweep]) -> bool:
    """Return whether sweeps can share passes: equal cells, reads, prompt lengths and numbers of samples.

    This is not possible for a model that uses token ids outside its embedding.
    """
    return len({_form(sweep) for sweep in sweeps}) == 1 and _only_embeddings_know_tokens(sweeps)


def shared_sweep(
    sweeps: Sequence[Sweep],
    engine_check: EngineCheck,
    cancelled: Callable[[], bool],
    logits_callbacks: Sequence[LogitsCallback | None],
    on_halved_batch: Callable[[int], None],
) -> Iterator[tuple[int, SweepChunk]]:
    """Compute one sweep, or several that can share passes; see `engine.run_sweep` for the arguments.

    Yields:
        The number of a sweep, and some of its scores.
    """
    if len(sweeps) == 1:
        for chunk in run_sweep(engine_check, sweeps[0], cancelled, logits_callbacks[0], on_halved_batch):
            yield 0, chunk
        return
    samples = sweeps[0].base.samples
    numbers = torch.tensor([_numbers(sweep, sweeps[0]) for sweep in sweeps], dtype=torch.long)
    reached = torch.tensor([[sweep.reach(cell) is not None for cell in sweeps[0].plan.cells] for sweep in sweeps])
    # The shared sweep does not know the subjects' positions, so cells without effect in any prompt are skipped here.
    unchanged, run = (~reached.any(dim=0)).nonzero()[:, 0], reached.any(dim=0).nonzero()[:, 0]
    for number, sweep in enumerate(sweeps):
        if len(unchanged):
            cells = numbers[number, unchanged].repeat_interleave(samples)
            low = sweep.base.scores.repeat(len(unchanged))
            yield number, SweepChunk(cells, torch.arange(samples).repeat(len(unchanged)), low)
    numbers = numbers[:, run]

    def distribute(computed: RowLogits) -> None:
        for number, one in enumerate(logits_callbacks):
            rows = (computed.samples // samples == number).nonzero()[:, 0]
            if one is not None and len(rows):
                logits = computed.logits[rows.to(computed.logits.device)]
                one(RowLogits(numbers[number, computed.cells[rows]], computed.samples[rows] % samples, logits))

    callback = distribute if any(one is not None for one in logits_callbacks) else None
    for chunk in run_sweep(engine_check, _stacked(sweeps).part(run), cancelled, callback, on_halved_batch):
        owner = chunk.samples // samples
        for number in sorted(set(owner.tolist())):
            rows = owner == number
            cells = numbers[number, chunk.cells[rows]]
            yield number, SweepChunk(cells, chunk.samples[rows] % samples, chunk.scores[rows])


def _form(sweep: Sweep) -> tuple[object, ...]:
    """Return the properties that must be equal for sweeps to share passes."""
    runs = frozenset(sweep.base.sources)
    return len(sweep.base.prompt), sweep.base.samples, sweep.reads, sweep.batch_size, runs, frozenset(_named(sweep))


def _named(sweep: Sweep) -> list[tuple[int, Cell]]:
    """Return the cells, each with its map's number."""
    maps = [0] * len(sweep.plan.cells) if sweep.maps is None else sweep.maps.tolist()
    return list(zip(maps, sweep.plan.cells, strict=True))


def _numbers(sweep: Sweep, first: Sweep) -> list[int]:
    """Return the number in `sweep` of each cell of `first`. Different prompts order their cells differently."""
    places = {cell: number for number, cell in enumerate(_named(sweep))}
    return [places[cell] for cell in _named(first)]


def _stacked(sweeps: Sequence[Sweep]) -> Sweep:
    """Return one sweep of all prompts' samples."""
    first = sweeps[0]
    sources = {name: _joined([sweep.base.sources[name] for sweep in sweeps]) for name in first.base.sources}
    if all(len(sweep.clean.input_ids) == len(first.base.prompt) for sweep in sweeps):
        clean = [{name: values[None] for name, values in sweep.clean.activations.items()} for sweep in sweeps]
        sources = {"clean": _joined(clean), **sources}
    base = BaseRun(
        prompt=replace(first.base.prompt, subject_range=(0, len(first.base.prompt))),
        embeddings=torch.cat([_all_embeddings(sweep) for sweep in sweeps]),
        scores=torch.cat([sweep.base.scores for sweep in sweeps]),
        sources=sources,
    )
    metric = GroupedMetric(tuple(cast(Metric, sweep.metric) for sweep in sweeps), first.base.samples)
    return replace(first, base=base, plan=SweepPlan(first.plan.cells, first.reads), metric=metric)


def _joined(runs: Sequence[Activations]) -> Activations:
    """Return the runs' activations, concatenated over samples."""
    return {name: torch.cat([run[name] for run in runs]) for name in runs[0]}


def _all_embeddings(sweep: Sweep) -> Tensor:
    """Return all tokens' embeddings in the base run [samples, tokens, width], float32 on the CPU."""
    clean = embedded_tokens(sweep.traced, sweep.base.prompt.input_ids)
    whole = clean.expand(sweep.base.samples, -1, -1).clone()
    whole[:, slice(*sweep.base.prompt.subject_range)] = sweep.base.embeddings
    return whole


def _only_embeddings_know_tokens(sweeps: Sequence[Sweep]) -> bool:
    """Check that each prompt's embeddings, run with the first prompt's token ids, give the prompt's own logits."""
    first, rows = sweeps[0], torch.arange(len(sweeps))
    traced, prompt = first.traced, replace(first.base.prompt, subject_range=(0, len(first.base.prompt)))
    clean = torch.stack([embedded_tokens(traced, sweep.base.prompt.input_ids) for sweep in sweeps])
    ids = torch.tensor(prompt.input_ids).expand(len(rows), -1)
    edits = {traced.embedding: corruption_edit(clean, prompt, rows)}
    found = read_logits(traced, ids, edits, "clean", first.reads).log_softmax(dim=-1).cpu()
    own_ids = torch.tensor([sweep.base.prompt.input_ids for sweep in sweeps])
    expected = read_logits(traced, own_ids, {}, "clean", first.reads).log_softmax(dim=-1).cpu()
    best = expected.topk(min(8, expected.shape[-1])).indices
    difference = float((found.gather(-1, best) - expected.gather(-1, best)).abs().max())
    return difference <= _ROUNDING.get(traced.dtype, _HALF_ROUNDING)
