"""One model type for each difficulty: modules pinned by hand, full sweep = plain hooks, resumed = full, or a refusal.

`benchmarks/coverage.py` checks the same for every text decoder of transformers.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers

from benchmarks import tiny_configs
from benchmarks.coverage import Base, Report, examine
from causal_tracer.corruption import NOISE_MULTIPLIER
from causal_tracer.errors import ModelStructureError
from causal_tracer.experiment.noise_levels import embedding_scale
from causal_tracer.model.contributions import additive_contributions
from causal_tracer.model.layers import TracedModel, trace_model
from causal_tracer.model.probing import Call
from causal_tracer.sweep.check import check_resume_modes
from causal_tracer.sweep.engine import choose_engine
from causal_tracer.sweep.plan import Cell, Intervention, reach

needs = pytest.mark.skipif(
    int(transformers.__version__.split(".")[1]) < 24, reason="pins hold for the transformers version in constraints.txt"
)
pytestmark = [needs, pytest.mark.slow]

MIXED = (["linear_attn", "self_attn"] * 2, ["mlp"] * 4)

DIFFICULT: dict[str, tuple[list[str], list[str], str]] = {
    # Parallel attention and MLP; a projection that itself adds the residual; ALiBi biases computed for all rows.
    "gptj": (["attn"] * 4, ["mlp"] * 4, "resumed"),
    "bloom": (["self_attention.dense"] * 4, ["mlp.dense_4h_to_h"] * 4, "resumed, all rows"),
    # The embedding is scaled inside its module; outputs of attention and MLP are normalised before the addition.
    "gemma2": (["self_attn"] * 4, ["mlp"] * 4, "resumed"),
    # The residual is scaled in every block; it is normalised after the addition; a norm's output is the residual.
    "beam": (["self_attn"] * 4, ["mlp"] * 4, "resumed"),
    "openai-gpt": (["attn"] * 4, ["mlp"] * 4, "resumed in depth"),
    "minimax": (["self_attn"] * 4, ["mlp"] * 4, "resumed, all rows"),
    # Hybrids; one token mixer per block; two token mixers per block; a short convolution after attention and MLP.
    "qwen3_5_text": (["linear_attn"] * 3 + ["self_attn"], ["mlp"] * 4, "resumed"),
    "bamba": (["mamba", "self_attn"] * 2, ["feed_forward"] * 4, "resumed"),
    "nemotron_h": (["mixer", "", "mixer", ""], ["", "mixer", "", "mixer"], "resumed"),
    "mamba": (["mixer"] * 4, [""] * 4, "resumed in depth"),
    "mamba2": (["mixer"] * 4, [""] * 4, "resumed"),
    "falcon_h1": (["mamba+self_attn"] * 4, ["feed_forward"] * 4, "resumed"),
    "inkling_text": (["attn_sconv"] * 4, ["mlp_sconv"] * 4, "resumed"),
    "rwkv": (["attention"] * 4, ["feed_forward"] * 4, "resumed in depth"),
    # Several sites of a kind; two attentions per block, so that outputs of the first reach later tokens.
    "granitemoeshared": (["self_attn"] * 4, ["block_sparse_moe+shared_mlp"] * 4, "resumed"),
    "longcat_flash": (["self_attn.0+self_attn.1"] * 3, ["mlp+mlps.0+mlps.1"] * 3, "resumed"),
    # Tuples with router states; several streams, in a dimension before or after the tokens; keys and values of earlier
    # blocks.
    "zaya": (["self_attn"] * 4, ["mlp"] * 4, "resumed"),
    "hy_v4": (["self_attn"] * 4, ["mlp"] * 4, "resumed"),
    "qwen4_exp_text": (*MIXED, "resumed, all rows"),
    "gemma3n_text": (["self_attn"] * 6, ["mlp"] * 6, "resumed, all rows"),
    "gemma4_text": (["self_attn"] * 6, ["mlp+per_layer_projection"] * 6, "resumed, all rows"),
    # Sparse attention with separate keys; embeddings passed to later blocks.
    "deepseek_v32": (["self_attn"] * 4, ["mlp"] * 4, "resumed"),
    "zamba2": (["mamba", "mamba_decoder.mamba"] * 2, [""] * 4, "resumed, all rows"),
}


@functools.cache
def report_on(model_type: str) -> Report:
    return examine(model_type)


@functools.cache
def tiny(model_type: str) -> TracedModel:
    return trace_model(tiny_configs.build(model_type))


def inside(traced: TracedModel, kind: Any) -> list[str]:
    blocks = [name for (name,) in traced.site_names["hidden"]]
    return [
        "+".join(name.removeprefix(f"{block}.") for name in names)
        for block, names in zip(blocks, traced.site_names[kind], strict=True)
    ]


@pytest.mark.parametrize("model_type", DIFFICULT)
def test_modules_are_those_pinned_by_hand(model_type: str) -> None:
    attention, mlp, _ = DIFFICULT[model_type]
    assert inside(tiny(model_type), "attention") == attention
    assert inside(tiny(model_type), "mlp") == mlp


@pytest.mark.nightly
@pytest.mark.parametrize("model_type", DIFFICULT)
def test_maps_equal_plain_hooks_and_the_resumed_sweep_the_full_one(model_type: str) -> None:
    report = report_on(model_type)
    assert not report.error
    assert not report.refused
    assert report.sensitive
    assert report.all_right, report
    assert report.resumed_right, report


@pytest.mark.parametrize("model_type", DIFFICULT)
def test_the_chosen_engine_is_the_fastest_that_works(model_type: str) -> None:
    assert choose_engine(tiny(model_type), "auto", 12).name == DIFFICULT[model_type][2]


@pytest.mark.parametrize("model_type", ["longcat_flash", "inkling_text", "gemma4_text", "nemotron_h"])
def test_the_chosen_engine_equals_the_full_sweep_in_the_last_block(model_type: str) -> None:
    traced = tiny(model_type)
    base = Base.make(traced, NOISE_MULTIPLIER * embedding_scale(traced))
    engine_check = choose_engine(traced, "auto", len(base.prompt))
    for kind in ("attention", "mlp"):
        cells = [cell for cell in base.map_cells(kind, 1) if cell.layer >= traced.n_layers - 2]
        torch.testing.assert_close(base.scores(cells, engine_check), base.scores(cells), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("blt", ["for 6 tokens", "patches"]),
        ("cpmant", ["[1, 10, 32]", "for 6 tokens"]),
        ("dory", ["2 times", "no single output to restore"]),
        ("hrm_text", ["2 times", "L_module"]),
        ("inkling2_loop_text", ["2 times"]),
        ("reformer", ["2 residual streams"]),
    ],
)
def test_models_that_cannot_be_traced_are_refused_with_the_reason(model_type: str, words: list[str]) -> None:
    with pytest.raises(ModelStructureError) as caught:
        tiny(model_type)
    for word in words:
        assert word in str(caught.value)


def test_modules_that_add_the_residual_and_normalise_are_refused() -> None:
    settings = dict.fromkeys(("hidden_size", "intermediate_size"), 32)
    config = transformers.BertConfig(
        vocab_size=96, num_hidden_layers=2, num_attention_heads=4, is_decoder=True, **settings
    )
    with pytest.raises(ModelStructureError, match="LayerConfig"):
        trace_model(transformers.BertLMHeadModel(config).eval())


def test_a_model_that_looks_ahead_gets_the_full_sweep() -> None:
    """PaliGemma's text attention is not causal: restoring tokens before the subject changes the score."""
    engine_check = check_resume_modes(tiny("paligemma"), 8)
    assert engine_check.mode is None
    assert len(engine_check.tried) == 3


