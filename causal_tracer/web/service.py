"""What the web app does, without Gradio: models, and traces that hand on a map as it fills in.

    service = TraceService(ServiceSettings.from_environment())
    service.start_loading()
    for update in service.trace(TraceInput("The Space Needle is located in the city of")):
        ...

Clean runs are shared by all kinds and settings of a prompt: they belong to the model's `CausalTracer`, which holds
them within a bound of bytes. One trace runs on a model at a time. Whoever leaves the iteration early frees the model.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, cast

from causal_tracer.errors import PromptError, SettingsError
from causal_tracer.flow import HiddenFlow
from causal_tracer.layers import LayerKind, require_kind
from causal_tracer.prompts import Prompt
from causal_tracer.trace import FlowUpdate, TraceRequest, TracingContext, prompt_for, trace
from causal_tracer.tracer import DEFAULT_WINDOWS
from causal_tracer.web.registry import Loader, ModelSlot, ModelStatus, load_tracer
from causal_tracer.web.settings import ServiceSettings, variable

_POLL_SECONDS = 0.25
# Far more than a token has characters: longer prompts are turned away before they are tokenized.
_CHARACTERS_PER_TOKEN = 50
# Beyond it, sums of squares leave float32.
_HIGHEST_NOISE = 1e15


@dataclass(frozen=True)
class TraceInput:
    """What a person or a program asks for, as it comes in: nothing is checked yet.

    Attributes:
        prompt: The text that the model goes on from.
        subject: The part of it to corrupt; empty has it guessed.
        kind: "hidden", "mlp" or "attention".
        samples: Noise samples.
        window: Layers restored together; None takes the kind's: 1 for hidden, 10 for MLP and attention.
        noise: Standard deviation of the noise; None takes the model's automatic level, 0 adds none.
        seed: Seed of the noise.
        subject_tokens_only: Restore at the subject's tokens only.
        start_layer: First layer to compute.
        end_layer: One past the last layer to compute; None computes up to the last block.
        model: One of the app's models; empty takes the first.
    """

    prompt: str
    subject: str | None = ""
    kind: str = "hidden"
    samples: float | None = 10
    window: float | None = None
    noise: float | None = None
    seed: float | None = 1
    subject_tokens_only: bool = False
    start_layer: float | None = 0
    end_layer: float | None = None
    model: str = ""


@dataclass(frozen=True, eq=False)
class RunUpdate:
    """A trace on its way.

    Attributes:
        flow: The map, NaN in cells that are still to come; None while the run has not begun.
        done: Restored runs done.
        total: Restored runs in all.
        seconds: Since the computation began.
        waiting: What the run waits for, in words; empty once it has begun.
    """

    flow: HiddenFlow | None
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    waiting: str = ""


class TraceService:
    """The models of the app and the traces on them; safe to share between threads."""

    def __init__(self, settings: ServiceSettings | None = None, load: Loader = load_tracer) -> None:
        self.settings = settings or ServiceSettings()
        slots = [ModelSlot(source, load) for source in self.settings.models]
        self._slots = {slot.status.model: slot for slot in slots}

    @property
    def models(self) -> tuple[str, ...]:
        """The models that may be asked for, the default first."""
        return tuple(self._slots)

    def start_loading(self, model: str = "") -> None:
        """Begin to load a model in the background, where that has not begun already."""
        self._slot(model).start()

    def status(self, model: str = "") -> ModelStatus:
        """How far a model is."""
        return self._slot(model).status

    def trace(self, asked: TraceInput) -> Generator[RunUpdate]:
        """Trace one prompt, waiting for the model where it has to.

        Yields:
            Updates that say what is waited for, then the map as it fills in.

        Raises:
            SettingsError: A value is out of range, or over one of the app's limits.
            PromptError, SubjectError, TokenizerError: The prompt or its subject cannot be traced.
            ModelLoadError: The model could not be loaded.
            NumericsError: A run gave NaN or infinite logits.
        """
        slot = self._slot(asked.model)
        request = self._checked(asked)
        noise = _noise(asked.noise)
        slot.start()
        while not slot.wait(_POLL_SECONDS):
            yield RunUpdate(None, waiting=_loading_words(slot.status))
        context = with_noise(slot.loaded().tracer.context, noise)
        self._check_work(context, request)
        while not slot.running.acquire(timeout=_POLL_SECONDS):
            yield RunUpdate(None, waiting="another run on this model")
        try:
            begun = time.monotonic()
            with closing(cast(Generator[FlowUpdate], trace(context, request))) as updates:
                for update in updates:
                    yield RunUpdate(update.flow, update.done, update.total, time.monotonic() - begun)
        finally:
            slot.running.release()

    def _slot(self, model: str) -> ModelSlot:
        slot = self._slots.get(model or self.models[0]) if isinstance(model, str) else None
        if slot is None:
            raise SettingsError(
                f"model={model!r} is none of this app's models. Choose one of {', '.join(self.models)}."
            )
        return slot

    def _checked(self, asked: TraceInput) -> TraceRequest:
        """The request, as far as it can be checked without the model."""
        settings = self.settings
        if not isinstance(asked.prompt, str) or not isinstance(asked.subject, str | None):
            raise PromptError("Prompt and subject have to be texts.")
        if len(asked.prompt) > _CHARACTERS_PER_TOKEN * settings.max_prompt_tokens:
            raise PromptError(
                f"The prompt has {len(asked.prompt)} characters, and this app takes at most "
                f"{_limit('max_prompt_tokens', settings.max_prompt_tokens)} tokens. Shorten it."
            )
        kind = require_kind(cast(LayerKind, asked.kind))
        samples = _whole("samples", asked.samples, lowest=1)
        if samples > settings.max_samples:
            raise SettingsError(
                f"samples={samples} is over this app's limit of {_limit('max_samples', settings.max_samples)}."
            )
        window = DEFAULT_WINDOWS[kind] if asked.window is None else _whole("window", asked.window, lowest=1)
        return TraceRequest(
            text=asked.prompt,
            subject=(asked.subject or "").strip() or None,
            kind=kind,
            samples=samples,
            window=window,
            seed=_whole("seed", asked.seed, lowest=0, highest=2**32 - 1),
            start_layer=_whole("start_layer", asked.start_layer, lowest=0),
            batch_size=settings.batch_size,
            end_layer=None if asked.end_layer is None else _whole("end_layer", asked.end_layer, lowest=1),
            subject_tokens_only=bool(asked.subject_tokens_only),
        )

    def _check_work(self, context: TracingContext, request: TraceRequest) -> None:
        """Whether the request is within the limits that depend on its tokens and the model's layers."""
        settings = self.settings
        prompt = prompt_for(context, request.text, request.subject)
        if len(prompt) > settings.max_prompt_tokens:
            raise PromptError(
                f"The prompt has {len(prompt)} tokens, and this app takes at most "
                f"{_limit('max_prompt_tokens', settings.max_prompt_tokens)}. Shorten it."
            )
        work = _cells(context, request, prompt) * request.samples
        if work > settings.max_cell_samples:
            raise SettingsError(
                f"The map asks for {work} restored runs ({work // request.samples} cells, {request.samples} samples), "
                f"and this app takes at most {_limit('max_cell_samples', settings.max_cell_samples)}. Ask for fewer "
                "samples, a shorter prompt, or the subject's tokens only."
            )


