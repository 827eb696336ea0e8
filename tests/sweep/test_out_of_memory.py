"""If a batch does not fit in memory, its size is halved, the map is the same, and a note reports it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from causal_tracer import CausalTracer, HiddenFlow, MapSpec, RunOptions, TraceRequest
from causal_tracer.sweep import check as check_module
from causal_tracer.sweep import engine as engine_module
from causal_tracer.sweep.engine import choose_engine
from tests.support.tiny_models import PROMPT, SUBJECT, build_tiny_model, tiny_tokenizer, tiny_tracer
from tests.support.unchanged import assert_unchanged, fingerprint

pytestmark = pytest.mark.slow

Fails = Callable[[int], bool]
"""Returns, for the number of rows of a call, whether it runs out of memory."""


def tracer_that_runs_out(fails: Fails, name: str = "llama") -> CausalTracer:
    """A tracer that passed its check, and whose last block's MLP runs out of memory where `fails` returns True."""
    model = build_tiny_model(name)
    tracer = CausalTracer(model, tiny_tokenizer())
    checked = False

    def allocate(_module: Any, args: Any) -> None:
        if checked and fails(args[0].shape[0]):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    # Hooked before the check, since a later hook would make the model be checked again.
    model.model.layers[-1].mlp.register_forward_pre_hook(allocate)
    choose_engine(tracer.context.traced, "auto", 11)
    checked = True
    return tracer


def trace(tracer: CausalTracer, engine: Any, batch_size: int, **options: Any) -> tuple[HiddenFlow, list[int]]:
    """Return the map, and the number of runs done at each update."""
    request = TraceRequest(PROMPT, SUBJECT, samples=3, **options)
    run = RunOptions(batch_size=batch_size, engine=engine)
    updates = list(tracer.stream(request, {"map": MapSpec("mlp", 1)}, run))
    assert updates[-1].done == updates[-1].total
    return updates[-1].flows["map"], [update.done for update in updates]


@pytest.mark.parametrize("engine", ["auto", "full"])
def test_the_batch_halves_until_it_fits_and_the_map_is_that_of_the_size_that_fits(engine: Any) -> None:
    flow, _ = trace(tracer_that_runs_out(lambda rows: rows > 4), engine, 64)
    expected, _ = trace(tiny_tracer("llama"), engine, 64)
    assert flow.settings.batch_size == 4
    assert expected.settings.batch_size == 64
    assert [note for note in flow.notes if "memory" in note] == [
        "Out of memory with batches of 64 rows. Computed with batches of 4."
    ]
    assert not any("memory" in note for note in expected.notes)
    torch.testing.assert_close(flow.sample_scores, expected.sample_scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("engine", ["auto", "full"])
@pytest.mark.parametrize("call", range(0, 14, 2))
def test_no_run_is_counted_twice_wherever_memory_runs_out(engine: Any, call: int) -> None:
    """Batches of five rows split the three samples of a cell."""
    calls: list[int] = []

    def once(rows: int) -> bool:
        calls.append(rows)
        return len(calls) == call + 4

    tracer = tracer_that_runs_out(once)
    flow, done = trace(tracer, engine, 5, top_tokens=3)
    expected, _ = trace(tiny_tracer("llama"), engine, 5, top_tokens=3)
    assert len(calls) >= call + 4, "memory did not run out"
    assert flow.settings.batch_size == 2
    assert done == sorted(done)
    torch.testing.assert_close(flow.sample_scores, expected.sample_scores, atol=1e-5, rtol=0)
    for position in range(len(flow.input_tokens)):
        for layer in range(flow.scores.shape[1]):
            found, right = (f.top_tokens.cells(position, layer) for f in (flow, expected))  # type: ignore[union-attr]
            assert [token.token_id for token in found] == [token.token_id for token in right]
            assert [t.probability for t in found] == pytest.approx([t.probability for t in right], abs=1e-5)


def test_what_the_failed_pass_held_is_let_go_before_the_next_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Any]] = []
    alive: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(sum(ref() is not None for ref in held)))
    model = build_tiny_model("llama")
    tracer = CausalTracer(model, tiny_tokenizer())
    checked = False

    def allocate(_module: Any, args: Any) -> None:
        stream = args[0] + 0
        held.append(weakref.ref(stream))
        if checked and stream.shape[0] > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    model.model.layers[-1].mlp.register_forward_pre_hook(allocate)
    choose_engine(tracer.context.traced, "auto", 11)
    checked = True
    tracer.calculate_hidden_flow(PROMPT, SUBJECT, "mlp", samples=3, batch_size=16)
    assert alive == [0, 0]


def test_a_memory_that_does_not_hold_one_row_raises_and_leaves_the_model_as_it_was() -> None:
    calls: list[int] = []

    def after_the_corrupted_run(rows: int) -> bool:
        calls.append(rows)
        return len(calls) > 3

    tracer = tracer_that_runs_out(after_the_corrupted_run)
    sound = tiny_tracer("llama")
    hook = next(iter(tracer.model.model.layers[-1].mlp._forward_pre_hooks))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=3, batch_size=8)
    del tracer.model.model.layers[-1].mlp._forward_pre_hooks[hook]
    assert_unchanged(tracer.model, fingerprint(sound.model))


def test_running_out_while_the_model_is_checked_does_not_count_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_engine_checks", {})
    traced = tiny_tracer("llama").context.traced
    original = check_module.resumed_sweep

    def out_of_memory(*_args: Any, **_kwargs: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(check_module, "resumed_sweep", out_of_memory)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        choose_engine(traced, "auto", 11)
    monkeypatch.setattr(check_module, "resumed_sweep", original)
    assert choose_engine(traced, "auto", 11).name == "resumed"
