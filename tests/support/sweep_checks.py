"""Checks that any correct sweep passes. Mutants go through the same checks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from causal_tracer.request.sites import KINDS, LayerKind
from causal_tracer.sweep.plan import Cell, Intervention
from tests.support.hand_hooks import map_by_hand
from tests.support.sweeps import SAMPLES, TOLERANCE, Engine, base_runs, sweep_cells, sweep_map
from tests.support.tiny_models import (
    tiny_model,
)

WIDE = 50


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
