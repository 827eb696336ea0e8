"""Patched runs: activations from one prompt's clean run patched into another prompt's run, any cell into any cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from causal_tracer.arguments import as_list, quoted, whole_number
from causal_tracer.errors import SettingsError
from causal_tracer.experiment.answers import ResolvedAnswer, resolve_answer
from causal_tracer.experiment.base_run import BaseRun
from causal_tracer.experiment.embeddings import subject_embeddings
from causal_tracer.experiment.set_up import TracingContext
from causal_tracer.experiment.sources import SOURCE
from causal_tracer.metrics.metric import AnswerProbability
from causal_tracer.model.causal_lm import require_weights
from causal_tracer.model.layers import INPUT, TracedModel
from causal_tracer.model.runs import Activations, CleanRun, clean_run
from causal_tracer.model.torch_state import in_standard_torch_state
from causal_tracer.prompts.decoding import token_text
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.records import Text, TraceRequest
from causal_tracer.request.sites import SITES, SiteName, require_kind
from causal_tracer.results.patched import PatchedAnswer, PatchedRun, Place
from causal_tracer.sweep.plan import Cell, Intervention, Sweep, SweepPlan
from causal_tracer.tracing.lens import answer_field, first_token_note, lens_of, recorded_streams, whole_prompt

Pair = tuple[Place, Place]
"""A cell of the source, and the cell of the base that takes its value."""


@in_standard_torch_state
def patched_run(
    context: TracingContext,
    source: Text,
    base: Text,
    pairs: Sequence[Pair],
    site: SiteName,
    answers: Sequence[str | int] | None,
    top: int,
) -> PatchedRun:
    """Run the base prompt with activations patched in from the source prompt; see `SingleRunCalls.patch`."""
    traced = context.traced
    require_weights(traced.model)
    source_prompt, prompt = whole_prompt(context, source), whole_prompt(context, base)
    pairs = _checked_pairs(traced, pairs, site, len(source_prompt), len(prompt))
    source_run = clean_run(traced, source_prompt.input_ids, sites=[site])
    asked = _resolve_answers(context, prompt, answers)
    base_clean = asked[0].clean
    own = [source_run.top_id] if answers is None else []
    ids = list(dict.fromkeys([*own, *(answer.ids[0] for answer in asked)]))
    sweep = _patch_sweep(
        traced, prompt, base_clean, _source_values(traced, source_run, pairs, site, len(prompt)), pairs, site
    )
    patched = recorded_streams(sweep, len(prompt))
    count = "1 pair" if len(pairs) == 1 else f"{len(pairs)} pairs"
    run = f"patched run, {count} of {SITES[site].patched}"
    lens = lens_of(context, prompt, ids[0], patched, top, run=run, notes=())
    rows = [logits.softmax(dim=-1) for logits in (source_run.logits[0], base_clean.logits[0], patched.logits[0])]
    return PatchedRun(
        source_prompt=source_prompt.text,
        source_tokens=source_prompt.tokens,
        base_prompt=prompt.text,
        base_tokens=prompt.tokens,
        site=site,
        pairs=pairs,
        answers=tuple(
            PatchedAnswer(answer, token_text(context.tokenizer, answer), *(float(row[answer]) for row in rows))
            for answer in ids
        ),
        lens=lens,
        cone=_cone(traced, pairs, site, len(prompt)),
        notes=(*source_prompt.notes, *prompt.notes, *_notes(context, asked)),
    )


def _resolve_answers(
    context: TracingContext, prompt: Prompt, answers: Sequence[str | int] | None
) -> list[ResolvedAnswer]:
    """Return the requested answers to the base prompt, or the model's own, each with the base prompt's clean run."""
    if answers is None:
        return [resolve_answer(context, TraceRequest(prompt), prompt, ())]
    given = as_list("answers", answers)
    if not given:
        raise SettingsError("answers is empty. Give texts or token ids, or None for the model's own answers.")
    return [resolve_answer(context, TraceRequest(prompt, **answer_field(answer)), prompt, ()) for answer in given]


def _notes(context: TracingContext, asked: Sequence[ResolvedAnswer]) -> tuple[str, ...]:
    return tuple(note for answer in asked for note in (*answer.notes, *first_token_note(context, answer.ids)))


def _patch_sweep(
    traced: TracedModel,
    prompt: Prompt,
    clean: CleanRun,
    values: Activations,
    pairs: Sequence[Pair],
    site: SiteName,
) -> Sweep:
    """Return a sweep of one cell, which makes all patches in the base prompt's clean run."""
    interventions = tuple(
        Intervention((place[1],), site, (place[0],), SOURCE, place[2] if len(place) > 2 else None) for _, place in pairs
    )
    embeddings = subject_embeddings(traced, prompt).embedded[None]
    base = BaseRun(prompt, embeddings, torch.zeros(1, dtype=torch.float32), {SOURCE: values})
    plan = SweepPlan((Cell(0, 0, interventions),))
    return Sweep(traced, clean, base, plan, AnswerProbability((clean.top_id,)), batch_size=1)


