"""Compiled modules and torch's defaults and modes do not change a trace's numbers. Missing weights are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from causal_tracer import CausalTracer, HiddenFlow, HiddenFlowQuery, MapSpec, OtherPrompt, TraceRequest, load_model
from causal_tracer.corruption import CORRUPTIONS
from causal_tracer.errors import ModelStructureError
from causal_tracer.model.engine_mode import engine_mode
from tests.support.tiny_models import ARCHITECTURES, PROMPT, SUBJECT, build_tiny_model, tiny_model, tiny_tokenizer
from tests.support.unchanged import assert_unchanged, fingerprint

pytestmark = pytest.mark.slow

IDS = torch.tensor([[256, 7, 8, 9, 40, 41]])


def traced(model: Any, **options: Any) -> HiddenFlow:
    tracer = CausalTracer(model, tiny_tokenizer())
    return tracer.calculate_hidden_flow(PROMPT, SUBJECT, **{"kind": "mlp", "window": 2, "samples": 2, **options})


@cache
def expected(name: str) -> HiddenFlow:
    return traced(tiny_model(name))


def same_numbers(found: HiddenFlow, wanted: HiddenFlow) -> None:
    assert found.settings == wanted.settings
    assert found.notes == wanted.notes
    assert (found.high_score, found.low_score) == (wanted.high_score, wanted.low_score)
    assert found.scores.dtype == found.sample_scores.dtype == torch.float32
    assert found.scores.device.type == found.input_ids.device.type == "cpu"
    assert found.sample_scores.equal(wanted.sample_scores)
    assert not found.sample_scores.is_inference()


# Compiled modules -----------------------------------------------------------------------------------------------------


def compiled_from_outside(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def compiled_in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def compiled_forward(model: Any) -> Any:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def one_layer_in_place(model: Any) -> Any:
    model.model.layers[1].compile(backend="eager")
    return model


def one_layer_from_outside(model: Any) -> Any:
    model.model.layers[1] = torch.compile(model.model.layers[1], backend="eager")
    return model


def one_mlp_forward(model: Any) -> Any:
    mlp = model.model.layers[1].mlp
    mlp.forward = torch.compile(mlp.forward, backend="eager")
    return model


def head_and_embedding(model: Any) -> Any:
    model.lm_head.compile(backend="eager")
    model.model.embed_tokens.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    "compiled",
    [
        compiled_from_outside,
        compiled_in_place,
        compiled_forward,
        one_layer_in_place,
        one_layer_from_outside,
        one_mlp_forward,
        head_and_embedding,
    ],
)
def test_a_compiled_model_is_traced_with_the_numbers_of_eager(compiled: Callable[[Any], Any]) -> None:
    model = compiled(build_tiny_model("llama"))
    before = fingerprint(model)
    found = traced(model)
    same_numbers(found, expected("llama"))
    assert found.settings.engine == "resumed"
    assert_unchanged(model, before)


def test_a_model_compiled_in_place_stays_compiled_and_a_trace_compiles_nothing() -> None:
    compilations: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        compilations.append(1)
        return graph.forward

    model = build_tiny_model("llama")
    model.model.layers[1].mlp.compile(backend=backend)
    call = model.model.layers[1].mlp._compiled_call_impl
    traced(model)
    assert compilations == []
    assert model.model.layers[1].mlp._compiled_call_impl is call
    model(IDS)
    assert compilations, "the model is compiled again after the trace"


def test_runs_of_two_compiled_models_that_overlap_leave_compilation_on() -> None:
    compilations: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        compilations.append(1)
        return graph.forward

    first, second = build_tiny_model("llama"), build_tiny_model("llama")
    for model in (first, second):
        model.model.layers[0].mlp.compile(backend=backend)
    earlier, later = engine_mode(first), engine_mode(second)
    earlier.__enter__()
    later.__enter__()
    earlier.__exit__(None, None, None)
    second(IDS)
    assert compilations == [], "the later run still needs compilation to be off"
    later.__exit__(None, None, None)
    second(IDS)
    assert compilations


# torch's defaults and modes -------------------------------------------------------------------------------------------


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default dtype float16": lambda: default_dtype(torch.float16),
    "default device meta": lambda: default_device("meta"),
    "with torch.device": lambda: torch.device("meta"),
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "gradients off": torch.no_grad,
    "gradients on": torch.enable_grad,
    "deterministic algorithms": deterministic_algorithms,
}
around_a_call = pytest.mark.parametrize("surroundings", SURROUNDINGS.values(), ids=SURROUNDINGS.keys())


@around_a_call
@pytest.mark.parametrize("name", ["llama", *(pytest.param(n, marks=pytest.mark.nightly) for n in ARCHITECTURES)])
def test_surroundings_of_a_call_do_not_change_its_numbers(
    name: str, surroundings: Callable[[], AbstractContextManager[Any]]
) -> None:
    wanted = expected(name)
    with surroundings():
        found = traced(tiny_model(name))
    same_numbers(found, wanted)


@cache
def everything() -> dict[str, Any]:
    """The results of all other public calls: maps, heads, calibration, corruptions, a stream, a result's methods."""
    tracer = CausalTracer(tiny_model("llama"), tiny_tokenizer())
    request = TraceRequest(PROMPT, SUBJECT, samples=2, top_tokens=2, placebo=OtherPrompt("Steve Jobs was", "Steve"))
    maps = {
        "placebo": MapSpec("mlp", 2, source="placebo"),
        "severed": MapSpec("hidden", severed="mlp"),
    }
    found: dict[str, Any] = {name: flow.to_dict() for name, flow in tracer.trace_maps(request, maps).items()}
    plain = TraceRequest(PROMPT, SUBJECT, samples=2)
    heads = tracer.trace_maps(plain, {"heads": MapSpec("head")})["heads"]
    found["heads"] = heads.sample_scores.tolist(), heads.standard_error.tolist()
    calibration = tracer.calibrate_noise([HiddenFlowQuery(PROMPT, SUBJECT)], (1.0, 3.0), samples=2)
    found["calibration"] = calibration.clean.tolist(), calibration.corrupted.tolist(), calibration.recommended_level
    for corruption in CORRUPTIONS:
        found[corruption] = tracer.trace(PROMPT, SUBJECT, samples=2, corruption=corruption).to_dict()
    flow = HiddenFlow.from_dict(found["severed"])
    found["read"] = [tensor.tolist() for tensor in flow.interval()], str(flow.peaks()), flow.peak_width()
    return found


