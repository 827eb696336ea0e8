"""One trace from request to result: prompt, clean run, base run, sweep, HiddenFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from causal_tracer.arguments import instance
from causal_tracer.errors import SettingsError
from causal_tracer.experiment.set_up import Experiment, TracingContext, base_of_samples, set_up
from causal_tracer.experiment.sources import CORRUPTED, PLACEBO
from causal_tracer.model.batch_size import default_batch_size
from causal_tracer.model.torch_state import stepping_in_standard_torch_state
from causal_tracer.prompts.decoding import token_text
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.records import MapSpec, RunOptions, SamplesUntil, TraceRequest
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.sweep.audited import audited_sweep
from causal_tracer.sweep.engine import choose_engine
from causal_tracer.sweep.plan import Cell, Sweep, SweepPlan, map_plan, priority_order
from causal_tracer.sweep.top_token_watch import TopTokenWatch
from causal_tracer.tracing.maps import Results


@dataclass(frozen=True, eq=False)
class MapsUpdate:
    """Maps on their way, by the names that they were asked for with: the cells known so far, NaN in the others.

    Attributes:
        flows: The maps; complete in the last update.
        done: Restored runs done.
        total: Restored runs in all.
    """

    flows: Mapping[str, HiddenFlow]
    done: int
    total: int

    def __repr__(self) -> str:
        """How far the maps are, and each in a few lines."""
        lines = [f"MapsUpdate: {self.done} of {self.total} restored runs"]
        return "\n".join(lines + [f"{name}: {flow!r}" for name, flow in self.flows.items()])


@stepping_in_standard_torch_state
def trace_maps(
    context: TracingContext,
    request: TraceRequest,
    specs: Mapping[str, MapSpec],
    options: RunOptions | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[MapsUpdate]:
    """Trace one prompt for several maps in one sweep, which share clean run, noise and corrupted run.

    Args:
        context: The model.
        request: What is asked for.
        specs: The maps, by name.
        options: How the maps are computed; None takes the defaults.
        cancelled: Asked as the sweep goes; True stops it.

    Yields:
        One update before the first cell, and one each time cells have become known.

    Raises:
        SettingsError, PromptError, TokenizerError: The request does not fit the model.
        NumericsError: A run gave NaN or infinite logits.
        TraceCancelled: `cancelled` said so.
    """
    instance("request", request, TraceRequest)
    instance("specs", specs, Mapping)  # type: ignore[type-abstract]
    for name, spec in specs.items():
        instance(f"specs[{name!r}]", spec, MapSpec)
    options = RunOptions() if options is None else instance("options", options, RunOptions)
    for spec in specs.values():
        spec.layer_range(context.traced.n_layers)
    experiment = set_up(context, request)
    owned = _cells(experiment, specs)
    batch_size = options.batch_size or default_batch_size(context.traced, len(experiment.sequence))
    results = Results(experiment, specs, options, batch_size)
    wanted = request.samples
    if not isinstance(wanted, SamplesUntil):
        yield from _samples(experiment, specs, owned, results, 0, wanted, cancelled)
        return
    before: MapsUpdate | None = None
    for start in range(0, wanted.most, wanted.step):
        stop = min(start + wanted.step, wanted.most)
        for update in _samples(experiment, specs, owned, results, start, stop, cancelled):
            done = update.done + (before.done if before else 0)
            latest = MapsUpdate(update.flows, done, update.total + (before.total if before else 0))
            yield latest
        before = latest
        if results.samples < stop or all(flow.peak_width() <= wanted.width for flow in latest.flows.values()):
            return
    results.note(f"After {wanted.most} samples the interval of a peak is still wider than ±{wanted.width:g}.")
    yield MapsUpdate(results.flows(), before.done, before.total) if before else MapsUpdate(results.flows(), 0, 0)


def _cells(experiment: Experiment, specs: Mapping[str, MapSpec]) -> list[tuple[int, Cell]]:
    """All cells with the number of the map they belong to, the most telling tokens first."""
    traced, prompt, request = experiment.context.traced, experiment.prompt, experiment.request
    source = CORRUPTED if request.direction == "corrupt" else "clean"
    owned = []
    for plane, spec in enumerate(specs.values()):
        if spec.source == "placebo" and request.direction == "corrupt":
            raise SettingsError("A placebo is restored into the corrupted run. Leave out direction='corrupt'.")
        plan = map_plan(
            traced,
            prompt,
            spec.kind,
            spec.window,
            set(_positions(spec, prompt)),
            spec.layer_range(traced.n_layers),
            source=PLACEBO if spec.source == "placebo" else source,
            severed=spec.severed,
        )
        owned += [(plane, cell) for cell in plan.cells]
    order = priority_order(prompt)
    return sorted(owned, key=lambda item: order(item[1].position))


def _positions(spec: MapSpec, prompt: Prompt) -> tuple[int, ...]:
    """The tokens that a map has cells for."""
    positions = tuple(range(len(prompt))) if spec.positions is None else spec.positions
    if not positions or not all(0 <= position < len(prompt) for position in positions):
        raise SettingsError(
            f"positions={spec.positions} are not all tokens of the prompt, which has {len(prompt)}. Give numbers from "
            f"0 to {len(prompt) - 1}."
        )
    subject = range(*prompt.subject_range)
    return tuple(position for position in positions if position in subject or not spec.subject_tokens_only)


def _samples(
    experiment: Experiment,
    specs: Mapping[str, MapSpec],
    owned: list[tuple[int, Cell]],
    results: Results,
    start: int,
    stop: int,
    cancelled: Callable[[], bool],
) -> Iterator[MapsUpdate]:
    """The maps as more samples come in: one sweep."""
    traced, request = experiment.context.traced, experiment.request
    watch: TopTokenWatch | None = None
    embeddings = experiment.embeddings(start, stop)
    if request.top_tokens:
        tokenizer = experiment.context.tokenizer
        watch = TopTokenWatch(request.top_tokens, len(embeddings), lambda token: token_text(tokenizer, token))
    base, low_scores = base_of_samples(experiment, embeddings, specs.values(), results.batch_size, watch)
    engine_check = choose_engine(traced, results.options.engine, len(experiment.sequence))
    plan = SweepPlan(tuple(cell for _, cell in owned), experiment.reads)
    planes = torch.tensor([plane for plane, _ in owned], dtype=torch.long)
    results.begin(engine_check, low_scores, owned, watch)
    left = torch.ones(len(plan.cells), base.samples, dtype=torch.bool)
    yield MapsUpdate(results.flows(complete=not left.numel()), 0, left.numel())
    chunks = audited_sweep(
        Sweep(traced, experiment.clean, base, plan, experiment.metric, results.batch_size, planes, request.seed),
        engine_check,
        cancelled,
        audit=results.options.audit,
        watch=watch,
        halved=results.halved,
        restarted=results.begin_again,
        report=results.audited,
    )
    for chunk in chunks:
        results.take(planes[chunk.cells], chunk)
        left[chunk.cells, chunk.samples] = chunk.scores.isnan()
        remaining = int(left.sum())
        yield MapsUpdate(results.flows(complete=not remaining), left.numel() - remaining, left.numel())
