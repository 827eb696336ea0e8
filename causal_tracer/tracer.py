"""CausalTracer: the face of the package."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from causal_tracer.arguments import function, instance, optional, several, shown, text
from causal_tracer.corruption import NoiseRule
from causal_tracer.errors import SettingsError
from causal_tracer.experiment.calibration import MULTIPLIERS, calibrate_noise
from causal_tracer.experiment.noise_levels import noise_level
from causal_tracer.experiment.set_up import TracingContext
from causal_tracer.loading.models import load_model, public_model_name
from causal_tracer.model.layer_config import LayerConfig
from causal_tracer.model.layers import trace_model
from causal_tracer.model.pickling import require_picklable
from causal_tracer.prompts.subject import Occurrence
from causal_tracer.request.records import EngineChoice, HiddenFlowQuery, MapSpec, TraceRequest
from causal_tracer.request.sites import KINDS, LayerKind, require_kind
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.noise_calibration import NoiseCalibration
from causal_tracer.tracing.batched import can_share_passes, trace_together
from causal_tracer.tracing.heads import HeadFlow, trace_heads
from causal_tracer.tracing.loop import FlowUpdate, trace, trace_maps

Progress = Callable[[int, int], None]
"""Called with (restored runs done, restored runs in all)."""

DEFAULT_WINDOWS: Mapping[LayerKind, int] = {"hidden": 1, "mlp": 10, "attention": 10}
"""The windows of the ROME paper (arXiv 2202.05262, Figure 1): single hidden states, ten MLP or attention layers."""


class CausalTracer:
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
            raise SettingsError(
                f"device={shown(device)} is not a device of torch, such as 'cpu' or 'cuda:0'."
            ) from error
        if asked.type != self.device.type:
            raise SettingsError(
                f"device={str(device)!r} was asked for, and the model is on {str(self.device)!r}. Move it first: "
                f"model.to({str(device)!r})"
            )
        level, rule = noise_level(self._traced, tokenizer, noise)
        self.noise = level
        config: Any = self.model.config
        self._context = TracingContext(
            traced=self._traced,
            tokenizer=tokenizer,
            model_id=model_id or public_model_name(getattr(config, "_name_or_path", None)) or type(self.model).__name__,
            revision=revision or getattr(config, "_commit_hash", None),
            noise=level,
            noise_rule=rule,
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
        return [name for layer in self._traced.site_names[require_kind(layer_kind)] for name in layer]

    def calculate_hidden_flow(
        self,
        prompt: str,
        subject: str | None = None,
        kind: LayerKind = "hidden",
        answer_id_override: int | None = None,
        samples: int = 10,
        window: int = 1,
        patch_seed: int = 1,
        batch_size: int | None = None,
        start_layer: int = 0,
        end_layer: int | None = None,
        patch_subject_tokens_only: bool = False,
        *,
        subject_occurrence: Occurrence = "last",
        engine: EngineChoice = "auto",
        audit: bool = True,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> HiddenFlow:
        """Trace one prompt.

        Args:
            prompt: The text that the model goes on from.
            subject: The part of it to corrupt; None has it guessed, and the result says so.
            kind: Restore "hidden" states (a block's output), "mlp" or "attention" outputs.
            answer_id_override: The token whose probability is read; None takes the model's own answer.
            samples: Noise samples; all cells see the same draws.
            window: Number of consecutive layers restored together, centred on the cell's layer.
            patch_seed: Seed of the noise.
            batch_size: Rows that go through the model together; None takes what the model, the prompt's length
                and the machine's total memory allow.
            start_layer: First layer to compute.
            end_layer: One past the last layer to compute; None computes up to the last block.
            patch_subject_tokens_only: Restore at the subject's tokens only.
            subject_occurrence: Which one is meant where the subject occurs more than once: "first" or "last".
            engine: "auto" takes the fastest sweep that has been shown to be right on this model; "full" runs the whole
                model again for every cell, slowly, and is what all others are checked against.
            audit: Compute a few cells again by the full sweep, and the whole map where they differ.
            progress: Called with (runs done, runs in all) as it goes.
            cancelled: Asked between batches; True stops the trace.

        Returns:
            The map. Cells that were not computed are NaN.

        Raises:
            SettingsError, PromptError, SubjectError, TokenizerError: The arguments do not fit together or the model.
            NumericsError: A run gave NaN or infinite logits.
            TraceCancelled: `cancelled` said so.
        """
        request = TraceRequest(
            text=prompt,
            subject=subject,
            kind=kind,
            answer_id=answer_id_override,
            samples=samples,
            window=window,
            seed=patch_seed,
            batch_size=batch_size,
            start_layer=start_layer,
            end_layer=end_layer,
            subject_tokens_only=patch_subject_tokens_only,
            occurrence=subject_occurrence,
            engine=engine,
            audit=audit,
        )
        return self._trace_all([request], progress, cancelled)[0]

    def calculate_hidden_flows(
        self,
        queries: Sequence[str | HiddenFlowQuery],
        samples: int = 10,
        window: int = 1,
        kind: LayerKind = "hidden",
        patch_seed: int = 1,
        batch_size: int | None = None,
        start_layer: int = 0,
        end_layer: int | None = None,
        patch_subject_tokens_only: bool = False,
        *,
        engine: EngineChoice = "auto",
        audit: bool = True,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[HiddenFlow]:
        """Trace several prompts, of any lengths; each result equals that of the prompt alone.

        The arguments are those of `calculate_hidden_flow`, in the order that causal-tracer 1.1.0 has here.
        """
        asked = _queries("queries", queries)
        requests = [
            TraceRequest(
                text=query.text,
                subject=query.subject,
                kind=kind,
                answer_id=query.override_answer_id,
                samples=samples,
                window=window,
                seed=patch_seed,
                batch_size=batch_size,
                start_layer=start_layer,
                end_layer=end_layer,
                subject_tokens_only=patch_subject_tokens_only,
                engine=engine,
                audit=audit,
            )
            for query in asked
        ]
        return self._trace_all(requests, progress, cancelled)

    def calculate_hidden_flow_of_kinds(
        self,
        prompt: str,
        subject: str | None = None,
        kinds: Sequence[LayerKind] = KINDS,
        windows: Mapping[LayerKind, int] | None = None,
        *,
        answer_id_override: int | None = None,
        samples: int = 10,
        patch_seed: int = 1,
        batch_size: int | None = None,
        start_layer: int = 0,
        end_layer: int | None = None,
        patch_subject_tokens_only: bool = False,
        subject_occurrence: Occurrence = "last",
        engine: EngineChoice = "auto",
        audit: bool = True,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> dict[LayerKind, HiddenFlow]:
        """Trace one prompt for several kinds, with the same noise.

        Args:
            prompt: As in `calculate_hidden_flow`, like all arguments not named here.
            subject: The part of the prompt to corrupt.
            kinds: The kinds to trace.
            windows: The window of each kind; where not given, the paper's: 1 for hidden, 10 for MLP and attention.

        Returns:
            A map for each kind.
        """
        base = TraceRequest(
            text=prompt,
            subject=subject,
            answer_id=answer_id_override,
            samples=samples,
            seed=patch_seed,
            batch_size=batch_size,
            start_layer=start_layer,
            end_layer=end_layer,
            subject_tokens_only=patch_subject_tokens_only,
            occurrence=subject_occurrence,
            engine=engine,
            audit=audit,
        )
        asked: Mapping[Any, int] = {} if windows is None else instance("windows", windows, Mapping)  # type: ignore[type-abstract]
        given = {require_kind(kind): window for kind, window in asked.items()}
        chosen = {kind: {**DEFAULT_WINDOWS, **given}[kind] for kind in map(require_kind, several("kinds", kinds))}
        specs: dict[str, MapSpec] = {kind: MapSpec(kind, window) for kind, window in chosen.items()}
        flows = self.trace_maps(base, specs, progress=progress, cancelled=cancelled)
        return {kind: flows[kind] for kind in chosen}

    def trace_maps(
        self,
        request: TraceRequest,
        specs: Mapping[str, MapSpec],
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> dict[str, HiddenFlow]:
        """Trace one prompt for several maps in one sweep: kinds and windows, severed ones, placebos.

        Args:
            request: The prompt, and what all maps share; its own kind and window are not used.
            specs: The maps, by names of your choice.
            progress: Called with (runs done, runs in all) as it goes.
            cancelled: Asked as it goes; True stops the trace.

        Returns:
            A map for each name; all see the same noise, so that their cells can be paired sample by sample.
        """
        _check_callbacks(progress, cancelled)
        flows: Mapping[str, HiddenFlow] = {}
        for update in trace_maps(self._context, request, specs, cancelled or (lambda: False)):
            flows = update.flows
            if progress is not None:
                progress(update.done, update.total)
        return dict(flows)

    def trace(
        self,
        request: TraceRequest,
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> HiddenFlow:
        """Trace one prompt as a `TraceRequest` says: any corruption, metric, direction, answer or read position.

        Raises:
            SettingsError, PromptError, TokenizerError, NumericsError, TraceCancelled: As in `calculate_hidden_flow`.
        """
        return self._trace_all([request], progress, cancelled)[0]

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
        asked = _queries("facts", facts)
        return calibrate_noise(
            self._context, asked, multipliers, samples, seed, progress or (lambda _done, _total: None)
        )

    def calculate_head_flow(
        self,
        request: TraceRequest,
        token: int | None = None,
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> HeadFlow:
        """Trace single attention heads at one token: head x layer.

        Args:
            request: The prompt, and how; its window holds, its kind is not used.
            token: The position at which heads are restored; None means the last token.
            progress: Called with (runs done, runs in all) as it goes.
            cancelled: Asked as it goes; True stops the trace.

        Raises:
            ModelStructureError: The model's attention has no heads that could be told apart.
            SettingsError, PromptError, TokenizerError, NumericsError, TraceCancelled: As in `calculate_hidden_flow`.
        """
        _check_callbacks(progress, cancelled)
        return trace_heads(self._context, request, token, progress or (lambda _done, _total: None), cancelled)

    def stream(self, request: TraceRequest, cancelled: Callable[[], bool] | None = None) -> Iterator[FlowUpdate]:
        """Trace one prompt and hand on the map as it fills in, the most telling tokens first.

        Leaving the iteration early stops the work; nothing is left behind on the model.
        """
        _check_callbacks(cancelled=cancelled)
        instance("request", request, TraceRequest)
        return trace(self._context, request, cancelled or (lambda: False))

    def _trace_all(
        self, requests: Sequence[TraceRequest], progress: Progress | None, cancelled: Callable[[], bool] | None
    ) -> list[HiddenFlow]:
        _check_callbacks(progress, cancelled)
        for request in requests:
            instance("request", request, TraceRequest)
        shared = self.device.type == "cuda" and len(requests) > 1 and all(map(can_share_passes, requests))
        if shared:
            return trace_together(
                self._context, requests, progress or (lambda _done, _total: None), cancelled or (lambda: False)
            )
        flows = []
        before, expected = 0, 0
        for number, request in enumerate(requests):
            update = None
            for update in self.stream(request, cancelled):
                if progress is not None:
                    # Prompts still to come are counted at the size of this one.
                    expected = before + update.total * (len(requests) - number)
                    progress(before + update.done, expected)
            if update is not None:
                before += update.total
                flows.append(update.flow)
        return flows


def _check_callbacks(progress: Progress | None = None, cancelled: Callable[[], bool] | None = None) -> None:
    for name, callback in (("progress", progress), ("cancelled", cancelled)):
        optional(function)(name, callback)


def _queries(name: str, given: Sequence[str | HiddenFlowQuery]) -> list[HiddenFlowQuery]:
    return [
        HiddenFlowQuery(item) if isinstance(item, str) else instance(f"Each of {name}", item, HiddenFlowQuery)
        for item in several(name, given)
    ]