def test_logits_to_keep_does_not_take_tokens_from_blocks() -> None:
    """Gemma 4 drops all tokens except the last from its later blocks if `logits_to_keep` is 1."""
    traced = tiny("gemma4_text")
    assert traced.logits_to_keep_drops_tokens
    base = Base.make(traced, NOISE_MULTIPLIER * embedding_scale(traced))
    assert all(len(activation) == len(base.prompt) for activation in base.clean.activations.values())
    assert not tiny("gemma2").logits_to_keep_drops_tokens


def test_streams_stacked_before_the_rows_are_detected() -> None:
    assert tiny("gemma3n_text").stacked_streams
    assert not tiny("hy_v4").stacked_streams


@pytest.mark.parametrize(("model_type", "expected"), [("gptj", False), ("longcat_flash", True), ("inkling_text", True)])
def test_outputs_that_reach_later_tokens_are_detected(model_type: str, expected: bool) -> None:
    assert tiny(model_type).outputs_reach_later_tokens is expected


def test_only_hidden_states_of_the_last_block_are_no_ops_where_outputs_reach_later_tokens() -> None:
    def found(site: Any, meet_again: bool) -> Any:
        return reach(Cell(0, 0, (Intervention((7,), site, (5,)),)), 3, (9,), 8, meet_again)

    assert found("hidden", True) is None
    assert found("attention", False) is None
    assert found("attention", True).join == 7


def _calls(names: list[str], width: int = 8, tokens: int = 6) -> list[Call]:
    generator = torch.Generator().manual_seed(0)
    return [Call(name, None, torch.randn(tokens, width, generator=generator)) for name in names]


def test_the_shallowest_modules_that_sum_to_what_the_block_adds_are_found() -> None:
    source, attention, gate, expert, shared = (call.output for call in _calls(["s", "a", "g", "e", "h"]))
    candidates = [
        Call("b.attn", None, attention),
        Call("b.mlp", None, expert + shared),
        Call("b.attn.gate", None, gate),
        Call("b.mlp.experts", None, expert),
        Call("b.mlp.shared", None, shared),
    ]
    for scale in (1.0, 0.7):
        whole = Call("b", source, scale * source + attention + 0.5 * (expert + shared))
        assert [call.name for call in additive_contributions(candidates, whole)] == ["b.attn", "b.mlp"]
    assert additive_contributions(candidates, Call("b", source, torch.tanh(source + attention))) == []
    subtracted = Call("b", source, source + attention - 0.5 * (expert + shared))
    assert additive_contributions(candidates, subtracted) == []
