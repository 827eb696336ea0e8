"""The logit lens: the residual stream after each layer, read by final norm and head (nostalgebraist 2020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from causal_tracer.arguments import whole_number
from causal_tracer.errors import ModelStructureError, SettingsError, TraceCancelled
from causal_tracer.experiment.answers import resolve_answer
from causal_tracer.experiment.samples import run_samples
from causal_tracer.experiment.set_up import Experiment, TracingContext, prompt_for, set_up
from causal_tracer.metrics.distribution import Distributions, distributions_of
from causal_tracer.model.batch_size import default_batch_size
from causal_tracer.model.causal_lm import require_weights
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.quantization import quantizes_activations
from causal_tracer.model.runs import ActivationRecorder
from causal_tracer.model.torch_state import in_standard_torch_state
from causal_tracer.model.wrappers import model_notes
from causal_tracer.prompts.chat import ChatText
from causal_tracer.prompts.decoding import token_text
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.records import MapSpec, RunOptions, SamplesUntil, Text, TraceRequest
from causal_tracer.request.sites import KINDS, SITES, SPANS
from causal_tracer.results.labels import display_token
from causal_tracer.results.lens import LogitLens
from causal_tracer.sweep.check import FAILURES
from causal_tracer.sweep.full import full_sweep
from causal_tracer.sweep.plan import Cell, Sweep, SweepPlan
from causal_tracer.sweep.read_out import ReadOut, recording_block_outputs
from causal_tracer.tracing.cells import cells_of_maps
from causal_tracer.tracing.maps import library_versions


@dataclass(frozen=True, eq=False)
class Streams:
    """The residual stream after each block of a run, and the model's own logits to check the lens against.

    Attributes:
        states: The residual stream [samples, tokens, layers, ...], on the device of the last block's output.
        outputs: The output of each block, whose form a skipped block must return.
        read: The position whose logits were read.
        logits: The model's logits at that position [samples, vocabulary], float32.
    """

    states: Tensor
    outputs: Mapping[int, Any]
    read: int
    logits: Tensor


@in_standard_torch_state
def prompt_lens(context: TracingContext, request: TraceRequest, top: int, cancelled: Callable[[], bool]) -> LogitLens:
    """Return the lens of the clean run of a request's prompt; see `SingleRunCalls.lens`."""
    require_weights(context.traced.model)
    prompt = whole_prompt(context, request.prompt)
    with recording_block_outputs(context.traced) as outputs:
        answer = resolve_answer(context, request, prompt, ("hidden",))
    activations = {name: values[None] for name, values in answer.clean.activations.items()}
    states = stacked_states(context.traced, activations, len(prompt))
    streams = Streams(states, outputs, answer.reads[0], answer.clean.logits[:1])
    notes = prompt.notes + answer.notes + first_token_note(context, answer.ids)
    return lens_of(context, prompt, answer.ids[0], streams, top, run="clean run", notes=notes, cancelled=cancelled)


@in_standard_torch_state
def noisy_lens(
    context: TracingContext,
    request: TraceRequest,
    spec: MapSpec,
    options: RunOptions,
    top: int,
    restored: tuple[int, int] | None,
    cancelled: Callable[[], bool],
) -> LogitLens:
    """Return the lens of a request's corrupted run, or of the run of one cell of its map; see `SingleRunCalls.lens`."""
    traced = context.traced
    if isinstance(samples := request.samples, SamplesUntil):
        raise SettingsError(f"A lens needs a fixed number of samples (given: samples={samples}). Give an integer.")
    if restored is None:
        # With direction "corrupt" the base run is the clean run; the corrupted run is requested.
        request = replace(request, direction="restore")
    experiment = set_up(context, request, {*KINDS, spec.kind})
    cell = Cell(0, 0, ()) if restored is None else _cell(experiment, spec, restored)
    batch_size = options.batch_size or default_batch_size(traced, len(experiment.base_input.sequence))
    embeddings = experiment.embeddings(0, samples)
    base, _ = run_samples(experiment, embeddings, [spec], batch_size, None)
    plan = SweepPlan((cell,), experiment.base_input.reads)
    sweep = Sweep(traced, experiment.clean, base, plan, experiment.metric, batch_size, seed=request.seed)
    prompt = experiment.base_prompt
    streams = recorded_streams(sweep, len(prompt))
    low = "second prompt" if experiment.second is not None else "corrupted run"
    run = low if restored is None else _patch_words(experiment, spec, cell)
    if base.samples > 1:
        run += f", mean of {base.samples} samples"
    notes = experiment.notes + first_token_note(context, experiment.answer_ids)
    answer_id = experiment.answer_ids[0]
    return lens_of(context, prompt, answer_id, streams, top, run=run, notes=notes, cancelled=cancelled)


