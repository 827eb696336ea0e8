"""The trace loop, from requests to maps: prompt, clean run, base run, sweep, `HiddenFlow`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causal_tracer.arguments import as_list, instance
from causal_tracer.experiment.samples import run_samples
from causal_tracer.experiment.set_up import TracingContext, prompt_for, set_up
from causal_tracer.model.batch_size import default_batch_size
from causal_tracer.model.torch_state import stepping_in_standard_torch_state
from causal_tracer.prompts.decoding import token_text
from causal_tracer.request.records import MapSpec, RunOptions, SamplesUntil, TraceRequest
from causal_tracer.request.sites import KINDS, SITES
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.sweep.audited import audited_sweep
from causal_tracer.sweep.check import EngineCheck
from causal_tracer.sweep.engine import choose_engine
from causal_tracer.sweep.plan import Sweep, SweepChunk, SweepPlan
from causal_tracer.sweep.shared import can_share_passes
from causal_tracer.sweep.top_token_collector import TopTokenCollector
from causal_tracer.tracing.cells import cells_of_maps
from causal_tracer.tracing.maps import MapBuilder


@dataclass(frozen=True, eq=False)
class MapsUpdate:
    """The maps of one prompt during a trace. Cells that are not computed yet are NaN.

    Attributes:
        flows: The maps by the names in `specs`. A prompt's last update has its complete maps.
        done: Number of restored runs done, for all prompts.
        total: Total number of restored runs, for all prompts.
        request: The number of the request that the maps belong to.
    """

    flows: Mapping[str, HiddenFlow]
    done: int
    total: int
    request: int = 0

    def __repr__(self) -> str:
        """Return the progress, and each map in a few lines."""
        lines = [f"MapsUpdate: {self.done} of {self.total} restored runs"]
        return "\n".join(lines + [f"{name}: {flow!r}" for name, flow in self.flows.items()])


@stepping_in_standard_torch_state
def trace_maps(
    context: TracingContext,
    requests: TraceRequest | Sequence[TraceRequest],
    specs: Mapping[str, MapSpec],
    options: RunOptions | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[MapsUpdate]:
    """Trace one or several requests. The maps of a request share one sweep, its clean run, noise and corrupted run.

    On a GPU, prompts of equal length share forward passes.

    Args:
        context: The model.
        requests: One request, or several.
        specs: The maps to compute for each request, by name.
        options: How the maps are computed; None takes the defaults.
        cancelled: Called between batches; returning True stops the sweep.

    Yields:
        For each request an update before its first cell, and further ones as cells are computed. The last one is
        complete.

    Raises:
        SettingsError, PromptError, TokenizerError: A request does not fit the model.
        ModelStructureError: A map is of heads or knockouts, and the model's attention heads cannot be separated or its
            attention cannot be blocked.
        NumericsError: A run gave NaN or infinite logits.
        TraceCancelled: `cancelled` returned True.
    """
    given = [requests] if isinstance(requests, TraceRequest) else as_list("requests", requests)
    asked = [instance("Each of requests", request, TraceRequest) for request in given]
    instance("specs", specs, Mapping)  # type: ignore[type-abstract]
    for name, spec in specs.items():
        instance(f"specs[{name!r}]", spec, MapSpec)
    options = RunOptions() if options is None else instance("options", options, RunOptions)
    for spec in specs.values():
        spec.layer_range(context.traced.n_layers)
    before, waiting = 0, len(asked)
    for group in _groups(context, asked, specs, options):
        traces = [_Trace(context, asked[number], specs, options) for number in group]
        waiting -= len(group)
        update = None
        for update in _traced(traces, cancelled):
            # The remaining requests are assumed to need as many runs each as this group's.
            total = before + update.total + update.total * waiting // len(group)
            yield MapsUpdate(update.flows, before + update.done, total, group[update.request])
        before += update.done if update else 0


def _groups(
    context: TracingContext, requests: Sequence[TraceRequest], specs: Mapping[str, MapSpec], options: RunOptions
) -> list[list[int]]:
    """Return groups of request numbers; the requests of a group are traced together."""
    prompts = [prompt_for(context, each.prompt, each.subject, each.occurrence) for each in requests]
    if len(requests) == 1 or not sharing_pays(context):
        return [[number] for number in range(len(requests))]
    groups: dict[object, list[int]] = {}
    # Prompts with the same subject start skip the same cells.
    for number in sorted(range(len(requests)), key=lambda number: prompts[number].subject_range[0]):
        samples, tokens = requests[number].samples, len(prompts[number])
        if isinstance(samples, SamplesUntil):
            groups[number] = [number]
            continue
        batch_size = options.batch_size or default_batch_size(context.traced, tokens)
        rows = len(specs) * context.traced.n_layers * samples
        place = tokens, samples, requests[number].direction
        shared = groups.setdefault(place, [])
        # A group is complete once the rows of one token, over all its prompts, fill a batch.
        if len(shared) * rows >= batch_size:
            groups[number] = groups.pop(place)
            shared = groups.setdefault(place, [])
        shared.append(number)
    return sorted(groups.values())


def sharing_pays(context: TracingContext) -> bool:
    """Return whether sharing passes is faster: on GPUs, where launching a pass costs more than its arithmetic."""
    return context.traced.input_device.type == "cuda"


class _Trace:
    """The state of one request while its maps are computed.

    Attributes:
        maps: The maps so far.
        engine_check: The engine that computes the maps.
        collector: Collects the most probable tokens, if they are requested.
        runs: Number of restored runs of the current samples.
    """

    def __init__(
        self, context: TracingContext, request: TraceRequest, specs: Mapping[str, MapSpec], options: RunOptions
    ):
        self._experiment = set_up(context, request, {*KINDS, *(spec.kind for spec in specs.values())})
        self._specs = specs
        self._cells = cells_of_maps(self._experiment, specs)
        self._map_numbers = torch.tensor([map_number for map_number, _ in self._cells], dtype=torch.long)
        tokens = len(self._experiment.base_input.sequence)
        batch_size = options.batch_size or default_batch_size(context.traced, tokens)
        self.engine_check: EngineCheck = choose_engine(
            context.traced,
            options.engine,
            tokens,
            knockout=any(SITES[spec.kind].blocks for spec in specs.values()),
        )
        self.maps = MapBuilder(self._experiment, specs, options, batch_size)
        self.collector: TopTokenCollector | None = None
        self.runs = 0
        self._left: Tensor = torch.empty(0, dtype=torch.bool)

    @property
    def request(self) -> TraceRequest:
        """The request, with the tracer's noise setting filled in."""
        return self._experiment.request

    @property
    def remaining(self) -> int:
        """Number of restored runs of the current samples that are not done yet."""
        return int(self._left.sum())

    def begin_samples(self, start: int, stop: int) -> Sweep:
        """Run the base run of the samples start ... stop - 1, and return the sweep of their cells."""
        experiment, request = self._experiment, self.request
        embeddings = experiment.embeddings(start, stop)
        self.collector = None
        if request.top_tokens:
            tokenizer = experiment.context.tokenizer
            self.collector = TopTokenCollector(
                request.top_tokens, len(embeddings), lambda token: token_text(tokenizer, token)
            )
        specs, batch_size = self._specs.values(), self.maps.batch_size
        base, low_scores = run_samples(experiment, embeddings, specs, batch_size, self.collector)
        self.maps.begin_samples(self.engine_check, low_scores, self._cells, self.collector)
        self._left = torch.ones(len(self._cells), base.samples, dtype=torch.bool)
        self.runs = self._left.numel()
        return Sweep(
            experiment.context.traced,
            experiment.clean,
            base,
            SweepPlan(tuple(cell for _, cell in self._cells), experiment.base_input.reads),
            experiment.metric,
            batch_size,
            self._map_numbers,
            request.seed,
        )

    def store(self, chunk: SweepChunk) -> None:
        """Store scores. NaN marks cells that will be recomputed."""
        self.maps.store(self._map_numbers[chunk.cells], chunk)
        self._left[chunk.cells, chunk.samples] = chunk.scores.isnan()


