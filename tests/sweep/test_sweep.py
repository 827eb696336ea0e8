"""Properties of every correct sweep, and agreement with hooks written by hand.

The `check_*` functions take an engine, so that mutants (`test_mutants.py`) go through the very same checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from causal_tracer.errors import NumericsError, TraceCancelled
from causal_tracer.experiment.base_run import BaseRun
from causal_tracer.request.sites import window_layers
from causal_tracer.sweep.full import full_sweep
from causal_tracer.sweep.plan import Cell, Intervention, Sweep, map_plan
from tests.support.hand_hooks import hand_window, map_by_hand
from tests.support.sweep_checks import (
    CHECKS,
    assert_close,
    check_equals_hooks_by_hand,
)
from tests.support.sweeps import SAMPLES, Engine, base_runs, sweep_cells, sweep_map
from tests.support.tiny_models import (
    EVERY_ARCHITECTURE,
    FAMILIES,
    OTHER_PROMPT,
    OTHER_SUBJECT,
    PROMPT,
    SUBJECT,
    build_tiny_model,
    tiny_model,
    tiny_tokenizer,
)
from tests.support.unchanged import assert_unchanged, fingerprint

# Checks ---------------------------------------------------------------------------------------------------------------


ENGINES: dict[str, Engine] = {"full": full_sweep}


# Tests ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
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


def test_plan_has_each_cell_once_and_the_last_subject_token_first() -> None:
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
    """One cell restores attention at one token and the MLP at another; compared with hooks by hand."""
    from tests.support.hand_hooks import cell_by_hand, clean_by_hand, rome_noise

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

    sweep = Sweep(base.traced, base.clean, base.corrupted, plan, base.metric, 4)

    chunks = ENGINES[engine](sweep, cancelled)  # type: ignore[call-arg]
    with pytest.raises(TraceCancelled):
        list(chunks)
    assert_unchanged(base.traced.model, before)


@pytest.mark.parametrize("engine", ENGINES)
def test_leaving_the_iteration_early_leaves_the_model_bit_identical(engine: str) -> None:
    base = base_runs("gpt2")
    plan = map_plan(base.traced, base.prompt, "hidden", 1, range(base.n_tokens), range(base.traced.n_layers))
    before = fingerprint(base.traced.model)
    chunks = iter(ENGINES[engine](Sweep(base.traced, base.clean, base.corrupted, plan, base.metric, 4)))
    next(chunks)
    assert_unchanged(base.traced.model, before)  # also while the iteration is suspended
    chunks.close()  # type: ignore[attr-defined]
    assert_unchanged(base.traced.model, before)


def test_nan_logits_raise_numerics_error_that_names_the_run() -> None:
    base = base_runs("gpt2")
    plan = map_plan(base.traced, base.prompt, "hidden", 1, [5], [0])
    broken = BaseRun(base.prompt, torch.full_like(base.corrupted.embeddings, torch.nan), base.corrupted.scores)
    with pytest.raises(NumericsError, match="restored run"):
        list(full_sweep(Sweep(base.traced, base.clean, broken, plan, base.metric, 4)))


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
    """Two prompts on the same model do not affect each other: each equals its own hooks by hand."""
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
