"""The sweep: what any right one obeys, and agreement with hooks written by hand.

The `check_*` functions take an engine, so that mutants (`test_mutants.py`) go through the very same checks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from causal_tracer.base_run import BaseRun, corrupted_run
from causal_tracer.corruption import GaussianNoise
from causal_tracer.errors import NumericsError, TraceCancelled
from causal_tracer.layers import KINDS, LayerKind, TracedModel
from causal_tracer.metrics import AnswerProbability, Metric
from causal_tracer.prompts import Prompt, make_prompt
from causal_tracer.runs import CleanRun, clean_run
from causal_tracer.sweep.full import full_sweep
from causal_tracer.sweep.plan import Cell, Intervention, SweepChunk, SweepPlan, map_plan, window_layers
from tests.hand_hooks import hand_window, map_by_hand
from tests.tiny_models import (
    ARCHITECTURES,
    FAMILIES,
    OTHER_PROMPT,
    OTHER_SUBJECT,
    PROMPT,
    SUBJECT,
    build_tiny_model,
    tiny_model,
    tiny_tokenizer,
    tiny_tracer,
)

Engine = Callable[[TracedModel, CleanRun, BaseRun, SweepPlan, Metric, int], Iterable[SweepChunk]]

SAMPLES = 2
TOLERANCE = 1e-5
WIDE = 50


@dataclass(frozen=True, eq=False)
class Base:
    """Everything that a sweep is given but its plan."""

    traced: TracedModel
    prompt: Prompt
    clean: CleanRun
    corrupted: BaseRun
    metric: Metric
    noise: float

    @property
    def high(self) -> float:
        return float(self.clean.probabilities[self.clean.top_id])

    @property
    def n_tokens(self) -> int:
        return len(self.prompt)


@functools.cache
def base_runs(name: str, noise: float | None = None, text: str = PROMPT, subject: str = SUBJECT, seed: int = 1) -> Base:
    tracer = tiny_tracer(name)
    traced = tracer.context.traced
    level = tracer.noise if noise is None else noise
    prompt = make_prompt(tracer.tokenizer, text, subject)
    clean = clean_run(traced, prompt.input_ids)
    metric = AnswerProbability((clean.top_id,))
    corrupted = corrupted_run(traced, prompt, GaussianNoise(level, seed), SAMPLES, metric, 64)
    return Base(traced, prompt, clean, corrupted, metric, level)


def sweep_cells(engine: Engine, base: Base, cells: Sequence[Cell], batch_size: int = 64) -> Tensor:
    """Scores [samples, cells]; every one must have been yielded exactly once."""
    scores = torch.full((SAMPLES, len(cells)), torch.nan)
    plan = SweepPlan(tuple(cells))
    for chunk in engine(base.traced, base.clean, base.corrupted, plan, base.metric, batch_size):
        assert scores[chunk.samples, chunk.cells].isnan().all(), "a score was yielded twice"
        scores[chunk.samples, chunk.cells] = chunk.scores
    assert not scores.isnan().any(), "a score was never yielded"
    return scores


def sweep_map(
    engine: Engine,
    base: Base,
    kind: LayerKind,
    window: int,
    batch_size: int = 64,
    positions: Sequence[int] | None = None,
) -> Tensor:
    """Scores [samples, tokens, layers]; NaN at positions not asked for."""
    positions = range(base.n_tokens) if positions is None else positions
    plan = map_plan(base.traced, base.prompt, kind, window, positions, range(base.traced.n_layers))
    found = sweep_cells(engine, base, plan.cells, batch_size)
    scores = torch.full((SAMPLES, base.n_tokens, base.traced.n_layers), torch.nan)
    for number, cell in enumerate(plan.cells):
        scores[:, cell.position, cell.layer] = found[:, number]
    return scores


# Checks ---------------------------------------------------------------------------------------------------------------


def check_the_answer_moves(engine: Engine, name: str) -> None:
    """Without this, every other check passes on an engine that computes nothing."""
    base = base_runs(name)
    low = float(base.corrupted.scores.mean())
    assert abs(base.high - low) >= 0.01
    for kind in KINDS:
        effects = sweep_map(engine, base, kind, 1).mean(dim=0) - low
        assert float(effects.abs().max()) >= 1e-3


def check_no_noise_gives_high_score_everywhere(engine: Engine, name: str) -> None:
    base = base_runs(name, 0.0)
    assert torch.allclose(base.corrupted.scores, torch.tensor(base.high), rtol=0, atol=TOLERANCE)
    for kind in KINDS:
        scores = sweep_map(engine, base, kind, 3)
        assert torch.allclose(scores, torch.tensor(base.high), rtol=0, atol=TOLERANCE)


def check_no_intervention_gives_low_score(engine: Engine, name: str) -> None:
    base = base_runs(name)
    nothing = [
        Cell(0, 0, ()),
        Cell(1, 1, (Intervention((), "hidden", (5,)),)),
        Cell(2, 2, (Intervention((1,), "mlp", ()),)),
    ]
    assert_close(sweep_cells(engine, base, nothing), base.corrupted.scores[:, None].expand(-1, 3))


def check_last_layer_of_hidden_map(engine: Engine, name: str) -> None:
    base = base_runs(name)
    scores = sweep_map(engine, base, "hidden", 1)[:, :, -1]
    assert_close(scores[:, -1], torch.full((SAMPLES,), base.high))
    assert_close(scores[:, :-1], base.corrupted.scores[:, None].expand(-1, base.n_tokens - 1))


def check_tokens_before_subject_give_low_score(engine: Engine, name: str) -> None:
    base = base_runs(name)
    before = base.prompt.subject_range[0]
    assert before > 1, "the subject stands at the start"
    for kind in KINDS:
        scores = sweep_map(engine, base, kind, 3)[:, :before]
        assert_close(scores, base.corrupted.scores[:, None, None].expand_as(scores))


def check_all_tokens_at_one_layer_give_high_score(engine: Engine, name: str) -> None:
    base = base_runs(name)
    everywhere = tuple(range(base.n_tokens))
    cells = [Cell(0, n, (Intervention((n,), "hidden", everywhere),)) for n in range(base.traced.n_layers)]
    scores = sweep_cells(engine, base, cells)
    assert_close(scores, torch.full_like(scores, base.high))


def check_batch_size_does_not_matter(engine: Engine, name: str) -> None:
    base = base_runs(name)
    for kind in KINDS:
        positions = [3, 4, 5, 7, base.n_tokens - 1]
        whole = sweep_map(engine, base, kind, 2, 64, positions)
        for batch_size in (1, 3, 7):
            assert_close(sweep_map(engine, base, kind, 2, batch_size, positions), whole)


def check_same_call_twice_is_bit_identical(engine: Engine, name: str) -> None:
    base = base_runs(name)
    for kind in KINDS:
        first, second = (sweep_map(engine, base, kind, 2, 7) for _ in range(2))
        assert torch.equal(first, second)


def check_equals_hooks_by_hand(
    engine: Engine, name: str, kind: LayerKind, window: int, positions: Sequence[int] | None = None, seed: int = 1
) -> None:
    base = base_runs(name, seed=seed)
    start, end = base.prompt.subject_range
    positions = [start - 1, start, end - 1, end, base.n_tokens - 1] if positions is None else positions
    by_hand, low, high = _by_hand(name, kind, window, tuple(positions), seed)
    scores = sweep_map(engine, base, kind, window, 16, positions)[:, list(positions)]
    assert abs(base.high - high) <= TOLERANCE
    assert_close(base.corrupted.scores, low)
    effect = float((by_hand - low[:, None, None]).abs().max())
    assert effect >= 1e-3, "the cells compared do not move the answer"
    assert_close(scores, by_hand)
    assert float((scores - by_hand).abs().max()) <= 1e-3 * effect


@functools.cache
def _by_hand(name: str, kind: str, window: int, positions: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor, float]:
    base = base_runs(name, seed=seed)
    return map_by_hand(
        tiny_model(name),
        name,
        base.prompt.input_ids,
        base.prompt.subject_range,
        kind=kind,
        window=window,
        samples=SAMPLES,
        seed=seed,
        level=base.noise,
        positions=positions,
    )


def check_equals_hooks_by_hand_for_all_kinds(engine: Engine, name: str) -> None:
    for kind in KINDS:
        for window in (1, 3, WIDE):
            check_equals_hooks_by_hand(engine, name, kind, window)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE, equal_nan=True)


CHECKS: tuple[Callable[[Engine, str], None], ...] = (
    check_the_answer_moves,
    check_no_noise_gives_high_score_everywhere,
    check_no_intervention_gives_low_score,
    check_last_layer_of_hidden_map,
    check_tokens_before_subject_give_low_score,
    check_all_tokens_at_one_layer_give_high_score,
    check_batch_size_does_not_matter,
    check_same_call_twice_is_bit_identical,
    check_equals_hooks_by_hand_for_all_kinds,
)

ENGINES: dict[str, Engine] = {"full": full_sweep}


# Tests ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_sweep_on_every_architecture(check: Callable[[Engine, str], None], name: str, engine: str) -> None:
    check(ENGINES[engine], name)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["gpt2", "gemma3_text", "falcon"])
def test_every_cell_of_a_map_equals_hooks_by_hand(name: str, engine: str) -> None:
    everywhere = range(base_runs(name).n_tokens)
    check_equals_hooks_by_hand(ENGINES[engine], name, "mlp", 2, everywhere, seed=2)


@pytest.mark.parametrize(
    ("layer", "window", "expected"),
    [
        (0, 1, [0]),
        (47, 1, [47]),
        (0, 2, [0]),
        (5, 2, [4, 5]),
        (5, 3, [4, 5, 6]),
        (0, 3, [0, 1]),
        (47, 3, [46, 47]),
        (20, 10, list(range(15, 25))),
        (2, 10, list(range(0, 7))),
        (46, 10, list(range(41, 48))),
        (20, 5, list(range(18, 23))),
        (20, 1000, list(range(48))),
    ],
)
def test_windows_are_those_of_romes_code(layer: int, window: int, expected: list[int]) -> None:
    assert list(window_layers(layer, window, 48)) == expected == hand_window(layer, window, 48)


def test_plan_has_each_cell_once_and_the_telling_tokens_first() -> None:
    base = base_runs("gpt2")
    plan = map_plan(base.traced, base.prompt, "mlp", 3, range(base.n_tokens), [1, 2])
    places = [(cell.position, cell.layer) for cell in plan.cells]
    assert sorted(places) == [(position, layer) for position in range(base.n_tokens) for layer in (1, 2)]
    assert places[0][0] == base.prompt.subject_range[1] - 1
    assert places[2][0] == base.n_tokens - 1
    for cell in plan.cells:
        (intervention,) = cell.interventions
        assert intervention.tokens == (cell.position,)
        assert intervention.site == "mlp"
        assert list(intervention.layers) == hand_window(cell.layer, 3, base.traced.n_layers)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
def test_several_interventions_in_a_cell_are_all_made(name: str, engine: str) -> None:
    """Attention at one token and MLP at another, in one cell: against hooks by hand."""
    from tests.hand_hooks import cell_by_hand, clean_by_hand, rome_noise

    base = base_runs(name)
    model, ids, subject = tiny_model(name), base.prompt.input_ids, base.prompt.subject_range
    last = base.n_tokens - 1
    cell = Cell(0, 0, (Intervention((0, 1), "attention", (subject[0], last)), Intervention((2,), "mlp", (last,))))
    single = [Cell(0, 0, (intervention,)) for intervention in cell.interventions]
    scores = sweep_cells(ENGINES[engine], base, [cell, *single])
    probabilities, clean = clean_by_hand(model, name, ids)
    attention, mlp = FAMILIES[name].site_names("attention"), FAMILIES[name].site_names("mlp")
    noise = rome_noise(1, SAMPLES, subject[1] - subject[0], base.traced.d_model, base.noise)
    restore = {attention[0]: [subject[0], last], attention[1]: [subject[0], last], mlp[2]: [last]}
    by_hand = [
        cell_by_hand(model, name, ids, subject, noise[s], restore, clean, int(probabilities.argmax()))
        for s in range(SAMPLES)
    ]
    assert_close(scores[:, 0], torch.tensor(by_hand))
    assert not torch.allclose(scores[:, 0], scores[:, 1], rtol=0, atol=1e-4)
    assert not torch.allclose(scores[:, 0], scores[:, 2], rtol=0, atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_model_is_run_with_whole_batches_only_of_the_size_asked_for(engine: str) -> None:
    base = base_runs("gpt2")
    sizes: list[int] = []

    def note(_module: Any, _args: Any, output: Tensor) -> None:
        sizes.append(output.shape[0])

    handle = base.traced.embedding.register_forward_hook(note)
    try:
        sweep_map(ENGINES[engine], base, "hidden", 1, 7)
    finally:
        handle.remove()
    assert max(sizes) <= 7


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
def test_cancelling_raises_and_leaves_the_model_bit_identical(name: str, engine: str) -> None:
    base = base_runs(name)
    plan = map_plan(base.traced, base.prompt, "hidden", 1, range(base.n_tokens), range(base.traced.n_layers))
    before = fingerprint(base.traced.model)
    asked: list[None] = []

    def cancelled() -> bool:
        asked.append(None)
        return len(asked) > 2

    def sweep() -> Iterator[SweepChunk]:
        return iter(ENGINES[engine](base.traced, base.clean, base.corrupted, plan, base.metric, 4, cancelled))  # type: ignore[call-arg]

    chunks = sweep()
    with pytest.raises(TraceCancelled):
        list(chunks)
    assert_unchanged(base.traced.model, before)


@pytest.mark.parametrize("engine", ENGINES)
def test_leaving_the_iteration_early_leaves_the_model_bit_identical(engine: str) -> None:
    base = base_runs("gpt2")
    plan = map_plan(base.traced, base.prompt, "hidden", 1, range(base.n_tokens), range(base.traced.n_layers))
    before = fingerprint(base.traced.model)
    chunks = iter(ENGINES[engine](base.traced, base.clean, base.corrupted, plan, base.metric, 4))
    next(chunks)
    assert_unchanged(base.traced.model, before)  # also while the iteration is suspended
    chunks.close()  # type: ignore[attr-defined]
    assert_unchanged(base.traced.model, before)


def fingerprint(model: Any) -> dict[str, Any]:
    """The model's outputs on a text, all parameters and buffers, hooks, modes and gradients' flags."""
    with torch.no_grad():
        logits = model(torch.tensor([[256, 7, 8, 9, 40]])).logits
    state = {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    return {"logits": logits.clone(), "state": state, "shape": _shape_of(model)}


def _shape_of(model: Any) -> list[tuple[Any, ...]]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")
    return [
        (name, module.training, "forward" in module.__dict__, *(tuple(getattr(module, kind)) for kind in hooks))
        for name, module in model.named_modules()
    ] + [(name, parameter.requires_grad, parameter.grad is None) for name, parameter in model.named_parameters()]


def assert_unchanged(model: Any, before: dict[str, Any]) -> None:
    after = fingerprint(model)
    assert after["shape"] == before["shape"]
    assert torch.equal(after["logits"], before["logits"])
    assert after["state"].keys() == before["state"].keys()
    for name, tensor in before["state"].items():
        assert torch.equal(after["state"][name], tensor), name


def test_nan_logits_raise_numerics_error_that_names_the_run() -> None:
    base = base_runs("gpt2")
    plan = map_plan(base.traced, base.prompt, "hidden", 1, [5], [0])
    broken = BaseRun(base.prompt, torch.full_like(base.corrupted.embeddings, torch.nan), base.corrupted.scores)
    with pytest.raises(NumericsError, match="restored run"):
        list(full_sweep(base.traced, base.clean, broken, plan, base.metric, 4))


@pytest.mark.parametrize(("value", "where"), [(torch.nan, "clean"), (torch.inf, "clean"), (-torch.inf, "clean")])
def test_a_broken_weight_raises_numerics_error_for_the_clean_run(value: float, where: str) -> None:
    from causal_tracer import CausalTracer

    model = build_tiny_model("gpt2")
    tracer = CausalTracer(model, tiny_tokenizer(), noise=1.0)
    with torch.no_grad():
        model.lm_head.weight[3, 0] = value
    with pytest.raises(NumericsError, match=f"{where} run"):
        tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=1)


def test_another_prompt_of_another_length_gives_its_own_map() -> None:
    """Two prompts of the same model share nothing: each equals its own hooks by hand."""
    base = base_runs("llama", text=OTHER_PROMPT, subject=OTHER_SUBJECT)
    positions = (base.prompt.subject_range[0], base.prompt.subject_range[1] - 1, base.n_tokens - 1)
    by_hand, _, _ = map_by_hand(
        tiny_model("llama"),
        "llama",
        base.prompt.input_ids,
        base.prompt.subject_range,
        kind="attention",
        window=2,
        samples=SAMPLES,
        seed=1,
        level=base.noise,
        positions=positions,
    )
    assert_close(sweep_map(full_sweep, base, "attention", 2, 5, positions)[:, list(positions)], by_hand)
