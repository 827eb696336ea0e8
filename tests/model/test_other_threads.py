"""Another thread calls the model during a trace: the call and the trace give the same numbers as each alone."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor, nn

import causal_tracer.model.engine_mode as engine_mode_module
from causal_tracer import CausalTracer, HiddenFlow
from causal_tracer.model.engine_mode import engine_mode
from causal_tracer.model.hooks import editing_outputs, replacing_forward
from tests.support.tiny_models import PROMPT, SUBJECT, build_tiny_model, tiny_tokenizer, tiny_tracer
from tests.support.unchanged import assert_unchanged, fingerprint

pytestmark = pytest.mark.slow

IDS = torch.tensor([[256, 40, 41, 42, 43, 44, 45, 46]])
SECONDS = 30


def trace(tracer: CausalTracer, **options: Any) -> HiddenFlow:
    return tracer.calculate_hidden_flow(PROMPT, SUBJECT, "mlp", window=2, samples=2, **options)


@cache
def expected(name: str) -> Tensor:
    return trace(tiny_tracer(name)).sample_scores


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(IDS).logits
    return logits


def generate(model: Any) -> Tensor:
    tokens: Tensor = model.generate(IDS, max_new_tokens=5, do_sample=False, pad_token_id=0)
    return tokens


class InTheMiddle:
    """Runs an action once, at the nth call of a module in the thread that created this object."""

    def __init__(self, module: nn.Module, action: Callable[[], Any], nth: int = 2):
        self.thread, self.action, self.left = threading.get_ident(), action, nth
        self.handle = module.register_forward_pre_hook(self.called)

    def called(self, _module: nn.Module, _args: Any) -> None:
        if threading.get_ident() == self.thread:
            self.left -= 1
            if self.left == 0:
                self.action()


@pytest.mark.parametrize("engine", ["auto", "full"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "mixtral", "qwen3_next"])
@pytest.mark.parametrize("call", [logits_of, generate])
def test_a_call_inside_of_a_run_and_the_trace_are_both_right(name: str, engine: str, call: Any) -> None:
    alone = call(build_tiny_model(name))
    model = build_tiny_model(name)
    tracer = CausalTracer(model, tiny_tokenizer())
    trace(tracer, engine=engine)  # the engine's check is done before
    found: list[Tensor] = []
    with ThreadPoolExecutor(1) as other:
        # A trace has a clean run, a base run, and the sweep's runs. The call begins and ends inside each of them.
        def call_now() -> None:
            found.append(other.submit(call, model).result(SECONDS))

        last_block = model.get_submodule(tracer.get_layer_names_of_kind("hidden")[-1])
        for nth in (1, 2, 3, 4):
            middle = InTheMiddle(last_block, call_now, nth)
            flow = trace(CausalTracer(model, tiny_tokenizer()), engine=engine)
            middle.handle.remove()
            torch.testing.assert_close(flow.sample_scores, expected(name), atol=1e-5, rtol=0)
    assert len(found) >= 3
    assert all(tensor.equal(alone) for tensor in found)


def test_a_call_that_is_in_progress_when_a_run_begins_is_right() -> None:
    model = build_tiny_model("llama")
    alone = logits_of(model)
    tracer = CausalTracer(model, tiny_tokenizer())
    traced = trace(tracer).sample_scores
    inside, go_on = threading.Event(), threading.Event()

    def stay(_module: nn.Module, _args: Any) -> None:
        if threading.get_ident() != main:
            inside.set()
            assert go_on.wait(SECONDS)

    main = threading.get_ident()
    model.model.layers[1].register_forward_pre_hook(stay)
    with ThreadPoolExecutor(1) as other:
        result: Future[Tensor] = other.submit(logits_of, model)
        assert inside.wait(SECONDS)
        # The call continues in the middle of a run, with all hooks in place, and once more after the trace.
        InTheMiddle(model.model.layers[0].mlp, go_on.set, nth=5)
        flow = trace(CausalTracer(model, tiny_tokenizer()))
        assert result.result(SECONDS).equal(alone)
    assert flow.sample_scores.equal(traced)


def test_edits_act_in_the_thread_that_placed_them_only() -> None:
    model = build_tiny_model("llama")
    alone = logits_of(model)
    mlp = model.model.layers[1].mlp
    edits = {mlp: torch.zeros_like}
    with (
        ThreadPoolExecutor(1) as other,
        editing_outputs(edits, IDS.shape[1]),
        replacing_forward([model.model.layers[0]], lambda _n, own, args, kwargs: own(*args, **kwargs) * 2),
    ):
        assert other.submit(logits_of, model).result(SECONDS).equal(alone)
        assert not logits_of(model).equal(alone)
    assert logits_of(model).equal(alone)


def test_all_hooks_of_the_package_are_placed_for_one_thread() -> None:
    package = Path(__file__).resolve().parents[2] / "causal_tracer"
    places = {
        path.name: len(re.findall(r"register_(?:module_)?(?:full_)?(?:forward|backward)", path.read_text("utf-8")))
        for path in package.rglob("*.py")
    }
    assert {name: count for name, count in places.items() if count} == {"hooks.py": 2}


# Calls and runs that wait for each other ------------------------------------------------------------------------------


class TwiceInTraining(nn.Module):
    """A module whose output shows whether it ran in training mode."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Tensor:
        output: Tensor = self.inner(*args)
        return output * 2 if self.training else output


