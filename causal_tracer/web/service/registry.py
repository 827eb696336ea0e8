"""The models of the app. Each is loaded in its own thread, and has a status at any time."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from causal_tracer.errors import CausalTracerError, ModelLoadError
from causal_tracer.experiment.set_up import TracingContext
from causal_tracer.loading.embedded import find_embedded_model, is_embedded_name
from causal_tracer.loading.models import load_model
from causal_tracer.prompts.chat import has_chat_template
from causal_tracer.request.records import MapSpec, RunOptions, TraceRequest
from causal_tracer.sweep.engine import choose_engine
from causal_tracer.tracer import CausalTracer
from causal_tracer.tracing.loop import MapsUpdate, trace_maps
from causal_tracer.web.service.known_answers import KnownAnswers
from causal_tracer.web.service.limits import RunQueue
from causal_tracer.web.service.model_files import (
    public_name,
    require_safetensors,
    split_source,
    stored_identity,
    stored_parameters,
)

ModelState = Literal["waiting", "loading", "ready", "failed"]

Report = Callable[[str, float], None]
"""Called with the current stage in words, and a fraction from 0 to 1."""

TraceMaps = Callable[
    [TracingContext, TraceRequest, Mapping[str, MapSpec], RunOptions | None, Callable[[], bool]], Iterator[MapsUpdate]
]
"""A function like `trace_maps`; its iterator is closed when nobody waits for it any more."""

_logger = logging.getLogger(__name__)

# A model that could not be loaded, for example without memory or a connection, may be tried again after this time.
_RETRY_SECONDS = 60.0


@dataclass(frozen=True)
class ModelStatus:
    """The status of a model.

    Attributes:
        model: Its name in requests.
        title: Its name on the page.
        state: "waiting" until loading starts, then "loading", then "ready" or "failed".
        stage: While it loads: the current stage.
        fraction: While it loads: the fraction of the stage that is done, from 0 to 1; None if it is not known.
        error: Why loading failed, and what to do.
        license: The model's licence, if it is known.
        noise: The automatic noise level, once it is ready.
        layers: Number of blocks, once it is ready.
        parameters: Number of parameters, if it is known.
        revision: The revision of its weights, once it is ready and if it has one.
        chat: Whether its tokenizer has a chat template, once it is ready.
    """

    model: str
    title: str
    state: ModelState = "waiting"
    stage: str = ""
    fraction: float | None = None
    error: str = ""
    license: str | None = None
    noise: float | None = None
    layers: int | None = None
    parameters: int | None = None
    revision: str | None = None
    chat: bool = False

    @property
    def loading_words(self) -> str:
        """Title, stage and fraction of a model that loads."""
        share = "" if self.fraction is None else f", {self.fraction:.0%}"
        return f"{self.title} ({self.stage}{share})"

    @property
    def size_words(self) -> str:
        """The size in words, such as "268M parameters"; empty if it is not known."""
        if self.parameters is None:
            return ""
        if self.parameters >= 1e9:
            return f"{self.parameters / 1e9:.1f}B parameters"
        return f"{self.parameters / 1e6:.0f}M parameters" if self.parameters >= 1e6 else f"{self.parameters} parameters"

    @property
    def settled(self) -> bool:
        """Whether loading is over."""
        return self.state in ("ready", "failed")


@dataclass(frozen=True)
class ModelIdentity:
    """The identity of a model's weights.

    Attributes:
        text: Identifies the weights: the same for the same weights only.
        lasting: Whether the text identifies the weights in other processes too.
    """

    text: str
    lasting: bool


@dataclass(frozen=True, eq=False)
class LoadedTracer:
    """A tracer with the title and licence of its model.

    Attributes:
        tracer: Inspects prompts and, by default, traces them.
        title: The model's name on the page.
        license: The model's licence, if it is known.
        run: Computes maps: `trace_maps`, or a function that computes them in another process.
    """

    tracer: CausalTracer
    title: str
    license: str | None = None
    run: TraceMaps = trace_maps


Loader = Callable[[str, Report], LoadedTracer]
"""Loads a model, which is named as `load_model` takes it, and reports its progress."""


def load_tracer(source: str, report: Report, *, device_map: str = "") -> LoadedTracer:
    """Load a model and make a tracer of it. It loads safetensors and GGUF files only, and never runs a model's code."""
    asked, revision = split_source(source)
    require_safetensors(asked)
    loaded = load_model(asked, revision=revision, device_map=device_map or None, progress=report)
    report("finding its layers", 1.0)
    name = loaded.public_name
    tracer = CausalTracer(loaded.model, loaded.tokenizer, model_id=name, revision=loaded.revision)
    report("comparing the fast sweep with the full one", 1.0)
    choose_engine(tracer.context.traced, "auto", 1)
    return LoadedTracer(tracer, loaded.title, loaded.license)