@around_a_call
def test_surroundings_do_not_change_any_other_entry(
    surroundings: Callable[[], AbstractContextManager[Any]],
) -> None:
    wanted = repr(everything())
    with surroundings():
        found = repr(everything.__wrapped__())
    assert found == wanted


@around_a_call
def test_a_stream_holds_nothing_between_its_steps_and_ends_outside_of_where_it_began(
    surroundings: Callable[[], AbstractContextManager[Any]],
) -> None:
    tracer = CausalTracer(tiny_model("llama"), tiny_tokenizer())
    request = TraceRequest(PROMPT, SUBJECT, samples=2)
    with surroundings():
        steps = tracer.stream(request, {"map": MapSpec("mlp", 2)})
        before = state_of_torch()
        next(steps)
        assert state_of_torch() == before
    before = state_of_torch()
    last = list(steps)[-1]
    assert state_of_torch() == before
    same_numbers(last.flows["map"], expected("llama"))


def state_of_torch() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_device(),
        torch.get_default_dtype(),
    )


@pytest.mark.parametrize("surroundings", ["default dtype float64", "default device meta", "autocast to bfloat16"])
def test_a_model_is_loaded_alike_in_all_surroundings(surroundings: str, tmp_path: Any) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with SURROUNDINGS[surroundings]():
        loaded = load_model(str(tmp_path), device="cpu")
    for found, wanted in zip(loaded.model.parameters(), tiny_model("llama").parameters(), strict=True):
        assert found.device.type == "cpu"
        assert found.dtype == torch.float32
        assert found.equal(wanted)


# Weights without values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["model.layers.1.mlp.up_proj"],
        ["lm_head"],
        ["model.embed_tokens"],
        ["model.layers.0.input_layernorm", "model.layers.2.self_attn.q_proj", "model.norm"],
    ],
)
def test_a_model_with_weights_on_meta_is_refused_by_their_names(names: list[str]) -> None:
    model = build_tiny_model("llama")
    for name in names:
        model.get_submodule(name).to("meta")
    with pytest.raises(ModelStructureError, match="meta device") as error:
        CausalTracer(model, tiny_tokenizer())
    for name in names:
        assert f"{name}.weight" in str(error.value)


def test_a_buffer_on_meta_is_refused_as_well() -> None:
    model = build_tiny_model("llama")
    model.model.rotary_emb.to("meta")
    with pytest.raises(ModelStructureError, match=r"model\.rotary_emb\.inv_freq"):
        CausalTracer(model, tiny_tokenizer())


def test_a_model_that_lost_its_weights_after_its_tracer_was_made_is_refused() -> None:
    model = build_tiny_model("llama")
    tracer = CausalTracer(model, tiny_tokenizer())
    model.to("meta")
    with pytest.raises(ModelStructureError, match="meta device"):
        tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2)


def test_what_is_not_a_module_is_refused() -> None:
    for given in ("llama", None, 5, nn.Linear):
        with pytest.raises(ModelStructureError, match="must be a torch module"):
            CausalTracer(given, tiny_tokenizer())  # type: ignore[arg-type]
