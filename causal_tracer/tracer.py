"""CausalTracer: the face of the package."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import nn

from causal_tracer.arguments import function, instance, optional, several, shown, text
from causal_tracer.compat import Cancelled, Progress, VersionOneCalls, as_queries
from causal_tracer.corruption import NoiseRule
from causal_tracer.errors import SettingsError
from causal_tracer.experiment.calibration import MULTIPLIERS, calibrate_noise
from causal_tracer.experiment.noise_levels import noise_level
from causal_tracer.experiment.set_up import TracingContext
from causal_tracer.loading.models import load_model, public_model_name
from causal_tracer.model.layer_config import LayerConfig
from causal_tracer.model.layers import trace_model
from causal_tracer.model.pickling import require_picklable
from causal_tracer.request.records import HiddenFlowQuery, MapSpec, RunOptions, Text, TraceRequest, trace_records
from causal_tracer.request.sites import LayerKind, require_kind
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.noise_calibration import NoiseCalibration
from causal_tracer.single_runs import SingleRunCalls
from causal_tracer.tracing.loop import MapsUpdate, trace_maps


class CausalTracer(VersionOneCalls, SingleRunCalls):
    """Traces where a decoder-only causal LM keeps a fact (Meng et al. 2022, arXiv 2202.05262, section 2).

    Attributes:
        model: The causal LM that is traced. It is left as it was: weights, training mode, hooks.
        tokenizer: Its tokenizer, left as it was.
        layer_config: The names of the modules traced.
        noise: Standard deviation of the noise that corrupts the subject.
        device: Where token ids are put.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        layer_config: LayerConfig | None = None,
        noise: NoiseRule = None,
        device: torch.device | str | None = None,
        *,
        model_id: str | None = None,
        revision: str | None = None,
    ) -> None:
        """Find the model's parts, check them with a short run, and measure the noise level if none is given.

        Args:
            model: A decoder-only causal LM, on one device or dispatched by accelerate; or a base model whose config
                ties the head to the embedding.
            tokenizer: The tokenizer that belongs to it.
            layer_config: The names of its modules; None finds them by structure.
            noise: Standard deviation of the noise, in units of the embedding's output; 0 means none. "2 sigma" is a
                multiple of the standard deviation of the embedding module's output over the vocabulary, None is three
                of them, and `SubjectsNoise` takes the deviation of given subjects' embeddings.
            device: Where the model is. Only checked: a model is never moved. None takes it from the model.
            model_id: The model's name in results; None takes it from its config.
            revision: Its revision in results; None takes the commit that its config knows.

        Raises:
            ModelStructureError: The model is no decoder-only causal LM, or its parts were not found.
            SettingsError: The noise is not a non-negative number or a rule, or the model is not on `device`.
        """
        model_id, revision = optional(text)("model_id", model_id), optional(text)("revision", revision)
        self._traced = trace_model(model, layer_config)
        self.model = self._traced.model
        self.tokenizer = tokenizer
        self.layer_config = layer_config or self._traced.layer_config
        self.device = self._traced.input_device
        try:
            asked = self.device if device is None else torch.device(device)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise SettingsError(f"device={shown(device)} is not a torch device. Give 'cpu' or 'cuda:0'.") from error
        if asked.type != self.device.type:
            raise SettingsError(
                f"device={str(device)!r} was asked for, and the model is on {str(self.device)!r}. Move it first: "
                f"model.to({str(device)!r})"
            )
        self.noise, rule = noise_level(self._traced, tokenizer, noise)
        config: Any = self.model.config
        self._context = TracingContext(
            traced=self._traced,
            tokenizer=tokenizer,
            model_id=model_id or public_model_name(getattr(config, "_name_or_path", None)) or type(self.model).__name__,
            revision=revision or getattr(config, "_commit_hash", None),
            noise=self.noise,
            noise_rule=rule,
            noise_given=self.noise if rule == "given" else noise,
        )

    @classmethod
    def from_pretrained(cls, name: str, *, noise: NoiseRule = None, **kwargs: Any) -> CausalTracer:
        """Load a model with `load_model(name, **kwargs)` and make a tracer of it."""
        loaded = load_model(name, **kwargs)
        return cls(loaded.model, loaded.tokenizer, noise=noise, model_id=loaded.public_name, revision=loaded.revision)

    def __repr__(self) -> str:
        """Name the model, its layers, the noise and the device."""
        context = self._context
        revision = "" if context.revision is None else f", revision {context.revision}"
        return (
            f"CausalTracer({context.model_id!r}{revision}: {type(self.model).__name__}, {self.count_layers()} layers, "
            f"{self._traced.dtype_name}, noise {self.noise:.4g} ({context.noise_rule}), {self.device})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """All parts.

        Raises:
            PicklingError: A part cannot be pickled, such as a function that was written inside another.
        """
        state = dict(self.__dict__)
        require_picklable(state, "CausalTracer")
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> CausalTracer:
        """A tracer of a copy of the model. Functions are shared, so that what cannot be pickled can be copied."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    @property
    def context(self) -> TracingContext:
        """Model, tokenizer and noise, as the functions of the engine take them."""
        return self._context

    def count_layers(self) -> int:
        """Number of blocks."""
        return self._traced.n_layers

    def get_layer_names_of_kind(self, layer_kind: LayerKind) -> list[str]:
        """The module names of one kind, layer by layer."""
        return self._traced.activation_names(require_kind(layer_kind))

    def trace(
        self,
        prompt: Text | TraceRequest,
        subject: str | None = None,
        *,
        spec: MapSpec | None = None,
        options: RunOptions | None = None,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
        **settings: Any,
    ) -> HiddenFlow:
        """Trace one map of one prompt.

        Args:
            prompt: The text that the model goes on from, a conversation, or a whole request.
            subject: The part of it to corrupt; None has it guessed, and the result says so.
            spec: The map, where it is not given by `settings`.
            options: How it is computed, where that is not given by `settings`.
            progress: Called with (restored runs done, restored runs in all) as it goes.
            cancelled: Asked between batches; True stops the trace.
            settings: Any field of `TraceRequest`, `MapSpec` and `RunOptions`, such as kind="mlp" or samples=20.

        Returns:
            The map. Cells that were not computed are NaN.

        Raises:
            SettingsError, PromptError, SubjectError, TokenizerError: The arguments do not fit together or the model.
            NumericsError: A run gave NaN or infinite logits.
            TraceCancelled: `cancelled` returned True.
        """
        if subject is not None:
            settings["subject"] = subject
        request, spec, options = trace_records(prompt, settings, (spec, options))
        return self.trace_maps(request, {"map": spec}, options, progress=progress, cancelled=cancelled)["map"]

    @overload
    def trace_maps(
        self,
        requests: TraceRequest,
        specs: Mapping[str, MapSpec],
        options: RunOptions | None = None,
        *,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> dict[str, HiddenFlow]: ...

    @overload
    def trace_maps(
        self,
        requests: Sequence[TraceRequest],
        specs: Mapping[str, MapSpec],
        options: RunOptions | None = None,
        *,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> list[dict[str, HiddenFlow]]: ...

    def trace_maps(
        self,
        requests: TraceRequest | Sequence[TraceRequest],
        specs: Mapping[str, MapSpec],
        options: RunOptions | None = None,
        *,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> dict[str, HiddenFlow] | list[dict[str, HiddenFlow]]:
        """Trace several maps of one prompt in one sweep: kinds and windows, single heads, severed ones, placebos.

        Several prompts, of any lengths, are traced one after the other; on GPUs, those of equal length share passes.

        Args:
            requests: A prompt and what its maps share, or several of them.
            specs: The maps, by names of your choice.
            options: How they are computed; None takes the defaults.
            progress: As in `trace`, like `cancelled`.
            cancelled: True stops the trace.

        Returns:
            A map for each name, of several prompts a list of them. All maps of a prompt see the same noise, so that
            their cells can be paired sample by sample; each equals that of the prompt alone.
        """
        flows: dict[int, dict[str, HiddenFlow]] = {}
        for update in self.stream(requests, specs, options, cancelled=cancelled, progress=progress):
            flows[update.request] = dict(update.flows)
        return flows[0] if isinstance(requests, TraceRequest) else [flows[number] for number in range(len(flows))]

    def stream(
        self,
        requests: TraceRequest | Sequence[TraceRequest],
        specs: Mapping[str, MapSpec],
        options: RunOptions | None = None,
        *,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> Iterator[MapsUpdate]:
        """Yield partial maps as cells are computed, the subject's last token first; see `trace_maps`.

        Leaving the iteration early stops the work; nothing is left behind on the model.
        """
        _check_callbacks(progress, cancelled)
        return _reported(trace_maps(self._context, requests, specs, options, cancelled or (lambda: False)), progress)

    def trace_many(
        self,
        requests: Sequence[TraceRequest],
        spec: MapSpec | None = None,
        options: RunOptions | None = None,
        *,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> list[HiddenFlow]:
        """Trace one map of several prompts, by default of hidden states; see `trace_maps`."""
        specs = {"map": MapSpec() if spec is None else instance("spec", spec, MapSpec)}
        many = several("requests", requests)
        return [flows["map"] for flows in self.trace_maps(many, specs, options, progress=progress, cancelled=cancelled)]

    def calibrate_noise(
        self,
        facts: Sequence[str | HiddenFlowQuery],
        multipliers: Sequence[float] = MULTIPLIERS,
        samples: int = 10,
        seed: int = 1,
        *,
        progress: Progress | None = None,
    ) -> NoiseCalibration:
        """How far noise of several strengths takes the answer's probability down, and the level to use.

        Args:
            facts: Prompts that the model completes; a few dozen give a steady mean.
            multipliers: Noise levels to try, in standard deviations of the embedding's output.
            samples: Noise samples of each fact and level.
            seed: Seed of the noise.
            progress: Called with (facts done, facts in all).

        Raises:
            SettingsError: No facts, or multipliers that are not positive.
        """
        _check_callbacks(progress)
        asked = as_queries("facts", facts)
        return calibrate_noise(
            self._context, asked, multipliers, samples, seed, progress or (lambda _done, _total: None)
        )


def _check_callbacks(progress: Progress | None = None, cancelled: Callable[[], bool] | None = None) -> None:
    for name, callback in (("progress", progress), ("cancelled", cancelled)):
        optional(function)(name, callback)


def _reported(updates: Iterator[MapsUpdate], progress: Progress | None) -> Iterator[MapsUpdate]:
    for update in updates:
        if progress is not None:
            progress(update.done, update.total)
        yield update