def with_noise(context: TracingContext, noise: float | None) -> TracingContext:
    """The same model and clean runs with another noise level; None leaves the tracer's own."""
    return context if noise is None else replace(context, noise=noise, noise_rule="given")


def _cells(context: TracingContext, request: TraceRequest, prompt: Prompt) -> int:
    start, end = prompt.subject_range
    positions = end - start if request.subject_tokens_only else len(prompt)
    return positions * len(request.layer_range(context.traced.n_layers))


def _limit(name: str, value: int) -> str:
    return f"{value} ({variable(name)})"


def _loading_words(status: ModelStatus) -> str:
    share = "" if status.fraction is None else f", {status.fraction:.0%}"
    return f"{status.title} ({status.stage}{share})"


def _noise(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _HIGHEST_NOISE:
        raise SettingsError(
            f"noise={value!r} is not a noise level. Give 0 or a positive number, or none for automatic."
        )
    return float(value)


def _whole(name: str, value: Any, *, lowest: int, highest: int | None = None) -> int:
    """A whole number; forms and JSON hand on 10 as 10.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        shown = "empty" if value is None else f"{value!r}, which is no whole number"
        raise SettingsError(f"{name} is {shown}. Give a whole number from {lowest} on.")
    if value < lowest or (highest is not None and value > highest):
        upper = "on" if highest is None else f"to {highest}"
        raise SettingsError(f"{name}={value} is out of range. Give a whole number from {lowest} {upper}.")
    return value
