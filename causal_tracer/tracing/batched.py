"""Several prompts of equal length in one sweep, where launching many small passes costs more than the arithmetic.

Their samples are stacked: sample p·S + s of the sweep is sample s of prompt p. A pass depends on a prompt only through
its length, which they share, and through embeddings, clean activations and base run, which are given for each sample.
Token ids are those of the first prompt; whether the model looks at them beside its embedding is checked for each group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from causal_tracer.experiment.base_run import BaseRun, Watched, base_run
from causal_tracer.experiment.embeddings import corrupting
from causal_tracer.experiment.noise_levels import embedded_tokens
from causal_tracer.experiment.set_up import Experiment, TracingContext, set_up
from causal_tracer.metrics.values import metric_values
from causal_tracer.model.batch_size import default_batch_size
from causal_tracer.model.runs import read_logits
from causal_tracer.model.torch_state import in_standard_torch_state
from causal_tracer.request.records import MapSpec, RunOptions, SamplesUntil, TraceRequest
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.sweep.audited import audit_scores
from causal_tracer.sweep.engine import choose_engine, sweep
from causal_tracer.sweep.full import full_sweep
from causal_tracer.sweep.plan import Cell, Sweep, SweepChunk, SweepPlan, map_plan
from causal_tracer.tracing.maps import Results

_ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-3}
_HALF_ROUNDING = 0.5


def can_share_passes(request: TraceRequest, spec: MapSpec) -> bool:
    """Whether a request is of the plain kind that can share passes with others."""
    plain = request.direction == "restore" and request.elsewhere is None and spec.source == "clean"
    whole = spec.positions is None and not spec.subject_tokens_only and request.read is None and spec.severed is None
    short = request.answer is None and not request.top_tokens and not isinstance(request.samples, SamplesUntil)
    return plain and whole and short


@in_standard_torch_state
def trace_together(
    context: TracingContext,
    requests: Sequence[TraceRequest],
    spec: MapSpec,
    options: RunOptions,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> list[HiddenFlow]:
    """Trace one map of several prompts that ask for as many samples; those of equal length share passes.

    Raises:
        SettingsError, PromptError, TokenizerError, NumericsError, TraceCancelled: As in a trace of one of them.
    """
    experiments = [set_up(context, request) for request in requests]
    by_length: dict[tuple[int, int], list[int]] = {}
    for number, experiment in enumerate(experiments):
        batch_size = options.batch_size or default_batch_size(context.traced, len(experiment.sequence))
        by_length.setdefault((len(experiment.sequence), batch_size), []).append(number)
    flows: dict[int, HiddenFlow] = {}
    total = sum(len(_cells(experiment, spec)) * _samples(experiment) for experiment in experiments)
    done = 0
    for (_, batch_size), numbers in by_length.items():
        # Prompts whose subjects begin at one place compute nothing in vain.
        numbers.sort(key=lambda number: experiments[number].sequence.subject_range[0])
        each = len(_cells(experiments[numbers[0]], spec)) * _samples(experiments[numbers[0]])
        size = max(1, -(-batch_size * len(experiments[numbers[0]].sequence) // each))
        for start in range(0, len(numbers), size):
            group = numbers[start : start + size]
            shared = _Group([experiments[number] for number in group], spec, options, batch_size)
            for more in shared.run(cancelled):
                done += more
                progress(done, total)
            flows.update(zip(group, shared.flows(), strict=True))
    return [flows[number] for number in range(len(requests))]


def _samples(experiment: Experiment) -> int:
    return len(experiment.embeddings(0, _asked(experiment.request)))


def _asked(request: TraceRequest) -> int:
    return request.samples if isinstance(request.samples, int) else request.samples.step


def _cells(experiment: Experiment, spec: MapSpec) -> tuple[Cell, ...]:
    traced, prompt = experiment.context.traced, experiment.prompt
    layers = spec.layer_range(traced.n_layers)
    return map_plan(traced, prompt, spec.kind, spec.window, range(len(prompt)), layers).cells


class _Group:
    """Prompts of one length, traced together."""

    def __init__(self, experiments: Sequence[Experiment], spec: MapSpec, options: RunOptions, batch_size: int):
        self._spec, self._options = spec, options
        self._experiments = experiments
        self._batch_size = batch_size
        self._results = [Results(experiment, {"map": spec}, options, batch_size) for experiment in experiments]
        self._clean = [self._all_embeddings(experiment, None) for experiment in experiments]

    def flows(self) -> list[HiddenFlow]:
        """The prompts' maps."""
        return [results.flows()["map"] for results in self._results]

    def run(self, cancelled: Callable[[], bool]) -> Iterator[int]:
        """Compute the maps; how many restored runs are done is handed on each time."""
        if len(self._experiments) == 1 or not self._only_embeddings_know_tokens():
            for experiment, results in zip(self._experiments, self._results, strict=True):
                yield from self._sweep([experiment], [results], cancelled)
            return
        yield from self._sweep(self._experiments, self._results, cancelled)

    def _sweep(
        self, experiments: Sequence[Experiment], results: Sequence[Results], cancelled: Callable[[], bool]
    ) -> Iterator[int]:
        traced = experiments[0].context.traced
        sequence = replace(experiments[0].sequence, subject_range=(0, len(experiments[0].sequence)))
        corrupted = [e.embeddings(0, _asked(e.request)) for e in experiments]
        samples = len(corrupted[0])
        embeddings = torch.cat([self._all_embeddings(e, c) for e, c in zip(experiments, corrupted, strict=True)])
        scores = torch.full((len(embeddings),), torch.nan, dtype=torch.float32)

        def values(watched: Watched) -> Tensor:
            """Each row by its own prompt's metric."""
            found = torch.empty(len(watched.samples), dtype=torch.float32)
            for number, experiment in enumerate(experiments):
                rows = (watched.samples // samples == number).nonzero()[:, 0]
                if len(rows):
                    found[rows] = metric_values(experiment.metric, watched.logits[rows.to(watched.logits.device)])
            return found

        def keep(watched: Watched) -> None:
            scores[watched.samples] = values(watched)

        base, _ = base_run(traced, sequence, embeddings, _nothing, self._batch_size, watch=keep)
        names = experiments[0].clean.activations
        clean = {name: torch.stack([e.clean.activations[name] for e in experiments]) for name in names}
        base = BaseRun(base.prompt, base.embeddings, scores, {"clean": clean})
        engine_check = choose_engine(traced, self._options.engine, len(sequence))
        cells = _cells(experiments[0], self._spec)
        owned = [(0, cell) for cell in cells]
        for number, result in enumerate(results):
            result.begin(engine_check, scores[number * samples : (number + 1) * samples], owned, None)
        # Before the first corrupted token nothing can change.
        start = min(e.sequence.subject_range[0] for e in experiments)
        run = [number for number, cell in enumerate(cells) if cell.position >= start]
        collected = torch.full((len(experiments), len(cells), samples), torch.nan)

        def take(number: int, chunk: SweepChunk) -> None:
            collected[number, chunk.cells, chunk.samples] = chunk.scores
            results[number].take(torch.zeros_like(chunk.cells), chunk)

        for number in range(len(results)):
            for cell in (n for n in range(len(cells)) if cells[n].position < start):
                low = scores[number * samples : (number + 1) * samples]
                take(number, SweepChunk(torch.full((samples,), cell), torch.arange(samples), low))
        yield (len(cells) - len(run)) * samples * len(experiments)
        numbers = torch.tensor(run, dtype=torch.long)
        known = torch.full((len(run), len(embeddings)), torch.nan, dtype=torch.float32)

        def look(watched: Watched) -> None:
            known[watched.cells, watched.samples] = values(watched)

        def halved(size: int) -> None:
            for result in results:
                result.halved(size)

        plan = SweepPlan(tuple(cells[number] for number in run), experiments[0].reads)
        work = Sweep(traced, experiments[0].clean, base, plan, _nothing, self._batch_size)
        for chunk in sweep(engine_check, work, cancelled, look, halved):
            found = known[chunk.cells, chunk.samples]
            # Cells that change nothing are not run, and come with the base run's scores.
            found = torch.where(found.isnan(), chunk.scores, found)
            for number in range(len(results)):
                rows = chunk.samples // samples == number
                take(number, SweepChunk(numbers[chunk.cells[rows]], chunk.samples[rows] % samples, found[rows]))
            yield len(chunk.samples)
        if engine_check.mode is None:
            return
        for number, (experiment, result) in enumerate(zip(experiments, results, strict=True)):
            own = BaseRun(experiment.sequence, corrupted[number], scores[number * samples : (number + 1) * samples])
            self._audit(experiment, result, own, cells, collected[number], cancelled)

    def _audit(
        self,
        experiment: Experiment,
        result: Results,
        base: BaseRun,
        cells: tuple[Cell, ...],
        scores: Tensor,
        cancelled: Callable[[], bool],
    ) -> None:
        """Audit one prompt's map, and compute it again where it fails."""
        if not self._options.audit:
            return
        traced, clean, metric = experiment.context.traced, experiment.clean, experiment.metric
        plan = SweepPlan(cells, experiment.reads)
        work = Sweep(traced, clean, base, plan, metric, self._batch_size, seed=experiment.request.seed)
        audit = audit_scores(work, scores, 0, cancelled)
        result.audited(0, audit)
        if audit.recomputed:
            for chunk in full_sweep(work, cancelled):
                result.take(torch.zeros_like(chunk.cells), chunk)

    def _all_embeddings(self, experiment: Experiment, corrupted: Tensor | None) -> Tensor:
        """The embeddings of all tokens [samples, tokens, width], the subject's corrupted; clean [1, ...] for None."""
        clean = embedded_tokens(experiment.context.traced, experiment.sequence.input_ids)
        if corrupted is None:
            return clean[None]
        whole = clean.expand(len(corrupted), -1, -1).clone()
        whole[:, slice(*experiment.sequence.subject_range)] = corrupted
        return whole

    def _only_embeddings_know_tokens(self) -> bool:
        """Whether each prompt's embeddings say with the first one's token ids what the prompt itself says."""
        first = self._experiments[0]
        traced, rows = first.context.traced, torch.arange(len(self._experiments))
        sequence = replace(first.sequence, subject_range=(0, len(first.sequence)))
        edits = {traced.embedding: corrupting(torch.cat(self._clean), sequence, rows)}
        ids = torch.tensor(sequence.input_ids).expand(len(rows), -1)
        found = read_logits(traced, ids, edits, "clean")[:, 0].log_softmax(dim=-1).cpu()
        expected = torch.stack([e.clean.logits[0] for e in self._experiments]).log_softmax(dim=-1)
        best = expected.topk(min(8, expected.shape[-1])).indices
        difference = float((found.gather(-1, best) - expected.gather(-1, best)).abs().max())
        return difference <= _ROUNDING.get(traced.dtype, _HALF_ROUNDING)


def _nothing(logits: Tensor) -> Tensor:
    """A metric for runs whose rows are read one prompt at a time."""
    return torch.zeros(len(logits), dtype=torch.float32)