def _traced(traces: Sequence[_Trace], cancelled: Callable[[], bool]) -> Iterator[MapsUpdate]:
    """Yield the maps of a group of requests, which have equal numbers of samples and tokens."""
    wanted = traces[0].request.samples
    if isinstance(wanted, SamplesUntil):
        yield from _until(traces[0], wanted, cancelled)
        return
    sweeps = [trace.begin_samples(0, wanted) for trace in traces]
    if len(sweeps) == 1 or can_share_passes(sweeps):
        yield from _swept(traces, sweeps, cancelled)
        return
    before, total = 0, sum(trace.runs for trace in traces)
    for number, (trace, sweep) in enumerate(zip(traces, sweeps, strict=True)):
        for update in _swept([trace], [sweep], cancelled):
            yield MapsUpdate(update.flows, before + update.done, total, number)
        before += trace.runs


def _until(trace: _Trace, wanted: SamplesUntil, cancelled: Callable[[], bool]) -> Iterator[MapsUpdate]:
    """Yield the maps of one request, adding samples until each peak's interval is narrow enough."""
    maps, before = trace.maps, 0
    for start in range(0, wanted.most, wanted.step):
        stop = min(start + wanted.step, wanted.most)
        sweep = trace.begin_samples(start, stop)
        for update in _swept([trace], [sweep], cancelled):
            latest = MapsUpdate(update.flows, before + update.done, before + update.total)
            yield latest
        before = latest.total
        if maps.samples < stop or all(flow.peak_width() <= wanted.width for flow in latest.flows.values()):
            return
    maps.note(f"After {wanted.most} samples the interval of a peak is still wider than ±{wanted.width:g}.")
    yield MapsUpdate(maps.flows(), before, before)


def _swept(traces: Sequence[_Trace], sweeps: Sequence[Sweep], cancelled: Callable[[], bool]) -> Iterator[MapsUpdate]:
    """Yield the maps of some samples, computed in one sweep."""
    total = sum(trace.runs for trace in traces)

    def update(number: int) -> MapsUpdate:
        done = total - sum(trace.remaining for trace in traces)
        flows = traces[number].maps.flows(complete=not traces[number].remaining)
        return MapsUpdate(flows, done, total, number)

    def on_halved_batch(size: int) -> None:
        for trace in traces:
            trace.maps.on_halved_batch(size)

    yield from map(update, range(len(traces)))
    for number, chunk in audited_sweep(
        sweeps,
        traces[0].engine_check,
        cancelled,
        audit=traces[0].maps.options.audit,
        logits_callbacks=[trace.collector for trace in traces],
        on_halved_batch=on_halved_batch,
        on_restart=lambda number: traces[number].maps.discard_partial(),
        on_audit=lambda number, map_number, audit: traces[number].maps.keep_audit(map_number, audit),
    ):
        traces[number].store(chunk)
        # One prompt's updates report the progress of all prompts in the pass.
        if not traces[number].remaining or number == len(traces) - 1:
            yield update(number)