def in_training() -> Any:
    model = build_tiny_model("llama")
    model.lm_head = TwiceInTraining(model.lm_head)
    model.get_output_embeddings = lambda: model.lm_head.inner
    return model.train()


def test_a_call_of_a_model_in_training_mode_waits_for_the_run_and_is_in_training_mode() -> None:
    model = in_training()
    alone = logits_of(model)
    before = fingerprint(model)
    arrived = threading.Event()
    finished: list[bool] = []
    main = threading.get_ident()

    def arrive(_module: nn.Module, _args: Any) -> None:
        if threading.get_ident() != main:
            arrived.set()

    handle = model.register_forward_pre_hook(arrive)
    with ThreadPoolExecutor(1) as other:
        results: list[Future[Tensor]] = []

        def call_now() -> None:
            results.append(other.submit(logits_of, model))
            assert arrived.wait(SECONDS)
            finished.append(results[0].done())

        middle = InTheMiddle(model.model.layers[1], call_now, nth=12)
        flow = trace(CausalTracer(model, tiny_tokenizer()))
        assert results[0].result(SECONDS).equal(alone)
    handle.remove()
    middle.handle.remove()
    assert finished == [False]
    assert flow.sample_scores.equal(trace(CausalTracer(in_training().eval(), tiny_tokenizer())).sample_scores)
    assert_unchanged(model, before)


def test_a_run_waits_for_a_call_of_a_model_in_training_mode_that_is_in_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = in_training()
    alone = logits_of(model)
    inside, go_on = threading.Event(), threading.Event()
    main = threading.get_ident()
    events: list[str] = []
    waits = threading.Event()
    monkeypatch.setattr(engine_mode_module, "time", SimpleNamespace(sleep=lambda _seconds: waits.set()))

    def stay(_module: nn.Module, _args: Any) -> None:
        if threading.get_ident() != main:
            inside.set()
            assert go_on.wait(SECONDS)

    # The call stops before the base model is called. The engine guards the base model too, and must let this call pass.
    model.model.embed_tokens.register_forward_pre_hook(stay)
    with ThreadPoolExecutor(2) as others:
        result = others.submit(logits_of, model)
        assert inside.wait(SECONDS)

        def run() -> None:
            with engine_mode(model):
                events.append("run")
                assert not model.training

        run_done = others.submit(run)
        assert waits.wait(SECONDS)
        assert events == []
        go_on.set()
        assert result.result(SECONDS).equal(alone)
        run_done.result(SECONDS)
    assert events == ["run"]
    assert model.training
    assert "forward" not in vars(model)


def test_a_call_of_a_model_whose_weights_are_loaded_for_each_call_waits() -> None:
    model = accelerate.cpu_offload(build_tiny_model("llama"), execution_device=torch.device("cpu"))
    alone = logits_of(model)
    arrived = threading.Event()
    main = threading.get_ident()
    handle = model.register_forward_pre_hook(
        lambda _module, _args: arrived.set() if threading.get_ident() != main else None
    )
    with ThreadPoolExecutor(1) as other:
        results: list[Future[Tensor]] = []

        def call_now() -> None:
            results.append(other.submit(logits_of, model))
            assert arrived.wait(SECONDS)

        InTheMiddle(model.model.layers[1], call_now, nth=12)
        flow = trace(CausalTracer(model, tiny_tokenizer()))
        assert results[0].result(SECONDS).equal(alone)
    handle.remove()
    torch.testing.assert_close(flow.sample_scores, expected("llama"), atol=1e-5, rtol=0)


def test_two_traces_of_one_model_at_once_give_what_each_gives_alone() -> None:
    model = build_tiny_model("gpt2")
    tracers = [CausalTracer(model, tiny_tokenizer()) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        flows = [job.result(SECONDS) for job in [threads.submit(trace, tracer) for tracer in tracers * 3]]
    assert all(flow.sample_scores.equal(expected("gpt2")) for flow in flows)
