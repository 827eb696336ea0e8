"""The resumed sweep gives the full sweep's numbers in every resume mode, and errors are never silent."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from causal_tracer import CausalTracer, MapSpec, RunOptions, TraceRequest
from causal_tracer.errors import TraceCancelled
from causal_tracer.model.batch_size import default_batch_size
from causal_tracer.model.fingerprint import fingerprint
from causal_tracer.request.sites import KINDS
from causal_tracer.sweep import engine, plan, resumed
from causal_tracer.sweep.caches import CacheSnapshot
from causal_tracer.sweep.check import EngineCheck, check_resume_modes, has_plain_cache
from causal_tracer.sweep.edits import BatchInterventions
from causal_tracer.sweep.engine import choose_engine
from causal_tracer.sweep.full import full_sweep
from causal_tracer.sweep.plan import Cell, Intervention, Reach, reach
from causal_tracer.sweep.resume_mode import RESUME_MODES, CannotResume, ResumeMode
from causal_tracer.sweep.resumed import resumed_sweep
from causal_tracer.sweep.resumed_pass import ResumedPass
from tests.support import sweep_checks as checks
from tests.support.sweeps import base_runs, sweep_cells, sweep_map
from tests.support.tiny_models import (
    ARCHITECTURES,
    EVERY_ARCHITECTURE,
    PROMPT,
    SUBJECT,
    build_tiny_model,
    of_architecture,
    tiny_model,
    tiny_tokenizer,
    tiny_tracer,
)

# Its alibi biases have all rows x heads, so the model cannot be called with one row.
NEEDS_ALL_ROWS = ("bloom",)


def by_mode(mode: ResumeMode) -> checks.Engine:
    return functools.partial(resumed_sweep, mode=mode)


def cases() -> list[Any]:
    return [
        pytest.param(name, mode, id=f"{name}-{mode.name}", marks=of_architecture(name))
        for name in ARCHITECTURES
        for mode in RESUME_MODES
        if not (mode.broadcast and name in NEEDS_ALL_ROWS)
    ]


@pytest.mark.parametrize(("name", "mode"), cases())
def test_resumed_sweep_equals_the_full_one(name: str, mode: ResumeMode) -> None:
    base = base_runs(name)
    for kind in KINDS:
        for window, batch_size in ((1, 64), (3, 5), (checks.WIDE, 7)):
            expected = sweep_map(full_sweep, base, kind, window)
            found = sweep_map(by_mode(mode), base, kind, window, batch_size)
            effect = float((expected - base.corrupted.scores[:, None, None]).abs().max())
            torch.testing.assert_close(found, expected, atol=min(1e-5, 1e-2 * effect), rtol=0)


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_resumed_sweep_obeys_the_identities(name: str) -> None:
    mode = RESUME_MODES[1] if name in NEEDS_ALL_ROWS else RESUME_MODES[0]
    checks.check_the_answer_moves(by_mode(mode), name)
    checks.check_no_noise_gives_high_score_everywhere(by_mode(mode), name)
    checks.check_no_intervention_gives_low_score(by_mode(mode), name)
    checks.check_last_layer_of_hidden_map(by_mode(mode), name)
    checks.check_tokens_before_subject_give_low_score(by_mode(mode), name)
    checks.check_all_tokens_at_one_layer_give_high_score(by_mode(mode), name)
    checks.check_batch_size_does_not_matter(by_mode(mode), name)
    checks.check_same_call_twice_is_bit_identical(by_mode(mode), name)


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_the_engine_chosen_is_the_fastest_that_works(name: str) -> None:
    engine_check = check_resume_modes(tiny_tracer(name).context.traced, 8)
    assert engine_check.mode == (RESUME_MODES[1] if name in NEEDS_ALL_ROWS else RESUME_MODES[0])


def test_several_interventions_at_once_equal_the_full_sweep() -> None:
    base = base_runs("gemma3_text")
    last = base.n_tokens - 1
    mixed = [
        Cell(0, 0, (Intervention((2,), "hidden", (4,)), Intervention((0, 1), "mlp", (5, last)))),
        Cell(0, 1, (Intervention((1, 3), "attention", (last,)), Intervention((0,), "hidden", (0, 3)))),
        Cell(0, 2, (Intervention((3,), "mlp", (5,)), Intervention((3,), "hidden", (last,)))),
        Cell(0, 3, (Intervention((0, 2, 3), "hidden", (4, 6)), Intervention((1,), "hidden", (4,)))),
    ]
    expected = sweep_cells(full_sweep, base, mixed)
    for mode in RESUME_MODES:
        torch.testing.assert_close(sweep_cells(by_mode(mode), base, mixed, 3), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("interventions", "expected"),
    [
        ([((3,), "hidden", (5,))], Reach(5, 4)),
        ([((3,), "mlp", (5,))], Reach(5, 3)),
        ([((2, 3, 4), "attention", (5, 7))], Reach(5, 2)),
        ([((2, 3), "hidden", (1, 6))], Reach(6, 3)),
        ([((3,), "hidden", (1,))], None),
        ([((7,), "attention", (5,))], None),
        ([((7,), "hidden", (9,))], Reach(9, 8)),
        ([((), "hidden", (9,))], None),
        ([((5,), "hidden", (6,)), ((2,), "mlp", (8,))], Reach(6, 2)),
        ([], None),
    ],
)
def test_reach_is_the_first_token_and_block_that_a_cell_changes(
    interventions: list[Any], expected: Reach | None
) -> None:
    cell = Cell(0, 0, tuple(Intervention(*intervention) for intervention in interventions))
    assert reach(cell, first_corrupted=3, reads=(9,), n_layers=8) == expected


def test_work_shrinks_with_the_cells_that_are_left() -> None:
    """Blocks before the first row joins are not called, and tokens before the restored one are not run."""
    tracer = tiny_tracer("llama")
    traced = tracer.context.traced
    base = base_runs("llama")
    calls: list[tuple[int, int, int]] = []
    handles = [
        block.mlp.register_forward_hook(lambda _m, _i, out, n=n: calls.append((n, *out.shape[:2])))
        for n, block in enumerate(traced.blocks)
    ]
    try:
        last = base.n_tokens - 1
        sweep_cells(by_mode(RESUME_MODES[0]), base, [Cell(0, 0, (Intervention((1,), "hidden", (last,)),))])
        base_run = [call for call in calls if call[2] > 1 or call[0] < 2]
        assert (2, checks.SAMPLES, 1) in calls, "one block, one token, one row a sample"
        # Earlier blocks run for the clean tokens before the subject and for the corrupted run only.
        assert len(base_run) == 2 * traced.n_layers
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", ["gemma3_text", "mistral", "gpt_oss", "qwen3_next", "lfm2"])
def test_prompts_longer_than_the_window_and_long_contexts_equal_the_full_sweep(name: str) -> None:
    text = "In Paris France the capital tower is located on a river and in the city of Rome " + PROMPT
    base = base_runs(name, text=text)
    positions = [base.prompt.subject_range[1] - 1, base.n_tokens - 2, base.n_tokens - 1]
    for kind in KINDS:
        expected = sweep_map(full_sweep, base, kind, 2, positions=positions)
        torch.testing.assert_close(
            sweep_map(by_mode(RESUME_MODES[0]), base, kind, 2, positions=positions),
            expected,
            atol=2e-5,
            rtol=0,
            equal_nan=True,
        )


# Verification ---------------------------------------------------------------------------------------------------------


def wrong_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    real = CacheSnapshot.layer
    monkeypatch.setattr(CacheSnapshot, "layer", lambda self, block, samples: real(self, block, samples.flip(0)))


def one_row_off(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ResumedPass._joining

    def shifted(self: Any, block: int, part: slice, like: Tensor) -> Tensor:
        return real(self, block, part, like).roll(1, dims=0)

    monkeypatch.setattr(ResumedPass, "_joining", shifted)


def one_block_late(monkeypatch: pytest.MonkeyPatch) -> None:
    real = plan.reach

    def late(*args: Any, **kwargs: Any) -> Reach | None:
        found = real(*args, **kwargs)
        return None if found is None else replace(found, join=found.join + 1)

    monkeypatch.setattr(plan, "reach", late)


def nothing_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumed, "batch_interventions", lambda cells, cell_of: BatchInterventions({}, {}))


def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*args: Any, **kwargs: Any) -> Any:
        raise CannotResume("it has no cache")

    monkeypatch.setattr(resumed, "base_state", without)


@pytest.mark.parametrize("break_it", [wrong_sample, one_row_off, one_block_late, nothing_restored, no_cache])
@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
def test_a_broken_resumed_sweep_is_found_out_at_first_use(
    name: str, break_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    engine_check = check_resume_modes(tiny_tracer(name).context.traced, 8)
    assert engine_check.mode is None or (break_it is wrong_sample and not engine_check.mode.use_cache)
    assert engine_check.tried


@pytest.mark.parametrize(
    ("name", "plain"), [("llama", True), ("gemma3_text", True), ("qwen3_next", False), ("lfm2", False)]
)
def test_caches_that_hold_more_than_keys_and_values_are_known(name: str, plain: bool) -> None:
    traced = tiny_tracer(name).context.traced
    assert has_plain_cache(traced, fingerprint(traced.model).digest) == plain


@pytest.mark.parametrize("token", [2, *(pytest.param(token, marks=pytest.mark.slow) for token in range(3, 8))])
def test_a_pass_that_is_wrong_from_one_token_only_is_found_where_caches_hold_states(
    token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ResumedPass.final_states

    def wrong(self: Any) -> Tensor:
        states = real(self)
        return states.roll(1, dims=-1) if self.token == token else states

    monkeypatch.setattr(ResumedPass, "final_states", wrong)
    monkeypatch.setattr(engine, "_engine_checks", {})
    assert choose_engine(tiny_tracer("qwen3_next").context.traced, "auto", 8).name == "resumed in depth"


def test_models_whose_caches_hold_states_are_checked_at_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_engine_checks", {})
    lengths: list[int] = []

    def noted(traced: Any, n_tokens: int, every_token: bool, knockout: bool) -> EngineCheck:
        lengths.append(n_tokens)
        assert every_token
        return EngineCheck(RESUME_MODES[0], ())

    monkeypatch.setattr(engine, "check_resume_modes", noted)
    for n_tokens in (1, 5, 8, 9, 16, 17, 30, 32, 33, 500):
        choose_engine(tiny_tracer("qwen3_next").context.traced, "auto", n_tokens)
    assert lengths == [8, 9, 16, 32, 48]


def test_a_fallback_warns_and_shows_in_the_result(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no_cache(monkeypatch)
    monkeypatch.setattr(engine, "_engine_checks", {})
    tracer = CausalTracer(tiny_model("gpt2"), tiny_tokenizer())
    with caplog.at_level(logging.WARNING):
        flow = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2)
    assert flow.settings.engine == "full"
    assert any("slower" in note for note in flow.notes)
    assert any("GPT2LMHeadModel" in record.getMessage() for record in caplog.records)
    monkeypatch.undo()
    expected = tiny_tracer("gpt2").calculate_hidden_flow(PROMPT, SUBJECT, samples=2)
    assert expected.settings.engine == "resumed"
    assert expected.notes == ()
    torch.testing.assert_close(flow.scores, expected.scores, atol=1e-5, rtol=0)


def test_a_model_is_checked_once_and_again_past_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_engine_checks", {})
    lengths: list[int] = []

    def noted(traced: Any, n_tokens: int, every_token: bool, knockout: bool) -> EngineCheck:
        lengths.append(n_tokens)
        return EngineCheck(RESUME_MODES[0], ())

    monkeypatch.setattr(engine, "check_resume_modes", noted)
    traced = tiny_tracer("mistral").context.traced
    for n_tokens in (3, 3, 4, 9, 2):
        choose_engine(traced, "auto", n_tokens)
    assert len(lengths) == 2
    assert lengths[1] > 4, "the second check is longer than the window"
    assert choose_engine(traced, "full", 3).mode is None


# Stopping -------------------------------------------------------------------------------------------------------------


class Stop(BaseException):
    """Not an Exception, like KeyboardInterrupt."""


def interrupted(error: type[BaseException]) -> Callable[[], bool]:
    asked = iter(range(10**6))

    def cancelled() -> bool:
        if next(asked) < 40:
            return False
        if error is TraceCancelled:
            return True
        raise error

    return cancelled


@pytest.mark.parametrize("error", [TraceCancelled, RuntimeError, KeyboardInterrupt, Stop])
@pytest.mark.parametrize("name", ["gpt2", "qwen3_next", "bloom"])
def test_stopping_in_the_middle_of_a_pass_leaves_the_model_bit_identical(name: str, error: type[BaseException]) -> None:
    model = build_tiny_model(name)
    tracer = CausalTracer(model, tiny_tokenizer())
    ids = torch.tensor([tiny_tokenizer()(PROMPT)["input_ids"]])
    with torch.no_grad():
        before = model(ids).logits
    with pytest.raises(error):
        tracer.calculate_hidden_flow(PROMPT, SUBJECT, batch_size=8, cancelled=interrupted(error))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())
    assert tracer.context.traced.lock.acquire(blocking=False)
    tracer.context.traced.lock.release()


def test_cancelling_is_asked_for_at_every_block_and_before_the_head() -> None:
    asked: list[None] = []

    def cancelled() -> bool:
        asked.append(None)
        return False

    tracer = tiny_tracer("llama")
    tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2, cancelled=cancelled)
    base = base_runs("llama")
    passes = base.n_tokens - base.prompt.subject_range[0]
    # The head runs once for each of the first two tokens, once for all others together, and once for the audit.
    assert len(asked) == passes * tracer.count_layers() + 4


def test_two_threads_and_an_abandoned_trace_do_not_mix() -> None:
    tracer = CausalTracer(build_tiny_model("gpt2"), tiny_tokenizer())
    alone = {kind: tracer.calculate_hidden_flow(PROMPT, SUBJECT, kind=kind) for kind in KINDS}
    found: dict[str, Any] = {}

    def work(kind: Any) -> None:
        found[kind] = tracer.calculate_hidden_flow(PROMPT, SUBJECT, kind=kind)

    abandoned: Iterator[Any] = tracer.stream(TraceRequest(PROMPT, SUBJECT), {"map": MapSpec()})
    next(abandoned)
    threads = [threading.Thread(target=work, args=(kind,)) for kind in KINDS]
    for thread in threads:
        thread.start()
    del abandoned
    for thread in threads:
        thread.join()
    for kind in KINDS:
        assert torch.equal(found[kind].sample_scores, alone[kind].sample_scores)


# What a user sees -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemma3_text", "bloom", "qwen3_next"])
def test_kinds_in_one_sweep_equal_single_sweeps(name: str) -> None:
    tracer = tiny_tracer(name)
    together = tracer.trace_maps(
        TraceRequest(PROMPT, SUBJECT, samples=3),
        {"hidden": MapSpec(), "mlp": MapSpec("mlp", 3), "attention": MapSpec("attention", 2)},
    )
    assert {kind: flow.settings.window for kind, flow in together.items()} == {"hidden": 1, "mlp": 3, "attention": 2}
    for kind, flow in together.items():
        alone = tracer.calculate_hidden_flow(PROMPT, SUBJECT, kind=kind, window=flow.settings.window, samples=3)
        torch.testing.assert_close(flow.sample_scores, alone.sample_scores, atol=1e-5, rtol=0)
        assert list(flow.layer_outputs) == list(alone.layer_outputs)


def test_the_last_subject_token_and_the_last_token_come_first() -> None:
    tracer = tiny_tracer("gpt2")
    seen: list[int] = []
    for update in tracer.stream(TraceRequest(PROMPT, SUBJECT, samples=2), {"map": MapSpec()}, RunOptions(batch_size=4)):
        flow = update.flows["map"]
        # Cells of the last layer that change nothing at the last token need no run, so the first layer is checked.
        known = (~flow.scores[:, 0].isnan()).nonzero()[:, 0].tolist()
        seen += [position for position in known if position not in seen]
    start, end = flow.subject_range
    last = len(flow.input_tokens) - 1
    computed = [position for position in seen if position >= start]
    assert computed[:2] == [end - 1, last]
    assert update.done == update.total


def test_default_batch_size_follows_from_model_and_length_and_is_recorded() -> None:
    tracer = tiny_tracer("gpt2")
    traced = tracer.context.traced
    assert default_batch_size(traced, 10) == default_batch_size(traced, 10) >= 1
    assert default_batch_size(traced, 10**9) == 1
    flow = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2)
    assert flow.settings.batch_size == default_batch_size(traced, len(flow.input_tokens))
    assert tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2, batch_size=5).settings.batch_size == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_float32_and_read_in_float32(dtype: torch.dtype) -> None:
    exact = tiny_tracer("llama").calculate_hidden_flow(PROMPT, SUBJECT, samples=2)
    half = CausalTracer(build_tiny_model("llama").to(dtype), tiny_tokenizer()).calculate_hidden_flow(
        PROMPT, SUBJECT, samples=2, answer_id_override=exact.answer_id
    )
    assert half.scores.dtype == torch.float32
    assert half.settings.engine == "resumed"
    assert half.settings.dtype == str(dtype).removeprefix("torch.")
    assert float((half.scores - exact.scores).abs().max()) < 0.05
