"""Finding the parts of a model: pinned names, names given by users, refusals; and the model is left unchanged."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from causal_tracer import GPT2_LAYER_CONFIG, LLAMA_LAYER_CONFIG, CausalTracer, LayerConfig, MapSpec
from causal_tracer.errors import CausalTracerError, ModelStructureError
from causal_tracer.model.layers import trace_model
from causal_tracer.request.sites import KINDS
from tests.support.structure_checks import check_names_are_the_pinned_ones
from tests.support.tiny_models import (
    D_MODEL,
    EVERY_ARCHITECTURE,
    FAMILIES,
    PROMPT,
    SUBJECT,
    VOCAB_SIZE,
    build_tiny_model,
    tiny_model,
    tiny_tokenizer,
    tiny_tracer,
)
from tests.support.unchanged import assert_unchanged, fingerprint


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_modules_found_by_structure_are_those_pinned_by_hand(name: str) -> None:
    check_names_are_the_pinned_ones(tiny_tracer(name).context.traced, name)


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_a_freshly_initialised_model_is_understood_too(name: str) -> None:
    """transformers initialises very small weights. The modules found must not depend on the size of the outputs."""
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    model = FAMILIES[name].make().eval()
    torch.random.set_rng_state(state)
    check_names_are_the_pinned_ones(trace_model(model), name)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text", "mixtral", "falcon"])
def test_a_bfloat16_model_is_understood_too(name: str) -> None:
    check_names_are_the_pinned_ones(trace_model(build_tiny_model(name).to(torch.bfloat16)), name)


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_sizes_are_the_models_own(name: str) -> None:
    traced = tiny_tracer(name).context.traced
    assert (traced.n_layers, traced.d_model, traced.vocab_size) == (FAMILIES[name].n_layers, D_MODEL, VOCAB_SIZE)
    assert traced.context_length == (None if name == "bloom" else traced.context_length)
    assert traced.dtype == torch.float32


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_the_config_that_was_found_gives_the_same_model_when_given(name: str) -> None:
    tracer = tiny_tracer(name)
    again = CausalTracer(tiny_model(name), tiny_tokenizer(), tracer.layer_config, noise=1.0)
    assert again.context.traced.site_names == tracer.context.traced.site_names
    assert again.context.traced.embedding_name == tracer.context.traced.embedding_name
    for kind in KINDS:
        assert again.get_layer_names_of_kind(kind) == list(FAMILIES[name].site_names(kind))
    assert again.count_layers() == FAMILIES[name].n_layers


@pytest.mark.parametrize(("name", "config"), [("gpt2", GPT2_LAYER_CONFIG), ("llama", LLAMA_LAYER_CONFIG)])
def test_ready_made_configs_name_what_is_found(name: str, config: LayerConfig) -> None:
    assert tiny_tracer(name).layer_config == config
    check_names_are_the_pinned_ones(trace_model(tiny_model(name), config), name)


RELATIVE = LayerConfig("h.{num}", "h.{num}.attn", "h.{num}.mlp", "wte")


def test_names_relative_to_the_base_model_work() -> None:
    check_names_are_the_pinned_ones(trace_model(tiny_model("gpt2"), RELATIVE), "gpt2")


def test_callables_work_as_matchers() -> None:
    given: list[nn.Module] = []

    def block(model: nn.Module, number: int) -> str:
        given.append(model)
        return f"transformer.h.{number}"

    config = LayerConfig(
        hidden_layers_matcher=block,
        attention_layers_matcher=lambda _model, number: f"h.{number}.attn",
        mlp_layers_matcher="transformer.h.{num}.mlp",
        embedding_layer="wte",
    )
    model = tiny_model("gpt2")
    check_names_are_the_pinned_ones(trace_model(model, config), "gpt2")
    assert all(module is model for module in given)


def _nothing_past_the_end(_model: nn.Module, number: int) -> str:
    return f"transformer.h.{number}" if number < 3 else ""


@pytest.mark.parametrize(
    "matcher",
    [
        lambda _model, number: ["transformer.h.0", "transformer.h.1", "transformer.h.2"][number],
        lambda _model, number: {0: "h.0", 1: "h.1", 2: "h.2"}[number],
        lambda _model, number: {0: "h.0", 1: "h.1", 2: "h.2"}.get(number),
        _nothing_past_the_end,
    ],
    ids=["IndexError", "KeyError", "None", "no name"],
)
def test_a_callable_may_end_the_blocks_in_any_of_the_obvious_ways(matcher: Any) -> None:
    config = replace(GPT2_LAYER_CONFIG, hidden_layers_matcher=matcher)
    check_names_are_the_pinned_ones(trace_model(tiny_model("gpt2"), config), "gpt2")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_layers_matcher": "transformer.h.0"}, ["hidden", "transformer.h.0", "{num}"]),
        ({"mlp_layers_matcher": "mlp"}, ["mlp", "{num}"]),
        ({"attention_layers_matcher": ""}, ["attention", "{num}"]),
        ({"embedding_layer": "transformer.embed"}, ["transformer.embed", "GPT2LMHeadModel", "named_modules"]),
        ({"hidden_layers_matcher": "transformer.blocks.{num}"}, ["transformer.blocks.0", "named_modules"]),
        ({"mlp_layers_matcher": "transformer.h.{num}.ffn"}, ["transformer.h.0.ffn", "mlp"]),
        ({"attention_layers_matcher": "transformer.h.{num}.self_attn"}, ["transformer.h.0.self_attn", "attention"]),
        ({"mlp_layers_matcher": "transformer.h.{num}.mlp.c_fc"}, ["transformer.h.0.mlp.c_fc", "128", "32"]),
        ({"attention_layers_matcher": "transformer.h.{num}.attn.c_attn"}, ["transformer.h.0.attn.c_attn", "96"]),
        ({"hidden_layers_matcher": "transformer.h.{num}.mlp.c_fc"}, ["transformer.h.0"]),
        ({"attention_layers_matcher": lambda _model, _number: "nowhere"}, ["nowhere", "attention"]),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_name(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelStructureError) as caught:
        trace_model(tiny_model("gpt2"), replace(GPT2_LAYER_CONFIG, **change))
    for word in words:
        assert word in str(caught.value)


def test_a_module_that_is_never_called_is_refused() -> None:
    model = build_tiny_model("gpt2")
    model.transformer.spare = nn.Linear(D_MODEL, D_MODEL)
    with pytest.raises(ModelStructureError, match=r"transformer\.spare.*not called"):
        trace_model(model, replace(GPT2_LAYER_CONFIG, mlp_layers_matcher=lambda _model, _number: "transformer.spare"))


@pytest.mark.parametrize("name", ["lm_head", "transformer.ln_f", "transformer.h.1", ""])
def test_an_embedding_that_comes_after_the_blocks_is_refused(name: str) -> None:
    """The noise would be added to other activations than the embeddings."""
    with pytest.raises(ModelStructureError, match=repr(name)):
        trace_model(tiny_model("gpt2"), replace(GPT2_LAYER_CONFIG, embedding_layer=name))


def test_layers_without_a_kind_have_no_names_and_are_listed() -> None:
    config = replace(
        GPT2_LAYER_CONFIG,
        mlp_layers_matcher=lambda _model, number: f"transformer.h.{number}.mlp" if number != 1 else "",
    )
    traced = trace_model(tiny_model("gpt2"), config)
    assert traced.missing_layers("mlp") == (1,)
    tracer = CausalTracer(tiny_model("gpt2"), tiny_tokenizer(), config, noise=1.0)
    flow = tracer.calculate_hidden_flow(PROMPT, SUBJECT, "mlp", samples=1, window=3)
    assert flow.scores[:, 1].isnan().all()
    assert not flow.scores[:, [0, 2]].isnan().any()
    assert any("MLP" in note and "1" in note for note in flow.notes)


def test_an_encoder_decoder_is_refused_by_name() -> None:
    config = transformers.T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(ModelStructureError, match=r"encoder-decoder.*t5"):
        CausalTracer(transformers.T5ForConditionalGeneration(config), tiny_tokenizer())


@pytest.mark.parametrize("model", [nn.Linear(3, 3), nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8))])
def test_a_model_that_is_not_from_transformers_is_refused(model: nn.Module) -> None:
    with pytest.raises(ModelStructureError, match="AutoModelForCausalLM"):
        CausalTracer(model, tiny_tokenizer())


def test_a_classifier_is_refused() -> None:
    config = transformers.GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    with pytest.raises(ModelStructureError, match="AutoModelForCausalLM"):
        CausalTracer(transformers.GPT2ForSequenceClassification(config), tiny_tokenizer())


# Base models ----------------------------------------------------------------------------------------------------------


def tied_gpt2() -> Any:
    torch.manual_seed(5)
    config = transformers.GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=D_MODEL,
        n_layer=3,
        n_head=4,
        n_positions=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.shape[0] >= 64 else 0.2))
    return model


def test_a_tied_base_model_gives_the_numbers_of_its_causal_lm() -> None:
    causal_lm = tied_gpt2()
    base = transformers.AutoModel.from_config(causal_lm.config).eval()
    base.load_state_dict(causal_lm.transformer.state_dict())
    assert type(base).__name__ == "GPT2Model"
    own = CausalTracer(base, tiny_tokenizer())
    expected = CausalTracer(causal_lm, tiny_tokenizer())
    assert own.noise == expected.noise
    for kind in KINDS:
        found = own.calculate_hidden_flow(PROMPT, SUBJECT, kind, samples=2, window=2)
        right = expected.calculate_hidden_flow(PROMPT, SUBJECT, kind, samples=2, window=2)
        assert torch.equal(found.scores, right.scores)
        assert (found.low_score, found.high_score, found.answer_id) == (
            right.low_score,
            right.high_score,
            right.answer_id,
        )


def test_a_tied_base_model_shares_its_weights_and_is_left_as_it_was() -> None:
    base = tied_gpt2().transformer
    base.train()
    before = {name: (parameter.data_ptr(), parameter.requires_grad) for name, parameter in base.named_parameters()}
    tracer = CausalTracer(base, tiny_tokenizer(), RELATIVE, noise=1.0)
    tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=1)
    assert tracer.model.transformer is base
    assert tracer.model.get_output_embeddings().weight.data_ptr() == base.wte.weight.data_ptr()
    after = {name: (parameter.data_ptr(), parameter.requires_grad) for name, parameter in base.named_parameters()}
    assert after == before
    assert all(module.training for module in base.modules())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text", "opt"])
def test_an_untied_base_model_is_refused_with_the_line_to_write(name: str) -> None:
    base = build_tiny_model(name).base_model
    base.config._name_or_path = "some/model"
    with pytest.raises(ModelStructureError, match=r"AutoModelForCausalLM\.from_pretrained\('some/model'\)"):
        CausalTracer(base, tiny_tokenizer())


def test_a_tied_gemma_base_model_works() -> None:
    causal_lm = build_tiny_model("gemma3_text")
    causal_lm.config.tie_word_embeddings = True
    base = transformers.Gemma3TextModel(causal_lm.config).eval()
    base.load_state_dict(causal_lm.model.state_dict())
    flow = CausalTracer(base, tiny_tokenizer()).calculate_hidden_flow(PROMPT, SUBJECT, samples=2)
    tied = transformers.Gemma3ForCausalLM(causal_lm.config).eval()
    tied.model.load_state_dict(causal_lm.model.state_dict())
    tied.tie_weights()
    expected = CausalTracer(tied, tiny_tokenizer()).calculate_hidden_flow(PROMPT, SUBJECT, samples=2)
    assert torch.equal(flow.scores, expected.scores)
    assert flow.high_score == expected.high_score


# The model is left unchanged ------------------------------------------------------------------------------------------


def unusual_model() -> tuple[Any, list[str]]:
    """A model in mixed modes, with its owner's hooks and a frozen weight; and a list of the hooks' calls."""
    model = build_tiny_model("gpt2")
    model.train()
    model.transformer.h[1].eval()
    model.transformer.h[2].mlp.eval()
    model.transformer.wte.weight.requires_grad_(False)
    seen: list[str] = []
    model.transformer.h[0].register_forward_hook(lambda *_: seen.append("after"))
    model.transformer.h[0].register_forward_pre_hook(lambda *_: seen.append("before"))
    return model, seen


def test_a_model_in_mixed_modes_with_hooks_is_left_exactly_as_it_was() -> None:
    model, seen = unusual_model()
    expected = tiny_tracer("gpt2").calculate_hidden_flow(PROMPT, SUBJECT, "mlp", samples=2)
    state = _state(model)
    tracer = CausalTracer(model, tiny_tokenizer())
    assert _state(model) == state
    flow = tracer.calculate_hidden_flow(PROMPT, SUBJECT, "mlp", samples=2)
    assert _state(model) == state
    assert torch.equal(flow.scores, expected.scores), "dropout was on during the runs"
    assert not flow.scores.requires_grad
    assert "before" in seen
    assert "after" in seen
    assert model.transformer.h[0].mlp.c_fc.weight.grad is None


@pytest.mark.parametrize("error", [RuntimeError("of the owner's hook"), KeyboardInterrupt()])
def test_an_exception_inside_a_run_leaves_the_model_as_it_was(error: BaseException) -> None:
    model, _ = unusual_model()
    tracer = CausalTracer(model, tiny_tokenizer())
    calls: list[None] = []

    def fail_later(*_: Any) -> None:
        calls.append(None)
        if len(calls) > 4:
            raise error

    handle = model.transformer.h[2].register_forward_hook(fail_later)
    state = _state(model)
    with pytest.raises(type(error)):
        tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=4, batch_size=2)
    assert _state(model) == state
    handle.remove()
    expected = tiny_tracer("gpt2").calculate_hidden_flow(PROMPT, SUBJECT, samples=2)
    assert torch.equal(tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2).scores, expected.scores)


def test_an_exception_while_a_model_is_examined_leaves_it_as_it_was() -> None:
    model, _ = unusual_model()
    state = _state(model)
    with pytest.raises(CausalTracerError):
        trace_model(model, replace(GPT2_LAYER_CONFIG, mlp_layers_matcher="transformer.h.{num}.mlp.c_fc"))
    assert _state(model) == state


def _state(model: Any) -> list[Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    modules = [
        (name, module.training, "forward" in module.__dict__, *(list(getattr(module, kind)) for kind in hooks))
        for name, module in model.named_modules()
    ]
    parameters = [
        (name, parameter.requires_grad, parameter.grad is None, parameter.data_ptr())
        for name, parameter in model.named_parameters()
    ]
    return [*modules, *parameters]


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text", "mixtral", "falcon"])
def test_outputs_are_bit_identical_after_tracing(name: str) -> None:
    model = build_tiny_model(name)
    before = fingerprint(model)
    tracer = CausalTracer(model, tiny_tokenizer())
    tracer.trace_maps(_request(), {kind: MapSpec(kind) for kind in KINDS})
    assert_unchanged(model, before)


def test_gradients_stay_on_for_the_caller() -> None:
    model = build_tiny_model("gpt2")
    tracer = CausalTracer(model, tiny_tokenizer())
    updates = tracer.stream(_request(), {"map": MapSpec()})
    next(updates)
    assert torch.is_grad_enabled()
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    updates.close()  # type: ignore[attr-defined]
    assert torch.is_grad_enabled()


def _request() -> Any:
    from causal_tracer import TraceRequest

    return TraceRequest(PROMPT, SUBJECT, samples=2)


@pytest.mark.parametrize("name", ["gpt2", pytest.param("gemma3_text", marks=pytest.mark.slow)])
def test_threads_that_share_a_model_get_the_numbers_of_one_alone(name: str) -> None:
    """There are two tracers of one model, so that only the model's lock separates their runs."""
    model = build_tiny_model(name)
    tracers = [CausalTracer(model, tiny_tokenizer()) for _ in range(2)]
    jobs = [("hidden", 1), ("mlp", 3), ("attention", 2), ("hidden", 2)]
    alone = [
        tracers[0].calculate_hidden_flow(PROMPT, SUBJECT, kind, window=w, samples=3, batch_size=5) for kind, w in jobs
    ]  # type: ignore[arg-type]
    together: dict[int, Any] = {}
    start = threading.Barrier(len(jobs))

    def work(number: int) -> None:
        kind, window = jobs[number]
        start.wait()
        together[number] = tracers[number % 2].calculate_hidden_flow(
            PROMPT,
            SUBJECT,
            kind,  # type: ignore[arg-type]
            window=window,
            samples=3,
            batch_size=5,
        )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, flow in enumerate(alone):
        assert torch.equal(together[number].sample_scores, flow.sample_scores)
        assert (together[number].low_score, together[number].high_score) == (flow.low_score, flow.high_score)


# Small contributions --------------------------------------------------------------------------------------------------


def with_small_attention(name: str, blocks: tuple[int, ...], share: float) -> Any:
    """A model in which attention makes up about this share of what some blocks add to the residual stream."""
    model = build_tiny_model(name)
    family = FAMILIES[name]
    for layer in blocks:
        attention = model.get_submodule(family.site_names("attention")[layer])
        projection = attention.o_proj if hasattr(attention, "o_proj") else attention.c_proj
        with torch.no_grad():
            for parameter in projection.parameters():
                parameter.mul_(share)
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_an_attention_that_adds_little_is_not_taken_for_rounding(name: str, dtype: torch.dtype) -> None:
    """Without attention, which would not be held, the MLP would seem to mix tokens and be taken for attention."""
    model = with_small_attention(name, (0, 1, 2), 0.02)
    check_names_are_the_pinned_ones(trace_model(model.to(dtype)), name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_attention_that_adds_nothing_in_the_first_block_is_found_in_another(name: str, dtype: torch.dtype) -> None:
    model = with_small_attention(name, (0,), 1e-6)
    check_names_are_the_pinned_ones(trace_model(model.to(dtype)), name)