def answer_field(answer: str | int | None) -> dict[str, Any]:
    """Return the field of a request for an answer given as text or as a token id."""
    return {} if answer is None else {"answer" if isinstance(answer, str) else "answer_id": answer}


def first_token_note(context: TracingContext, answer_ids: Sequence[int]) -> tuple[str, ...]:
    """Return a note that only the answer's first token is read, if the answer has several."""
    if len(answer_ids) == 1:
        return ()
    first = token_text(context.tokenizer, answer_ids[0])
    return (f"The answer has {len(answer_ids)} tokens. The first one is read: {first!r}.",)


def whole_prompt(context: TracingContext, text: Text) -> Prompt:
    """Return the prompt of a run without a subject. The whole text, or the last message, is marked as the subject."""
    subject = text
    if isinstance(text, ChatText):
        contents = [text.assistant_prefix, *(message["content"] for message in text.messages)]
        subject = next((content for content in reversed(contents) if content.strip()), "")
    return prompt_for(context, text, subject if isinstance(subject, str) else None)


def recorded_streams(sweep: Sweep, n_tokens: int) -> Streams:
    """Run the single cell of a sweep in every sample, and return the residual streams of the first `n_tokens`."""
    recorder, logits = ActivationRecorder(sweep.traced.activation_names("hidden")), []
    with recording_block_outputs(sweep.traced) as outputs:
        for _ in full_sweep(
            sweep, on_logits=lambda computed: logits.append(computed.logits[:, 0].cpu()), record=recorder
        ):
            pass
    states = stacked_states(sweep.traced, recorder.values(), n_tokens)
    return Streams(states, outputs, sweep.reads[0], torch.cat(logits))


def stacked_states(traced: TracedModel, activations: Mapping[str, Tensor], n_tokens: int) -> Tensor:
    """Stack block outputs, given by module name, to the streams after each block [samples, tokens, layers, ...]."""
    streams = [activations[name][:, :n_tokens] for name in traced.activation_names("hidden")]
    return torch.stack([stream.to(streams[-1].device) for stream in streams], dim=2)


def lens_of(
    context: TracingContext,
    prompt: Prompt,
    answer_id: int,
    streams: Streams,
    top: int,
    *,
    run: str,
    notes: Sequence[str],
    cancelled: Callable[[], bool] = lambda: False,
) -> LogitLens:
    """Return the lens of a run. Over several samples, the probabilities are averaged.

    Args:
        context: The model.
        prompt: The prompt of the run.
        answer_id: The token whose probability and rank are read.
        streams: The run's residual streams.
        top: Number of most probable tokens to keep for each cell.
        run: The name of the run in the result.
        notes: Notes for the result.
        cancelled: Called before each group of cells is read; returning True stops the lens.

    Raises:
        TraceCancelled: `cancelled` returned True.
        SettingsError: `top` is not between 1 and the size of the vocabulary.
        ModelStructureError: The model has no final norm, or the last layer does not give the model's own logits.
        NumericsError: A logit is NaN or infinite.
    """
    traced, tokenizer = context.traced, context.tokenizer
    whole_number("top", top, 1, traced.vocab_size)
    norm = traced.final_norm
    samples, tokens, layers = streams.states.shape[:3]
    read = _read_cells(traced, prompt.input_ids[-1], streams, answer_id, top, cancelled)
    by_cell = Distributions(*(values.cpu().view(tokens, layers, *values.shape[1:]) for values in read))
    return LogitLens(
        prompt=prompt.text,
        input_ids=torch.tensor(prompt.input_ids),
        input_tokens=prompt.tokens,
        top_ids=by_cell.top_ids,
        top_probabilities=by_cell.top_probabilities,
        texts={token: token_text(tokenizer, token) for token in sorted(set(by_cell.top_ids.flatten().tolist()))},
        answer=token_text(tokenizer, answer_id),
        answer_id=answer_id,
        answer_probabilities=by_cell.answer_probabilities,
        answer_ranks=by_cell.answer_ranks,
        entropies=by_cell.entropies,
        run=run,
        samples=samples,
        model=context.model_id,
        revision=context.revision,
        dtype=traced.dtype_name,
        final_norm=norm,
        versions=dict(library_versions()),
        notes=(*notes, *model_notes(traced.model)),
    )