def model_title(name: str) -> str:
    """Return a model's name on the page."""
    return find_embedded_model(name).title if is_embedded_name(name) else name


class ModelSlot:
    """One model of the app.

    Attributes:
        queue: The queue of the requests that run or wait for the model.
        known_answers: The model's answers to the prompts inspected last.
    """

    def __init__(
        self, source: str, load: Loader, most_waiting: int = 32, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._load = load
        self._clock = clock
        self._guard = threading.Lock()
        self._settled = threading.Event()
        self._loaded: LoadedTracer | None = None
        self._retry_at = 0.0
        name = public_name(source)
        self._status = ModelStatus(model=name, title=model_title(name), parameters=stored_parameters(source))
        self._identity = stored_identity(source)
        self._in_this_process = uuid.uuid4().hex
        self.queue = RunQueue(most_waiting)
        self.known_answers = KnownAnswers()

    @property
    def status(self) -> ModelStatus:
        """The model's status."""
        with self._guard:
            return self._status

    @property
    def names(self) -> tuple[str, ...]:
        """The model's names in requests: its own, and the one that results store."""
        name = self._status.model
        return (name, find_embedded_model(name).name) if is_embedded_name(name) else (name,)

    @property
    def identity(self) -> ModelIdentity:
        """The identity of the model's weights."""
        if self._identity is not None:
            return ModelIdentity(self._identity, lasting=True)
        context = self._loaded.tracer.context if self._loaded is not None else None
        if context is None or context.revision is None:
            return ModelIdentity(self._in_this_process, lasting=False)
        return ModelIdentity(f"hub {context.model_id} {context.revision}", lasting=True)

    @property
    def hub_revision(self) -> str | None:
        """The model's revision on the hub; None for models from a pip package, a local folder or a file."""
        name, asked = split_source(self._source)
        if is_embedded_name(name) or Path(name).expanduser().exists():
            return None
        return self.status.revision or asked

    def start(self) -> None:
        """Start loading in a thread, unless loading has started already or has just failed."""
        with self._guard:
            failed = self._status.state == "failed" and self._clock() >= self._retry_at
            if self._status.state != "waiting" and not failed:
                return
            self._settled.clear()
            self._status = replace(self._status, state="loading", stage="starting", error="")
        threading.Thread(target=self._run, name=f"load {self._status.model}", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Wait up to this time; return whether the model is ready or has failed."""
        return self._settled.wait(seconds)

    def loaded(self) -> LoadedTracer:
        """Return the loaded model.

        Raises:
            ModelLoadError: The model could not be loaded, or is not loaded yet.
        """
        if self._loaded is None:
            status = self.status
            raise ModelLoadError(status.error or f"{status.title} is not loaded yet. Try again in a moment.")
        return self._loaded

    def _run(self) -> None:
        try:
            loaded = self._load(self._source, self._report)
            tracer = loaded.tracer
            parameters = sum(parameter.numel() for parameter in tracer.model.parameters())
            self._loaded = loaded
            self._set(
                state="ready",
                stage="",
                fraction=None,
                title=loaded.title,
                license=loaded.license,
                noise=tracer.noise,
                layers=tracer.count_layers(),
                parameters=parameters,
                revision=tracer.context.revision,
                chat=has_chat_template(tracer.context.tokenizer),
            )
        except CausalTracerError as error:
            _logger.error("The model could not be loaded: %s", error)
            self._failed(str(error))
        except Exception as error:
            _logger.exception("The model could not be loaded.")
            self._failed(f"The model could not be loaded ({type(error).__name__}: {error}).")
        finally:
            self._settled.set()

    def _failed(self, words: str) -> None:
        # The name of a folder or file is public, its full path is not.
        words = words.replace(str(Path(self._source).expanduser()), self._status.model)
        self._retry_at = self._clock() + _RETRY_SECONDS
        self._set(state="failed", stage="", fraction=None, error=words)

    def _report(self, stage: str, fraction: float) -> None:
        self._set(stage=stage, fraction=fraction if fraction < 1 else None)

    def _set(self, **changes: object) -> None:
        with self._guard:
            self._status = replace(self._status, **changes)  # type: ignore[arg-type]