def _source_values(
    traced: TracedModel, run: CleanRun, pairs: Sequence[Pair], site: SiteName, n_tokens: int
) -> dict[str, Tensor]:
    """Return the source's activations at the base cells' tokens [1, base tokens, ...], by the base cells' modules."""
    values: dict[str, Tensor] = {}
    for source, base in pairs:
        taken_from, put_into = (_names(traced, site, place[1]) for place in (source, base))
        shapes = [[run.activations[name].shape[1:] for name in names] for names in (taken_from, put_into)]
        if shapes[0] != shapes[1]:
            raise SettingsError(
                f"The {SITES[site].patched} of layer {source[1]} do not fit into layer {base[1]}: the modules' widths "
                f"are {[list(shape) for shape in shapes[0]]} in layer {source[1]} and "
                f"{[list(shape) for shape in shapes[1]]} in layer {base[1]}. Choose layers of equal widths."
            )
        for name, into in zip(taken_from, put_into, strict=True):
            taken = run.activations[name]
            kept = values.setdefault(into, taken.new_zeros(1, n_tokens, *taken.shape[1:]))
            if len(base) == 2:
                kept[0, base[0]] = taken[source[0]]
            else:
                heads = [traced.head_sites[place[1]][1] for place in (source, base)]
                part = taken.reshape(len(taken), heads[0], -1)[source[0], source[2]]
                kept.view(1, n_tokens, heads[1], -1)[0, base[0], base[2]] = part
    return values


def _names(traced: TracedModel, site: SiteName, layer: int) -> list[str]:
    """Return the names of a site's activations in one layer."""
    return (
        [traced.head_sites[layer][0] + INPUT] if site == "head" else list(traced.site_names[require_kind(site)][layer])
    )


def _checked_pairs(
    traced: TracedModel, pairs: Any, site: SiteName, source_tokens: int, base_tokens: int
) -> tuple[Pair, ...]:
    """Return the pairs after checking them, with tokens counted from the start.

    Raises:
        SettingsError: A pair does not consist of two cells of the model, or two pairs have the same base cell.
    """
    found: list[Pair] = []
    for pair in as_list("pairs", pairs):
        ends = as_list("Each of pairs", pair)
        if len(ends) != 2:
            raise SettingsError(f"Each of pairs must be (source cell, base cell) (given: {quoted(pair)}).")
        source, base = (
            _checked_place(traced, name, end, site, tokens)
            for name, end, tokens in zip(("source", "base"), ends, (source_tokens, base_tokens), strict=True)
        )
        if base in [other for _, other in found]:
            raise SettingsError(f"Two pairs have the same base cell {base}. Leave one of them out.")
        found.append((source, base))
    if not found:
        raise SettingsError(
            "pairs is empty. Give one or more pairs ((source token, source layer), (base token, base layer))."
        )
    return tuple(found)


def _checked_place(traced: TracedModel, name: str, place: Any, site: SiteName, tokens: int) -> Place:
    numbers = as_list(f"The {name} cell", place)
    parts = ("token", "layer", "head")[: 3 if site == "head" else 2]
    if len(numbers) != len(parts):
        raise SettingsError(f"The {name} cell must be ({', '.join(parts)}) (given: {quoted(place)}).")
    token, layer, *head = (whole_number(f"{name} {part}", n) for part, n in zip(parts, numbers, strict=True))
    if not -tokens <= token < tokens:
        raise SettingsError(
            f"{name} token {token} is out of range: the {name} prompt has {tokens} tokens. Give 0 to {tokens - 1}, or "
            f"-{tokens} to -1 to count from the end."
        )
    if not 0 <= layer < traced.n_layers:
        raise SettingsError(
            f"{name} layer {layer} is out of range: the model has {traced.n_layers} layers "
            f"(0 to {traced.n_layers - 1})."
        )
    if layer in traced.missing_layers(site):
        raise SettingsError(f"{name} layer {layer} has no {SITES[site].label}. Choose another layer.")
    if head and not 0 <= head[0] < (heads := traced.head_sites[layer][1]):
        raise SettingsError(
            f"{name} head {head[0]} is out of range: layer {layer} has {heads} heads (0 to {heads - 1})."
        )
    return (token % tokens, layer, *head)


def _cone(traced: TracedModel, pairs: Sequence[Pair], site: SiteName, n_tokens: int) -> Tensor:
    """Return a mask of the residual stream's cells that a patched run can change [tokens, layers]."""
    cone = torch.zeros(n_tokens, traced.n_layers, dtype=torch.bool)
    for _, (token, layer, *_) in pairs:
        cone[token, layer] = True
        cone[token:, layer + 1 :] = True
        if site != "hidden" and traced.outputs_reach_later_tokens:
            cone[token:, layer] = True
    return cone