def _read_cells(
    traced: TracedModel, token_id: int, streams: Streams, answer_id: int, top: int, cancelled: Callable[[], bool]
) -> Distributions:
    """Read all cells, ordered by token and then by layer, in chunks that bound rows x vocabulary."""
    read_out = ReadOut(traced, streams.outputs, token_id, reads=1, broadcast=False, what="lens's")
    samples, _, layers = streams.states.shape[:3]
    cells = streams.states.flatten(1, 2)
    checked = streams.read * layers + layers - 1
    parts = []
    # Averaging over samples keeps two more distributions per row in memory.
    most = read_out.most_rows if samples == 1 else max(1, read_out.most_rows // 3)
    for chunk in torch.split(torch.arange(cells.shape[1]), most):
        if cancelled():
            raise TraceCancelled("The lens was cancelled.")
        total: Tensor | None = None
        for sample in range(samples):
            logits = _read(read_out, cells[sample, chunk])
            if checked in chunk:
                _require_own_logits(traced, logits[checked - int(chunk[0])], streams.logits[sample])
            if samples > 1:
                probabilities = logits.softmax(dim=-1)
                total = probabilities if total is None else total + probabilities
        if total is not None:
            # The logarithm gives logits of the mean distribution; clamping keeps probabilities of 0 finite.
            logits = (total / samples).clamp(min=torch.finfo(torch.float32).tiny).log()
        parts.append(distributions_of(logits, answer_id, top))
    return Distributions(*map(torch.cat, zip(*parts, strict=True)))


def _read(read_out: ReadOut, states: Tensor) -> Tensor:
    """Return the logits of states [rows, ...]."""
    try:
        return read_out(states[:, None])[:, 0]
    except torch.OutOfMemoryError:
        raise  # a RuntimeError too, but not caused by the model's structure
    except FAILURES as error:
        raise ModelStructureError(
            f"The logit lens does not work on {type(read_out.traced.model).__name__}: its final norm and head do not "
            f"run without its blocks ({type(error).__name__}: {error})."
        ) from error


def _require_own_logits(traced: TracedModel, found: Tensor, own: Tensor) -> None:
    """Check that the lens of the last block's output equals the model's own logits."""
    exact = traced.dtype in (torch.float32, torch.float64) and not quantizes_activations(traced.model)
    allowed = (1e-4 if exact else 0.03) * max(1.0, float(own.abs().max()))
    difference = float((found.cpu() - own).abs().max())
    if not difference <= allowed:
        raise ModelStructureError(
            f"The logit lens does not work on {type(traced.model).__name__}: the last block's output, read through "
            f"{traced.final_norm!r} and the head, gives logits that differ from the model's own by {difference:.2g} "
            f"({allowed:.2g} is allowed). The model's logits depend on more than the last block's output at that token."
        )


def _cell(experiment: Experiment, spec: MapSpec, place: tuple[int, int]) -> Cell:
    """Return the cell of a map at (row, layer)."""
    row, layer = (whole_number("restored", number) for number in place)
    cells = [cell for _, cell in cells_of_maps(experiment, {"map": spec})]
    row = row + len(experiment.prompt) if row < 0 and SITES[spec.kind].rows == "tokens" else row
    for cell in cells:
        if (cell.position, cell.layer) == (row, layer):
            return cell
    rows, layers = ({getattr(cell, name) for cell in cells} for name in ("position", "layer"))
    raise SettingsError(
        f"restored={tuple(place)} is not a cell of this map. Give (row, layer) with a row from {min(rows)} to "
        f"{max(rows)} and a layer from {min(layers)} to {max(layers)}."
    )


def _patch_words(experiment: Experiment, spec: MapSpec, cell: Cell) -> str:
    """Return a description of the intervention at a cell."""
    site, tokens = SITES[spec.kind], experiment.prompt.tokens
    row = SPANS[cell.position] if site.rows == "spans" else f"head {cell.position}"
    if site.rows == "tokens":
        row = repr(display_token(tokens[cell.position]))
    if site.blocks:
        return f"attention to {row} blocked around layer {cell.layer}"
    if site.rows == "heads":
        row = f"{row} at {display_token(tokens[spec.at_tokens(len(tokens))[0]])!r}"
    done = "corrupted" if experiment.request.direction == "corrupt" else "restored"
    if spec.ablates:
        done = f"set to {spec.source}"
    elif experiment.second is not None:
        done = "patched"
    return f"{site.patched} at {row}, layer {cell.layer}, {done}"
