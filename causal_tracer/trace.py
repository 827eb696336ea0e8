"""One trace from request to result: prompt, clean run, corrupted run, sweep, HiddenFlow."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.metadata import version
from typing import Any, get_args

import torch
from torch import Tensor

from causal_tracer.corruption import GaussianNoise
from causal_tracer.errors import SettingsError
from causal_tracer.flow import HiddenFlow, TraceSettings
from causal_tracer.layers import LayerKind, TracedModel, require_kind
from causal_tracer.metrics import AnswerProbability
from causal_tracer.prompts import Occurrence, Prompt, make_prompt, token_text
from causal_tracer.runs import CleanRun, CleanRunCache, CorruptedRun, corrupted_run
from causal_tracer.sweep.engine import EngineChoice, Verdict, choose_engine, default_batch_size, sweep
from causal_tracer.sweep.plan import SweepPlan, map_plan, telling_order
from causal_tracer.version import __version__


@dataclass(frozen=True)
class TraceRequest:
    """What a user asks for, checked as far as it can be without the model.

    Attributes:
        text: The prompt.
        subject: A part of the prompt, or None to have it guessed.
        kind: Which activations to restore.
        answer_id: The token whose probability is read; None takes the clean run's most probable one.
        samples: Noise samples.
        window: Number of consecutive layers restored together.
        seed: Seed of the noise.
        batch_size: Rows that go through the model together; None takes what the model and the machine allow.
        start_layer: First layer to compute.
        end_layer: One past the last layer to compute; None computes up to the last block.
        subject_tokens_only: Restore at the subject's tokens only.
        occurrence: Which occurrence of the subject is meant.
        engine: "auto" takes the fastest sweep shown to be right on the model, "full" the full one.
    """

    text: str
    subject: str | None = None
    kind: LayerKind = "hidden"
    answer_id: int | None = None
    samples: int = 10
    window: int = 1
    seed: int = 1
    batch_size: int | None = None
    start_layer: int = 0
    end_layer: int | None = None
    subject_tokens_only: bool = False
    occurrence: Occurrence = "last"
    engine: EngineChoice = "auto"

    def __post_init__(self) -> None:
        require_kind(self.kind)
        if self.engine not in get_args(EngineChoice):
            raise SettingsError(f'engine={self.engine!r} is not known. Choose "auto" or "full".')
        for item in fields(self):
            value = getattr(self, item.name)
            if item.type == "int" or (item.type == "int | None" and value is not None):
                object.__setattr__(self, item.name, _whole_number(item.name, value))
        for name in ("samples", "window", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name}={value} is too small. Give 1 or more.")

    def layer_range(self, n_layers: int) -> range:
        """The layers to compute.

        Raises:
            SettingsError: The range is empty or reaches outside the model.
        """
        end = n_layers if self.end_layer is None else self.end_layer
        if not 0 <= self.start_layer < end <= n_layers:
            raise SettingsError(
                f"start_layer={self.start_layer}, end_layer={self.end_layer} names no layers of a model that has "
                f"{n_layers}. Choose 0 <= start_layer < end_layer <= {n_layers}."
            )
        return range(self.start_layer, end)


def _whole_number(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise SettingsError(f"{name}={value!r} is no whole number. Give one.") from error


@dataclass(frozen=True, eq=False)
class TracingContext:
    """What a trace is done on: a model with its tokenizer, its noise, and the clean runs it shares."""

    traced: TracedModel
    tokenizer: Any
    model_id: str
    revision: str | None
    noise: float
    noise_rule: str
    clean_runs: CleanRunCache


@dataclass(frozen=True, eq=False)
class KindsUpdate:
    """Maps of several kinds on their way, as in `FlowUpdate`."""

    flows: Mapping[LayerKind, HiddenFlow]
    done: int
    total: int


@dataclass(frozen=True, eq=False)
class FlowUpdate:
    """A map on its way: the cells known so far, NaN in the others.

    Attributes:
        flow: The map; complete in the last update.
        done: Restored runs done.
        total: Restored runs in all.
    """

    flow: HiddenFlow
    done: int
    total: int


def prompt_for(context: TracingContext, text: str, part: str | None, occurrence: Occurrence = "last") -> Prompt:
    """The prompt, tokenized and checked against the model."""
    traced = context.traced
    return make_prompt(
        context.tokenizer,
        text,
        part,
        occurrence=occurrence,
        context_length=traced.context_length,
        vocab_size=traced.vocab_size,
    )


def trace(
    context: TracingContext, request: TraceRequest, cancelled: Callable[[], bool] = lambda: False
) -> Iterator[FlowUpdate]:
    """Trace one prompt for one kind, handing on the map each time cells become known; see `trace_kinds`."""
    for update in trace_kinds(context, request, {request.kind: request.window}, cancelled):
        yield FlowUpdate(update.flows[request.kind], update.done, update.total)


def trace_kinds(
    context: TracingContext,
    request: TraceRequest,
    windows: Mapping[LayerKind, int],
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[KindsUpdate]:
    """Trace one prompt for several kinds in one sweep, which share clean run, noise and corrupted run.

    Args:
        context: The model.
        request: What is asked for; its own kind and window are not used.
        windows: The kinds to trace, with the window of each.
        cancelled: Asked as the sweep goes; True stops it.

    Yields:
        One update before the first cell, and one each time cells have become known.

    Raises:
        SettingsError, PromptError, TokenizerError: The request does not fit the model.
        NumericsError: A run gave NaN or infinite logits.
        TraceCancelled: `cancelled` said so.
    """
    traced = context.traced
    requests = {kind: replace(request, kind=kind, window=window) for kind, window in windows.items()}
    layers = request.layer_range(traced.n_layers)
    prompt = prompt_for(context, request.text, request.subject, request.occurrence)
    if request.answer_id is not None and not 0 <= request.answer_id < traced.vocab_size:
        raise SettingsError(
            f"Answer id {request.answer_id} is not in the vocabulary. Its ids are 0 to {traced.vocab_size - 1}."
        )
    batch_size = request.batch_size or default_batch_size(traced, len(prompt))
    clean = context.clean_runs.get(prompt)
    metric = AnswerProbability(clean.top_id if request.answer_id is None else request.answer_id)
    corruption = GaussianNoise(context.noise, request.seed)
    corrupted = corrupted_run(traced, prompt, corruption, request.samples, metric, batch_size)
    verdict = choose_engine(traced, request.engine, len(prompt))

    positions = range(*prompt.subject_range) if request.subject_tokens_only else range(len(prompt))
    order = telling_order(prompt)
    owned = [
        (kind, cell)
        for kind, asked in requests.items()
        for cell in map_plan(traced, prompt, kind, asked.window, positions, layers).cells
    ]
    owned.sort(key=lambda item: order(item[1].position))
    plan = SweepPlan(tuple(cell for _, cell in owned))
    kinds = list(requests)
    planes = torch.tensor([kinds.index(kind) for kind, _ in owned], dtype=torch.long)
    rows = torch.tensor([cell.position for cell in plan.cells], dtype=torch.long)
    columns = torch.tensor([cell.layer for cell in plan.cells], dtype=torch.long)
    sample_scores = torch.full((len(kinds), request.samples, len(prompt), traced.n_layers), torch.nan)
    describe = {
        kind: _describe(context, asked, prompt, clean, corrupted, metric.answer_id, batch_size, verdict)
        for kind, asked in requests.items()
    }

    def update(done: int) -> KindsUpdate:
        flows = {kind: describe[kind](sample_scores[plane]) for plane, kind in enumerate(kinds)}
        return KindsUpdate(flows, done, len(plan.cells) * request.samples)

    done = 0
    yield update(done)
    for chunk in sweep(verdict, traced, clean, corrupted, plan, metric, batch_size, cancelled):
        place = (planes[chunk.cells], chunk.samples, rows[chunk.cells], columns[chunk.cells])
        sample_scores[place] = chunk.scores
        done += len(chunk.scores)
        yield update(done)


def _describe(
    context: TracingContext,
    request: TraceRequest,
    prompt: Prompt,
    clean: CleanRun,
    corrupted: CorruptedRun,
    answer_id: int,
    batch_size: int,
    verdict: Verdict,
) -> Callable[[Tensor], HiddenFlow]:
    """Everything in a result but its scores."""
    traced = context.traced
    layers = request.layer_range(traced.n_layers)
    names = [name for layer in traced.site_names[request.kind] for name in layer]
    # Copies: what a user does to a result must not reach the cached clean run.
    layer_outputs = OrderedDict((name, clean.activations[name].to("cpu", torch.float32, copy=True)) for name in names)
    settings = TraceSettings(
        model=context.model_id,
        revision=context.revision,
        dtype=str(traced.dtype).removeprefix("torch."),
        noise=context.noise,
        noise_rule=context.noise_rule,
        samples=request.samples,
        seed=request.seed,
        window=request.window,
        batch_size=batch_size,
        start_layer=layers.start,
        end_layer=layers.stop,
        subject_tokens_only=request.subject_tokens_only,
        engine=verdict.name,
        versions=_versions(),
    )
    notes = []
    if prompt.subject_count > 1:
        notes.append(
            f"The subject occurs {prompt.subject_count} times in the prompt; the {request.occurrence} one is traced."
        )
    if missing := traced.missing_layers(request.kind):
        notes.append(f"Layers without {request.kind}: {', '.join(map(str, missing))}.")

    if request.engine == "auto" and verdict.tried:
        notes.append(f"Computed by the slower sweep {verdict.name!r}: {'; '.join(verdict.tried)}.")

    def result(sample_scores: Tensor) -> HiddenFlow:
        return HiddenFlow(
            # NaN until all samples of a cell are there.
            scores=sample_scores.mean(dim=0),
            low_score=float(corrupted.scores.mean()),
            high_score=float(clean.probabilities[answer_id]),
            input_ids=clean.input_ids.clone(),
            input_tokens=list(prompt.tokens),
            subject_range=prompt.subject_range,
            answer=token_text(context.tokenizer, answer_id),
            kind=request.kind,
            layer_outputs=layer_outputs,
            answer_id=answer_id,
            prompt=prompt.text,
            subject=prompt.subject,
            subject_guessed=prompt.subject_guessed,
            sample_scores=sample_scores.clone(),
            low_sample_scores=corrupted.scores,
            settings=settings,
            notes=tuple(notes),
        )

    return result


@cache
def _versions() -> dict[str, str]:
    return {"causal_tracer": __version__, "torch": torch.__version__, "transformers": version("transformers")}
