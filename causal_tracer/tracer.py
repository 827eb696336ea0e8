"""`CausalTracer`: the entry point of the package."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import nn

from causal_tracer.arguments import as_list, function, instance, optional, quoted, text
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
    """Locates facts in a decoder-only causal LM by causal tracing (Meng et al. 2022, arXiv 2202.05262, section 2).

    Attributes:
        model: The causal LM that is traced. Its weights, training mode and hooks stay unchanged.
        tokenizer: The model's tokenizer. It stays unchanged.
        layer_config: The names of the modules that are traced.
        noise: Standard deviation of the noise on the subject's embeddings.
        device: The device that token ids are moved to.
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
            model: A decoder-only causal LM, on one device or dispatched by accelerate. A base model without a head
                works too if its config ties the head to the embedding.
            tokenizer: The model's tokenizer.
            layer_config: The names of the modules to trace. None finds them from the model's structure.
            noise: Noise level. A number is a standard deviation in units of the embedding's output; 0 means no noise.
                "2 sigma" is a multiple of the standard deviation of the embedding's output over the vocabulary.
                `SubjectsNoise` is a multiple of the standard deviation of given subjects' embeddings. None is
                "3 sigma", the paper's level.
            device: The type of device that the model must be on, such as "cuda". The model is never moved. None
                accepts any device.
            model_id: The model's name in results. None takes it from the model's config.
            revision: The model's revision in results. None takes the commit hash from the model's config.

        Raises:
            ModelStructureError: The model is not a decoder-only causal LM, or its parts were not found.
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
            raise SettingsError(f"device={quoted(device)} is not a torch device. Give 'cpu' or 'cuda:0'.") from error
        if asked.type != self.device.type:
            raise SettingsError(
                f"The model is on {str(self.device)!r}, not on device={str(device)!r}. Move it first: "
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
        """Load a model with `load_model(name, **kwargs)` and return a tracer for it."""
        loaded = load_model(name, **kwargs)
        return cls(loaded.model, loaded.tokenizer, noise=noise, model_id=loaded.public_name, revision=loaded.revision)

    def __repr__(self) -> str:
        """Return the model's name and class, with its number of layers, dtype, noise and device."""
        context = self._context
        revision = "" if context.revision is None else f", revision {context.revision}"
        return (
            f"CausalTracer({context.model_id!r}{revision}: {type(self.model).__name__}, {self.count_layers()} layers, "
            f"{self._traced.dtype_name}, noise {self.noise:.4g} ({context.noise_rule}), {self.device})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return the tracer's state for pickling.

        Raises:
            PicklingError: A part cannot be pickled, such as a function defined inside another function.
        """
        state = dict(self.__dict__)
        require_picklable(state, "CausalTracer")
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> CausalTracer:
        """Return a tracer for a copy of the model. Functions are shared, as some of them cannot be copied."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    @property
    def context(self) -> TracingContext:
        """The model, tokenizer and noise level, as the engine's functions take them."""
        return self._context

    def count_layers(self) -> int:
        """Return the number of blocks."""
        return self._traced.n_layers

    def get_layer_names_of_kind(self, layer_kind: LayerKind) -> list[str]:
        """Return the module names of one kind of activation, in the order of the layers."""
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
            prompt: The text that the model continues, a conversation, or a whole request.
            subject: The part of the prompt to corrupt. None guesses it; the result then has `subject_guessed`.
            spec: The map to compute. None makes it from `settings`.
            options: How the map is computed. None makes them from `settings`.
            progress: Called with (restored runs done, total restored runs).
            cancelled: Called between batches; returning True stops the trace.
            settings: Any field of `TraceRequest`, `MapSpec` and `RunOptions`, such as kind="mlp" or samples=20.

        Returns:
            The map. Cells that were not computed are NaN.

        Raises:
            SettingsError, PromptError, SubjectError, TokenizerError: The arguments contradict each other or do not fit
                the model.
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
        """Trace several maps of one prompt in one sweep. The maps may differ in any field of `MapSpec`.

        Several prompts are traced one after the other. On a GPU, prompts of equal length share forward passes.

        Args:
            requests: One request, or several. A request is a prompt with the settings that its maps share.
            specs: The maps to compute, by names of your choice.
            options: How the maps are computed. None takes the defaults.
            progress: See `trace`.
            cancelled: See `trace`.

        Returns:
            The maps by name; for several requests, a list of such dicts. All maps of a prompt use the same noise, so
            that their cells can be paired sample by sample. Each map equals the one traced alone.
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

        Leaving the iteration early stops the computation. No hooks stay on the model.
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
        """Trace the same map of several prompts, by default of hidden states; see `trace_maps`."""
        specs = {"map": MapSpec() if spec is None else instance("spec", spec, MapSpec)}
        many = as_list("requests", requests)
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
        """Measure how much each noise level lowers the answer's probability, and recommend a level.

        Args:
            facts: Prompts that the model completes correctly. A few dozen give a stable mean.
            multipliers: Noise levels to try, in standard deviations of the embedding's output.
            samples: Number of noise samples for each fact and level.
            seed: Seed of the noise.
            progress: Called with (facts done, total facts).

        Raises:
            SettingsError: There are no facts, or a multiplier is not positive.
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
