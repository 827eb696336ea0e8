"""Tracing on ZeroGPU, which lends a GPU to one call at a time, and runs that call in a process forked for it.

    models = place_models(settings.models)                    # at module scope, before the page is there

    @spaces.GPU(duration=seconds_asked)
    def trace_on_gpu(asked):
        yield from models.work(asked)

    main(load=models.loader(trace_on_gpu))

The page's process has no GPU. There each model is twice: on the CPU, for what the page asks by itself (tokens, likely
answers), and as weights that ZeroGPU moves to the GPU of whichever process has one. A map's request goes to that
process as JSON text and its cells come back as JSON text, errors too: of an exception ZeroGPU hands on the class's name
only. No lock, cache or engine check is shared: the process has its own, and engine checks travel with the request and
with the answer, so that a model is checked in one call and not in each.

Tested with a stand-in that forks as ZeroGPU does; not run on ZeroGPU itself.
"""

from __future__ import annotations

import copy
import json
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from causal_tracer import errors
from causal_tracer.errors import BusyError, CausalTracerError, ModelLoadError, SettingsError, TraceCancelled
from causal_tracer.experiment.set_up import TracingContext
from causal_tracer.loading.models import load_model
from causal_tracer.model.layers import TracedModel
from causal_tracer.request.record import from_data, to_data
from causal_tracer.request.records import MapSpec, RunOptions, TraceRequest
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.sweep.engine import adopt_engine_checks, known_engine_checks
from causal_tracer.tracer import CausalTracer
from causal_tracer.tracing.loop import MapsUpdate, trace_maps
from causal_tracer.web.service.limits import asked_work
from causal_tracer.web.service.model_files import require_safetensors, split_source
from causal_tracer.web.service.registry import LoadedTracer, Loader, Report

Call = Callable[[str], Generator[str, None, None]]
"""From a request's text to those of its answers: what `spaces.GPU` makes of a generator function."""

LONGEST_SECONDS = 120
"""The longest call that is asked for; ZeroGPU lends for a minute by default, and visitors have minutes a day."""

_START_SECONDS = 5.0
_CHECK_SECONDS = 10.0
# Cautious figures for the GPUs that are lent: what is not used of a call's time is not charged.
_MOVED_BYTES_A_SECOND = 2e9
_OPERATIONS_A_SECOND = 1e13
# Each answer is a whole map.
_SEND_SECONDS = 0.5


@dataclass(frozen=True, eq=False)
class PlacedModel:
    """A model as ZeroGPU needs it.

    Attributes:
        loaded: The copy on the CPU, and what people should know of the model.
        on_gpu: The copy whose weights are on the GPU, in a process that has one; its parts are named as in the other.
    """

    loaded: LoadedTracer
    on_gpu: TracedModel


