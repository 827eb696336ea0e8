"""The fingerprint of a model changes if its computation may change, and only then."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from causal_tracer import CausalTracer, HiddenFlow
from causal_tracer.model.fingerprint import fingerprint
from causal_tracer.sweep import engine
from causal_tracer.sweep.engine import choose_engine
from causal_tracer.sweep.resume_mode import RESUME_MODES
from tests.support.tiny_models import PROMPT, SUBJECT, build_tiny_model, tiny_tokenizer, tiny_tracer


def add_hook(model: Any) -> None:
    model.model.layers[1].mlp.register_forward_hook(lambda _module, _args, output: output * 1.5)


def add_pre_hook(model: Any) -> None:
    model.model.layers[1].mlp.register_forward_pre_hook(lambda _module, args: (args[0] * 1.5,))


def patch_forward(model: Any) -> None:
    mlp = model.model.layers[1].mlp
    own = mlp.forward
    mlp.forward = lambda hidden: own(hidden) * 1.5


def change_rotary_buffer(model: Any) -> None:
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq * 2


def replace_activation_function(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.Tanh()


def change_dtype(model: Any) -> None:
    model.to(torch.bfloat16)


def change_a_number(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.scaling = layer.self_attn.scaling * 3


def change_attention(model: Any) -> None:
    model.set_attn_implementation("eager")


def quantise(model: Any) -> None:
    class FewBits(nn.Linear):
        """A stand-in for a library's quantized layer."""

    for layer in model.model.layers:
        layer.mlp.down_proj.__class__ = FewBits


COMPUTE_DIFFERENTLY = [
    add_hook,
    add_pre_hook,
    patch_forward,
    change_rotary_buffer,
    replace_activation_function,
    change_dtype,
    change_a_number,
]


@pytest.mark.parametrize("change", COMPUTE_DIFFERENTLY)
def test_a_trace_uses_the_model_as_changed_since_the_last_trace(change: Callable[[Any], None]) -> None:
    model = build_tiny_model("llama")
    tracer = CausalTracer(model, tiny_tokenizer(), noise=1.0)

    def trace(by: CausalTracer) -> HiddenFlow:
        return by.calculate_hidden_flow(PROMPT, SUBJECT, samples=2, answer_id_override=7)

    before = trace(tracer)
    change(model)
    found, expected = trace(tracer), trace(CausalTracer(model, tiny_tokenizer(), noise=1.0))
    assert found.high_score != before.high_score
    assert found.high_score == expected.high_score
    torch.testing.assert_close(found.sample_scores, expected.sample_scores, rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        add_hook,
        add_pre_hook,
        patch_forward,
        replace_activation_function,
        change_dtype,
        change_a_number,
        change_attention,
        quantise,
    ],
)
def test_a_change_to_how_the_model_computes_changes_the_fingerprint(change: Callable[[Any], None]) -> None:
    model = build_tiny_model("llama")
    before = fingerprint(model)
    change(model)
    assert fingerprint(model).digest != before.digest


def test_the_experts_implementation_is_part_of_the_fingerprint() -> None:
    model = build_tiny_model("mixtral")
    before = fingerprint(model)
    model.set_experts_implementation("batched_mm")
    assert fingerprint(model).digest != before.digest


def test_a_patched_class_changes_the_fingerprint_also_where_the_patch_takes_the_old_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_tiny_model("llama")
    before = fingerprint(model)
    mlp = type(model.model.layers[0].mlp)
    own = mlp.forward

    @functools.wraps(own)
    def patched(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        return own(self, hidden) * 1.5

    monkeypatch.setattr(mlp, "forward", patched)
    found = fingerprint(model)
    assert found.digest != before.digest
    assert not found.portable


def test_equal_models_have_equal_fingerprints_and_tracing_leaves_them() -> None:
    one, other = build_tiny_model("gemma3_text"), build_tiny_model("gemma3_text")
    before = fingerprint(one)
    assert before == fingerprint(other)
    assert before.portable
    CausalTracer(one, tiny_tokenizer()).calculate_hidden_flow(PROMPT, SUBJECT, samples=2)
    assert fingerprint(one) == before


def test_a_hook_that_is_taken_away_leaves_the_fingerprint_as_it_was() -> None:
    model = build_tiny_model("llama")
    before = fingerprint(model)
    handle = model.lm_head.register_forward_hook(lambda *_: None)
    assert not fingerprint(model).portable
    handle.remove()
    assert fingerprint(model) == before


def looks_at_the_other_tokens_of_its_call(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any
) -> Any:
    """An attention function whose values depend on how many tokens are run together."""
    from transformers.models.llama.modeling_llama import eager_attention_forward

    output, weights = eager_attention_forward(module, query, key, value, mask, scaling)
    return output * (1 + 0.1 * query.shape[2]), weights


def test_a_model_is_checked_again_with_another_attention_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key/value cache is wrong for this function. Only a new engine check detects that."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    monkeypatch.setattr(engine, "_engine_checks", {})
    model = build_tiny_model("llama")
    tracer = CausalTracer(model, tiny_tokenizer(), noise=1.0)
    tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2)
    assert choose_engine(tracer.context.traced, "auto", 8).mode == RESUME_MODES[0]
    AttentionInterface.register("counts tokens", looks_at_the_other_tokens_of_its_call)
    AttentionMaskInterface.register("counts tokens", eager_mask)
    model.set_attn_implementation("counts tokens")
    found = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2)
    full = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2, engine="full")
    assert found.settings.engine == "resumed in depth"
    torch.testing.assert_close(found.sample_scores, full.sample_scores, rtol=0, atol=1e-5)


def test_models_of_equal_config_of_which_one_is_patched_are_checked_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "_engine_checks", {})
    assert choose_engine(tiny_tracer("llama").context.traced, "auto", 8).mode == RESUME_MODES[0]
    model = build_tiny_model("llama")
    mlp = model.model.layers[1].mlp
    own = mlp.forward
    mlp.forward = lambda hidden: own(hidden) * (1 + 0.1 * hidden.shape[1])
    tracer = CausalTracer(model, tiny_tokenizer())
    assert choose_engine(tracer.context.traced, "auto", 8).name == "resumed in depth"
    assert choose_engine(tiny_tracer("llama").context.traced, "auto", 8).mode == RESUME_MODES[0]
