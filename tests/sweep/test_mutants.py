"""Mutants: engines with a deliberate error. The checks of `test_sweep.py` must catch every one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from causal_tracer.experiment.embeddings import subject_embeddings
from causal_tracer.metrics.metric import AnswerProbability
from causal_tracer.model.layers import TracedModel
from causal_tracer.sweep.full import full_sweep
from causal_tracer.sweep.plan import Cell, Intervention, Sweep, SweepChunk, SweepPlan
from tests.support import structure_checks as layer_checks
from tests.support import sweep_checks as checks
from tests.support.tiny_models import tiny_tracer

Chunks = Iterator[SweepChunk]
NAMES = ("gpt2", "gemma3_text")


def _with_interventions(plan: SweepPlan, change: Callable[[Intervention], Intervention | None]) -> SweepPlan:
    def changed(cell: Cell) -> Cell:
        made = (change(intervention) for intervention in cell.interventions)
        return replace(cell, interventions=tuple(item for item in made if item is not None))

    return SweepPlan(tuple(changed(cell) for cell in plan.cells))


def ignores_restoration(sweep: Sweep) -> Chunks:
    yield from full_sweep(replace(sweep, plan=_with_interventions(sweep.plan, lambda _: None)))


def returns_low_score(sweep: Sweep) -> Chunks:
    cells = torch.arange(len(sweep.plan.cells)).repeat_interleave(sweep.base.samples)
    samples = torch.arange(sweep.base.samples).repeat(len(sweep.plan.cells))
    yield SweepChunk(cells, samples, sweep.base.scores[samples])


def returns_high_score(sweep: Sweep) -> Chunks:
    for chunk in returns_low_score(sweep):
        yield replace(chunk, scores=torch.full_like(chunk.scores, float(sweep.clean.probabilities.max())))


def swaps_attention_and_mlp(sweep: Sweep) -> Chunks:
    yield from full_sweep(replace(sweep, traced=swapped(sweep.traced)))


def swapped(traced: TracedModel) -> TracedModel:
    names = traced.site_names
    swap = {"hidden": names["hidden"], "mlp": names["attention"], "attention": names["mlp"]}
    return replace(traced, site_names=swap)  # type: ignore[arg-type]


def shifts_rows(sweep: Sweep) -> Chunks:
    for chunk in full_sweep(sweep):
        yield replace(chunk, scores=chunk.scores.roll(1))


def restores_only_the_first_row_of_a_batch(sweep: Sweep) -> Chunks:
    for chunk in full_sweep(sweep):
        scores = sweep.base.scores[chunk.samples]
        scores[0] = chunk.scores[0]
        yield replace(chunk, scores=scores)


def uses_one_noise_for_all_samples(sweep: Sweep) -> Chunks:
    noise = sweep.base.embeddings[:1].expand_as(sweep.base.embeddings)
    yield from full_sweep(replace(sweep, base=replace(sweep.base, embeddings=noise)))


def uses_another_samples_noise(sweep: Sweep) -> Chunks:
    rolled = replace(sweep.base, embeddings=sweep.base.embeddings.roll(1, 0))
    yield from full_sweep(replace(sweep, base=rolled))


def corrupts_one_token_of_the_subject(sweep: Sweep) -> Chunks:
    noise = sweep.base.embeddings.clone()
    noise[:, 1:] = subject_embeddings(sweep.traced, sweep.base.prompt).embedded[1:]
    yield from full_sweep(replace(sweep, base=replace(sweep.base, embeddings=noise)))


def shifts_noise_by_one_token(sweep: Sweep) -> Chunks:
    start, end = sweep.base.prompt.subject_range
    moved = replace(sweep.base.prompt, subject_range=(start - 1, end - 1))
    yield from full_sweep(replace(sweep, base=replace(sweep.base, prompt=moved)))


def restores_the_next_token(sweep: Sweep) -> Chunks:
    last = len(sweep.base.prompt) - 1

    def next_token(intervention: Intervention) -> Intervention:
        return replace(intervention, tokens=tuple(min(token + 1, last) for token in intervention.tokens))

    yield from full_sweep(replace(sweep, plan=_with_interventions(sweep.plan, next_token)))


def restores_only_one_token_of_many(sweep: Sweep) -> Chunks:
    def first_token(intervention: Intervention) -> Intervention:
        return replace(intervention, tokens=intervention.tokens[:1])

    yield from full_sweep(replace(sweep, plan=_with_interventions(sweep.plan, first_token)))


def moves_windows_by_one_layer(sweep: Sweep) -> Chunks:
    def moved(intervention: Intervention) -> Intervention:
        layers = tuple(min(layer + 1, sweep.traced.n_layers - 1) for layer in intervention.layers)
        return replace(intervention, layers=layers)

    yield from full_sweep(replace(sweep, plan=_with_interventions(sweep.plan, moved)))


def drops_the_last_layer_of_a_window(sweep: Sweep) -> Chunks:
    def shorter(intervention: Intervention) -> Intervention:
        layers = intervention.layers
        return replace(intervention, layers=layers[:-1] if len(layers) > 1 else layers)

    yield from full_sweep(replace(sweep, plan=_with_interventions(sweep.plan, shorter)))


def restores_values_of_the_next_token(sweep: Sweep) -> Chunks:
    shifted = {name: values.roll(-1, 0) for name, values in sweep.clean.activations.items()}
    yield from full_sweep(replace(sweep, clean=replace(sweep.clean, activations=shifted)))


def restores_zeros(sweep: Sweep) -> Chunks:
    zeros = {name: torch.zeros_like(values) for name, values in sweep.clean.activations.items()}
    yield from full_sweep(replace(sweep, clean=replace(sweep.clean, activations=zeros)))


def reads_another_answer(sweep: Sweep) -> Chunks:
    metric: Any = sweep.metric
    yield from full_sweep(replace(sweep, metric=AnswerProbability((metric.answer_ids[0] - 1,))))


def depends_on_the_batch_size(sweep: Sweep) -> Chunks:
    for chunk in full_sweep(sweep):
        yield replace(chunk, scores=chunk.scores + 1e-4 * (sweep.batch_size == 3))


def forgets_the_last_batch(sweep: Sweep) -> Chunks:
    yield from list(full_sweep(sweep))[:-1]


MUTANTS: tuple[checks.Engine, ...] = (
    ignores_restoration,
    returns_low_score,
    returns_high_score,
    swaps_attention_and_mlp,
    shifts_rows,
    restores_only_the_first_row_of_a_batch,
    uses_one_noise_for_all_samples,
    uses_another_samples_noise,
    corrupts_one_token_of_the_subject,
    shifts_noise_by_one_token,
    restores_the_next_token,
    restores_only_one_token_of_many,
    moves_windows_by_one_layer,
    drops_the_last_layer_of_a_window,
    restores_values_of_the_next_token,
    restores_zeros,
    reads_another_answer,
    depends_on_the_batch_size,
    forgets_the_last_batch,
)

# The comparison by hand cannot catch these: it restores one token per cell, at one batch size.
UNSEEN_BY_HAND = (restores_only_one_token_of_many, depends_on_the_batch_size)


def catches(check: Callable[[checks.Engine, str], None], engine: checks.Engine, name: str) -> bool:
    try:
        check(engine, name)
    except AssertionError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_right_engine_is_not_caught(name: str) -> None:
    assert not [check.__name__ for check in checks.CHECKS if catches(check, full_sweep, name)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutant_is_caught(mutant: checks.Engine, name: str) -> None:
    if mutant in UNSEEN_BY_HAND:
        assert any(catches(check, mutant, name) for check in checks.CHECKS)
    else:
        assert catches(checks.check_equals_hooks_by_hand_for_all_kinds, mutant, name)


@pytest.mark.parametrize("name", NAMES)
def test_windows_that_lean_to_the_other_side_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's text says [l-4 ... l+5] and its code [l-5 ... l+4]. They differ for even windows only."""

    def as_in_the_text(layer: int, window: int, n_layers: int) -> tuple[int, ...]:
        first = layer - (window - 1) // 2
        return tuple(number for number in range(first, first + window) if 0 <= number < n_layers)

    monkeypatch.setattr("causal_tracer.sweep.plan.window_layers", as_in_the_text)
    with pytest.raises(AssertionError):
        checks.check_equals_hooks_by_hand(full_sweep, name, "mlp", 2)


@pytest.mark.parametrize("name", NAMES)
def test_swapped_attention_and_mlp_fail_the_pinned_names(name: str) -> None:
    traced = tiny_tracer(name).context.traced
    layer_checks.check_names_are_the_pinned_ones(traced, name)
    with pytest.raises(AssertionError):
        layer_checks.check_names_are_the_pinned_ones(swapped(traced), name)