class ZeroGpuModels:
    """The models of a Space on ZeroGPU, by what `load_model` takes."""

    def __init__(self, models: Mapping[str, PlacedModel]) -> None:
        self._models = dict(models)
        self._engine_checks = known_engine_checks()
        self._answered: set[str] = set()
        self._guard = threading.Lock()

    def loader(self, call: Call) -> Loader:
        """What gives the app its models: they are there already, and have their maps computed by `call`."""

        def load(source: str, report: Report) -> LoadedTracer:
            placed = self._models.get(source)
            if placed is None:
                known = ", ".join(self._models)
                raise ModelLoadError(f"{source!r} was not loaded before the page; on ZeroGPU only {known} can be.")
            return replace(placed.loaded, run=partial(self._run, source, call))

        return load

    def work(self, asked: str) -> Iterator[str]:
        """Compute a request: what the process does that has the GPU."""
        try:
            yield from self._answers(json.loads(asked))
        except (CausalTracerError, torch.OutOfMemoryError) as error:
            yield json.dumps({"error": type(error).__name__, "words": str(error)})

    def _answers(self, asked: Mapping[str, Any]) -> Iterator[str]:
        adopt_engine_checks(asked["engine_checks"])
        placed = self._models[asked["model"]]
        context = replace(placed.loaded.tracer.context, traced=placed.on_gpu)
        request = from_data(TraceRequest, asked["request"])
        specs = {name: from_data(MapSpec, spec) for name, spec in asked["specs"].items()}
        options = from_data(RunOptions, asked["options"])
        sent = -math.inf
        with closing(_generator(trace_maps(context, request, specs, options))) as updates:
            for update in updates:
                if update.done < update.total and time.monotonic() - sent < _SEND_SECONDS:
                    continue
                sent = time.monotonic()
                flows = {name: flow.to_dict() for name, flow in update.flows.items()}
                yield json.dumps(
                    {"flows": flows, "done": update.done, "total": update.total, "engine_checks": known_engine_checks()}
                )

    def _run(
        self,
        source: str,
        call: Call,
        context: TracingContext,
        request: TraceRequest,
        specs: Mapping[str, MapSpec],
        options: RunOptions | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[MapsUpdate]:
        """As `trace_maps`, but computed by `call`; the maps have no `layer_outputs`.

        The other process is not asked within a batch: a run that is cancelled ends with its next answer.
        """
        with self._guard:
            engine_checks, checked = dict(self._engine_checks), source in self._answered
        asked = {
            "model": source,
            "request": to_data(request),
            "specs": {name: to_data(spec) for name, spec in specs.items()},
            "options": to_data(options or RunOptions()),
            "engine_checks": engine_checks,
            "seconds": gpu_seconds(context, request, specs, checked=checked),
        }
        with _words_of_zero_gpu(), closing(call(json.dumps(asked, ensure_ascii=False))) as answers:
            for text in answers:
                if cancelled():
                    raise TraceCancelled("The run was cancelled.")
                answer = json.loads(text)
                if "error" in answer:
                    raise _error(answer["error"], answer["words"])
                self._take(source, answer["engine_checks"])
                flows = {name: HiddenFlow.from_dict(flow) for name, flow in answer["flows"].items()}
                yield MapsUpdate(flows, answer["done"], answer["total"])

    def _take(self, source: str, engine_checks: Mapping[str, Any]) -> None:
        """Keep a call's engine checks for the next call's process."""
        with self._guard:
            self._answered.add(source)
            self._engine_checks.update(engine_checks)


def place_models(sources: tuple[str, ...]) -> ZeroGpuModels:
    """Load models, find and check their parts on the CPU, and put a copy of each where ZeroGPU looks for weights.

    Args:
        sources: What `load_model` takes, or "owner/name@revision".

    Raises:
        CausalTracerError: A model cannot be loaded or traced.
    """
    # On ZeroGPU it is said to be there, and moving weights to it takes note of them.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ZeroGpuModels({source: _placed(source, device) for source in sources})


def gpu_seconds(context: TracingContext, request: TraceRequest, specs: Mapping[str, MapSpec], *, checked: bool) -> int:
    """How long a call may take: moving the weights, and every restored run in full.

    Args:
        context: The model.
        request: What is asked for.
        specs: The maps.
        checked: Whether the model's sweep has been checked.

    Raises:
        SettingsError: It is more than can be asked for.
        PromptError, SubjectError, TokenizerError: The prompt cannot be traced.
    """
    traced = context.traced
    tokens, cells, samples = asked_work(context, request, specs)
    runs = cells * samples
    numbers = sum(parameter.numel() for parameter in traced.model.parameters())
    moving = numbers * traced.dtype.itemsize / _MOVED_BYTES_A_SECOND
    computing = 2 * numbers * tokens * runs / _OPERATIONS_A_SECOND
    seconds = math.ceil(_START_SECONDS + moving + (0 if checked else _CHECK_SECONDS) + computing)
    if seconds > LONGEST_SECONDS:
        raise SettingsError(
            f"The maps ask for {runs} restored runs, about {seconds} seconds of a GPU, and this Space asks for at most "
            f"{LONGEST_SECONDS}. Give fewer samples, fewer layers, or the subject's tokens only."
        )
    return seconds


def seconds_asked(asked: str) -> int:
    """The time that a request asks for: what `spaces.GPU` takes as its duration."""
    return int(json.loads(asked)["seconds"])


def _placed(source: str, device: str) -> PlacedModel:
    name, revision = split_source(source)
    require_safetensors(name)
    loaded = load_model(name, revision=revision, dtype="auto", device="cpu")
    tracer = CausalTracer(loaded.model, loaded.tokenizer, model_id=loaded.public_name, revision=loaded.revision)
    copied = copy.deepcopy(tracer.model).to(device)
    on_gpu = replace(tracer.context.traced, model=copied)
    return PlacedModel(LoadedTracer(tracer, loaded.title, loaded.license), on_gpu)


def _error(name: str, words: str) -> Exception:
    """The exception that was raised in the other process."""
    if name == torch.OutOfMemoryError.__name__:
        return torch.OutOfMemoryError(words)
    kind = getattr(errors, name, CausalTracerError)
    found: Exception = kind(words)
    return found


@contextmanager
def _words_of_zero_gpu() -> Iterator[None]:
    """Hand on what ZeroGPU says, such as that a visitor's time is used up, as one of the app's own errors."""
    import gradio as gr

    try:
        yield
    except gr.Error as error:
        raise BusyError(f"ZeroGPU has not computed the maps: {error.message}") from error


def _generator(updates: Iterator[MapsUpdate]) -> Generator[MapsUpdate, None, None]:
    yield from updates
