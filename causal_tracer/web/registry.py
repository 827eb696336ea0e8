"""The models of the app: loaded behind the page, one thread each, with a status that can be asked at any time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from causal_tracer.embedded import find_embedded_model, is_embedded_name
from causal_tracer.errors import CausalTracerError, ModelLoadError
from causal_tracer.models import load_model
from causal_tracer.sweep.engine import choose_engine
from causal_tracer.tracer import CausalTracer

ModelState = Literal["waiting", "loading", "ready", "failed"]

Report = Callable[[str, float], None]
"""Called with words for what is going on, and a fraction from 0 to 1."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelStatus:
    """How far a model is.

    Attributes:
        model: The name to ask for it by.
        title: What to show.
        state: "waiting" until loading starts, then "loading", then "ready" or "failed".
        stage: While it loads: what is going on.
        fraction: While it loads: from 0 to 1, or None where nobody can tell.
        error: Why it failed, and what to do.
        license: Of the model, where it is known.
        noise: The automatic noise level, once it is ready.
        layers: Number of blocks, once it is ready.
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

    @property
    def settled(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("ready", "failed")


@dataclass(frozen=True, eq=False)
class LoadedTracer:
    """A tracer with what people should know of its model."""

    tracer: CausalTracer
    title: str
    license: str | None = None


Loader = Callable[[str, Report], LoadedTracer]
"""From what `load_model` takes to a tracer."""


def load_tracer(source: str, report: Report) -> LoadedTracer:
    """Load a model and make a tracer of it: the loader of the real app."""
    loaded = load_model(source, progress=report)
    report("finding its layers", 1.0)
    # A folder's path stays on this machine: results and status have its name only.
    name = loaded.title if Path(source).is_dir() else loaded.name
    tracer = CausalTracer(loaded.model, loaded.tokenizer, model_id=name, revision=loaded.revision)
    report("comparing the fast sweep with the full one", 1.0)
    choose_engine(tracer.context.traced, "auto", 1)
    return LoadedTracer(tracer, loaded.title, loaded.license)


def public_name(source: str) -> str:
    """The name by which a model is asked for: its own, or that of its folder."""
    path = Path(source).expanduser()
    return path.resolve().name if path.is_dir() else source


def model_title(name: str) -> str:
    """What to show for a model's name."""
    return find_embedded_model(name).title if is_embedded_name(name) else name


class ModelSlot:
    """One model of the registry.

    Attributes:
        running: Held by the one trace that runs on the model; may be released by another thread than took it.
    """

    def __init__(self, source: str, load: Loader) -> None:
        self._source = source
        self._load = load
        self._guard = threading.Lock()
        self._settled = threading.Event()
        self._loaded: LoadedTracer | None = None
        name = public_name(source)
        self._status = ModelStatus(model=name, title=model_title(name))
        self.running = threading.Lock()

    @property
    def status(self) -> ModelStatus:
        """How far the model is."""
        with self._guard:
            return self._status

    def start(self) -> None:
        """Begin to load in a thread of its own; nothing happens where that has begun already."""
        with self._guard:
            if self._status.state != "waiting":
                return
            self._status = replace(self._status, state="loading", stage="starting")
        threading.Thread(target=self._run, name=f"load {self._status.model}", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Whether the model is ready or has failed, after at most so many seconds."""
        return self._settled.wait(seconds)

    def loaded(self) -> LoadedTracer:
        """The model.

        Raises:
            ModelLoadError: It could not be loaded, or is not yet.
        """
        if self._loaded is None:
            status = self.status
            raise ModelLoadError(status.error or f"{status.title} is not loaded yet. Try again in a moment.")
        return self._loaded

    def _run(self) -> None:
        try:
            self._loaded = self._load(self._source, self._report)
            tracer = self._loaded.tracer
            self._set(
                state="ready",
                title=self._loaded.title,
                license=self._loaded.license,
                noise=tracer.noise,
                layers=tracer.count_layers(),
            )
        except CausalTracerError as error:
            _logger.error("The model could not be loaded: %s", error)
            self._set(state="failed", error=str(error))
        except Exception as error:
            _logger.exception("The model could not be loaded.")
            self._set(state="failed", error=f"The model could not be loaded ({type(error).__name__}: {error}).")
        finally:
            self._settled.set()

    def _report(self, stage: str, fraction: float) -> None:
        self._set(stage=stage, fraction=fraction if fraction < 1 else None)

    def _set(self, **changes: object) -> None:
        with self._guard:
            # What only a model that loads has is left behind when it settles.
            emptied: dict[str, object] = {"stage": "", "fraction": None} if "state" in changes else {}
            self._status = replace(self._status, **{**emptied, **changes})  # type: ignore[arg-type]
