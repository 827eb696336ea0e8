"""Tracing on ZeroGPU, which lends a GPU to one call at a time, and runs that call in a process forked for it.

    models = place_models(settings.models)                    # at module scope, before the page starts

    @spaces.GPU(duration=seconds_asked)
    def trace_on_gpu(asked):
        yield from models.compute(asked)

    main(load=models.loader(trace_on_gpu))

The page's process has no GPU. It holds each model twice: on the CPU, for inspecting prompts, and as weights that
ZeroGPU moves to the GPU of the process that has one. A map's request is sent to that process as JSON text. Its cells
come back as JSON text, and so do errors: of an exception, ZeroGPU itself passes on only the class's name. The processes
share no locks, caches or engine checks. Engine checks are sent with the request and with the answer, so that a model is
checked in one call only.

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
from causal_tracer.web.service.limits import request_size
from causal_tracer.web.service.model_files import require_safetensors, split_source
from causal_tracer.web.service.registry import LoadedTracer, Loader, Report

Call = Callable[[str], Generator[str, None, None]]
"""Takes a request as JSON text and yields answers as JSON text: a generator function decorated by `spaces.GPU`."""

LONGEST_SECONDS = 120
"""The longest duration of a call, in seconds. ZeroGPU's default is a minute; a visitor has a few minutes a day."""

_START_SECONDS = 5.0
_CHECK_SECONDS = 10.0
# Cautious figures for ZeroGPU's GPUs: the unused time of a call is not charged.
_MOVED_BYTES_A_SECOND = 2e9
_OPERATIONS_A_SECOND = 1e13
# The shortest time between two answers, since each is a whole map.
_SEND_SECONDS = 0.5


@dataclass(frozen=True, eq=False)
class PlacedModel:
    """The two copies of a model on ZeroGPU.

    Attributes:
        loaded: The copy on the CPU, with the model's title and licence.
        on_gpu: The copy whose weights are on the GPU, in a process that has one; its modules have the same names.
    """

    loaded: LoadedTracer
    on_gpu: TracedModel


class ZeroGpuModels:
    """The models of a Space on ZeroGPU, by the names that `load_model` takes."""

    def __init__(self, models: Mapping[str, PlacedModel]) -> None:
        self._models = dict(models)
        self._engine_checks = known_engine_checks()
        self._answered: set[str] = set()
        self._guard = threading.Lock()

    def loader(self, call: Call) -> Loader:
        """Return the app's loader: it returns the models loaded before, whose maps are computed by `call`."""

        def load(source: str, report: Report) -> LoadedTracer:
            placed = self._models.get(source)
            if placed is None:
                known = ", ".join(self._models)
                raise ModelLoadError(
                    f"{source!r} was not loaded before the page, as models on ZeroGPU must be. Available: {known}."
                )
            return replace(placed.loaded, run=partial(self._run, source, call))

        return load

    def compute(self, asked: str) -> Iterator[str]:
        """Compute a request, in the process that has the GPU; yield the answers as JSON text."""
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
        """Compute maps as `trace_maps` does, but by `call`; the maps have no `layer_outputs`.

        The other process cannot be interrupted within a batch: a cancelled run ends with its next answer.
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
        with _zero_gpu_errors(), closing(call(json.dumps(asked, ensure_ascii=False))) as answers:
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
        sources: The models' names, as `load_model` takes them, or "owner/name@revision".

    Raises:
        CausalTracerError: A model cannot be loaded or traced.
    """
    # ZeroGPU reports a CUDA device in this process too; weights moved to it are recorded and moved later.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ZeroGpuModels({source: _placed(source, device) for source in sources})


def gpu_seconds(context: TracingContext, request: TraceRequest, specs: Mapping[str, MapSpec], *, checked: bool) -> int:
    """Return the seconds that a call may take: moving the weights, and every restored run as a full forward pass.

    Args:
        context: The model.
        request: The request.
        specs: The maps.
        checked: Whether the model's sweep has been checked.

    Raises:
        SettingsError: The duration is above `LONGEST_SECONDS`.
        PromptError, SubjectError, TokenizerError: The prompt cannot be traced.
    """
    traced = context.traced
    tokens, cells, samples = request_size(context, request, specs)
    runs = cells * samples
    numbers = sum(parameter.numel() for parameter in traced.model.parameters())
    moving = numbers * traced.dtype.itemsize / _MOVED_BYTES_A_SECOND
    computing = 2 * numbers * tokens * runs / _OPERATIONS_A_SECOND
    seconds = math.ceil(_START_SECONDS + moving + (0 if checked else _CHECK_SECONDS) + computing)
    if seconds > LONGEST_SECONDS:
        raise SettingsError(
            f"The maps need {runs} restored runs, about {seconds} seconds of a GPU, and this Space takes at most "
            f"{LONGEST_SECONDS}. Ask for fewer samples, fewer layers, or the subject's tokens only."
        )
    return seconds


def seconds_asked(asked: str) -> int:
    """Return the duration of a request's call in seconds, for `spaces.GPU`."""
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
    """Return the exception that was raised in the other process."""
    if name == torch.OutOfMemoryError.__name__:
        return torch.OutOfMemoryError(words)
    kind = getattr(errors, name, CausalTracerError)
    found: Exception = kind(words)
    return found


@contextmanager
def _zero_gpu_errors() -> Iterator[None]:
    """Raise ZeroGPU's errors, for example a used-up quota, as one of the app's own."""
    import gradio as gr

    try:
        yield
    except gr.Error as error:
        raise BusyError(f"ZeroGPU did not compute the maps: {error.message}") from error


def _generator(updates: Iterator[MapsUpdate]) -> Generator[MapsUpdate, None, None]:
    yield from updates
