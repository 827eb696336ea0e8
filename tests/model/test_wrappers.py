"""Models wrapped by other libraries, and quantized weights: traced with the right numbers, or refused with advice.

The libraries are optional: if one is not installed, its tests are skipped. Stand-ins of its classes are always tested.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from causal_tracer import CausalTracer, HiddenFlow, LayerConfig
from causal_tracer.errors import ModelStructureError
from causal_tracer.model.quantization import weight_bits
from causal_tracer.model.wrappers import adapter_state, model_notes, unwrapped
from tests.support.tiny_models import (
    PROMPT,
    SUBJECT,
    VOCAB_SIZE,
    build_tiny_model,
    make_sensitive,
    tiny_tokenizer,
    tiny_tracer,
)
from tests.support.unchanged import assert_unchanged, fingerprint


def same_map(found: HiddenFlow, expected: HiddenFlow, tolerance: float = 1e-5) -> None:
    assert found.settings.engine == expected.settings.engine == "resumed"
    assert found.high_score == pytest.approx(expected.high_score, abs=tolerance)
    torch.testing.assert_close(found.sample_scores, expected.sample_scores, atol=tolerance, rtol=0)


def traced(model: Any, **options: Any) -> HiddenFlow:
    return CausalTracer(model, tiny_tokenizer(), noise=1.5).calculate_hidden_flow(PROMPT, SUBJECT, samples=2, **options)


# Stand-ins ------------------------------------------------------------------------------------------------------------


def of_package(package: str, *bases: type) -> type:
    """A base class whose `__module__` says that it comes from the package."""
    return type("Base", bases, {"__module__": f"{package}.some.module"})


def stand_in_for_peft(inner: Any, shift: float = 0.0, **config: Any) -> Any:
    """A stand-in with the attributes of PEFT's model. Its forward adds `shift` to the inner model's logits."""

    class PeftModelForCausalLM(of_package("peft", nn.Module)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.base_model = nn.ModuleDict({"model": inner})
            settings = {"peft_type": "LORA", "is_prompt_learning": False, **config}
            self.peft_config = {"default": SimpleNamespace(**settings)}

        def get_base_model(self) -> Any:
            return inner

        def forward(self, ids: Any, **options: Any) -> Any:
            output = inner(ids, **options)
            output.logits = output.logits + shift * torch.arange(VOCAB_SIZE)
            return output

    return PeftModelForCausalLM()


def stand_in_for_nnsight(inner: Any, **attributes: Any) -> Any:
    """A stand-in with the attributes of nnsight's model, which is not a torch module."""
    model = type("LanguageModel", (of_package("nnsight", object),), {})()
    vars(model).update(_module=inner, **{"_edits": [], **attributes})
    return model


def test_nested_wrappers_are_removed() -> None:
    model = build_tiny_model("llama")
    assert unwrapped(model) is model
    assert unwrapped(stand_in_for_peft(model)) is model
    assert unwrapped(stand_in_for_nnsight(model)) is model
    assert unwrapped(stand_in_for_nnsight(stand_in_for_peft(model))) is model
    same_map(traced(stand_in_for_nnsight(stand_in_for_peft(model))), traced(build_tiny_model("llama")))


def test_a_wrapper_that_computes_something_else_than_its_model_is_refused() -> None:
    model = build_tiny_model("llama")
    before = fingerprint(model)
    with pytest.raises(ModelStructureError, match=r"different logits, .*merge_and_unload"):
        CausalTracer(stand_in_for_peft(model, shift=0.01), tiny_tokenizer())
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    "config",
    [
        {"is_prompt_learning": True, "peft_type": "PREFIX_TUNING"},
        {"peft_type": "POLY"},
        {"peft_type": SimpleNamespace(value="XLORA")},
        {"alora_invocation_tokens": [5, 6]},
    ],
)
def test_an_adapter_outside_the_models_modules_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ModelStructureError, match=r"'default' .*outside the model's own modules"):
        CausalTracer(stand_in_for_peft(build_tiny_model("llama"), **config), tiny_tokenizer())


def test_an_nnsight_model_without_weights_or_with_edits_is_refused() -> None:
    with pytest.raises(ModelStructureError, match="dispatch=True"):
        unwrapped(stand_in_for_nnsight(build_tiny_model("llama"), dispatched=False))
    with pytest.raises(ModelStructureError, match="clear_edits"):
        unwrapped(stand_in_for_nnsight(build_tiny_model("llama"), dispatched=True, _edits=[object()]))


def test_modules_of_transformer_lens_anywhere_in_a_model_are_refused() -> None:
    block_bridge = of_package("transformer_lens", nn.Identity)
    model = build_tiny_model("llama")
    model.model.layers[1].mlp = nn.Sequential(block_bridge(), model.model.layers[1].mlp)
    with pytest.raises(ModelStructureError, match=r"TransformerLens.*AutoModelForCausalLM\.from_pretrained"):
        CausalTracer(model, tiny_tokenizer())


def test_names_as_peft_spells_them_are_understood_in_a_layer_config() -> None:
    config = LayerConfig(
        hidden_layers_matcher="base_model.model.model.layers.{num}",
        attention_layers_matcher="base_model.model.model.layers.{num}.self_attn",
        mlp_layers_matcher="base_model.model.model.layers.{num}.mlp",
        embedding_layer="base_model.model.model.embed_tokens",
    )
    tracer = CausalTracer(stand_in_for_peft(build_tiny_model("llama")), tiny_tokenizer(), config)
    assert tracer.get_layer_names_of_kind("mlp") == [f"model.layers.{layer}.mlp" for layer in range(3)]


def test_a_plain_model_has_no_notes_and_all_its_bits() -> None:
    model = build_tiny_model("llama")
    assert model_notes(model) == ()
    assert adapter_state(model) == ()
    assert weight_bits(model) == ()
    assert tiny_tracer("llama").context.traced.dtype_name == "float32"


def few_bit_stand_in(name: str) -> Any:
    """A model in which one matrix is stored as bytes, as bitsandbytes stores it."""

    class Linear(nn.Linear):
        def __init__(self, given: nn.Linear) -> None:
            super().__init__(given.in_features, given.out_features, bias=False)
            self.scale = float(given.weight.data.abs().max()) / 127
            rounded = (given.weight.data / self.scale).round().to(torch.int8)
            self.weight = nn.Parameter(rounded, requires_grad=False)

        def forward(self, inputs: Any) -> Any:
            return nn.functional.linear(inputs, self.weight.to(inputs.dtype) * self.scale)

    model = build_tiny_model("llama")
    for block in model.model.layers:
        block.mlp.up_proj = type(name, (Linear,), {})(block.mlp.up_proj)
    return model


@pytest.mark.parametrize(("name", "bits"), [("Linear8bitLt", 8), ("Linear4bit", 4)])
def test_quantized_weights_are_traced_and_named_in_the_result(name: str, bits: int) -> None:
    model = few_bit_stand_in(name)
    flow = traced(model)
    full = traced(model, engine="full")
    assert flow.settings.engine == "resumed"
    assert flow.settings.dtype == f"float32 with {bits}-bit weights"
    assert any("to 8 bits" in note for note in flow.notes) == (bits == 8)
    torch.testing.assert_close(flow.sample_scores, full.sample_scores, atol=1e-5, rtol=0)


# PEFT -----------------------------------------------------------------------------------------------------------------


def with_lora(**options: Any) -> Any:
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    torch.manual_seed(0)
    config = peft.LoraConfig(
        **{"r": 4, "task_type": "CAUSAL_LM", "init_lora_weights": False, "target_modules": ["q_proj", "down_proj"]}
        | options
    )
    return peft.get_peft_model(build_tiny_model("llama"), config).eval()


@pytest.mark.parametrize("options", [{}, {"task_type": None}, {"target_modules": ["q_proj", "embed_tokens"]}])
def test_lora_gives_the_map_of_the_merged_model(options: dict[str, Any]) -> None:
    found = traced(with_lora(**options))
    same_map(found, traced(with_lora(**options).merge_and_unload()))
    plain = traced(build_tiny_model("llama"))
    assert abs(found.high_score - plain.high_score) > 0.01, "the adapter changes nothing"
    assert found.notes == ("Traced with PEFT adapters in place: default.",)


def test_lora_is_traced_from_each_of_its_wrappers() -> None:
    model = with_lora()
    expected = traced(model)
    for shell in (model.base_model, model.get_base_model()):
        same_map(traced(shell), expected)


def test_switching_an_adapter_between_two_traces_is_seen() -> None:
    model = with_lora()
    tracer = CausalTracer(model, tiny_tokenizer(), noise=1.5)
    first = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2, answer_id_override=7)
    with model.disable_adapter():
        off = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2, answer_id_override=7)
    again = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2, answer_id_override=7)
    same_map(off, traced(build_tiny_model("llama"), answer_id_override=7))
    same_map(again, first)
    assert first.high_score != off.high_score
    assert (first.notes, off.notes) == (("Traced with PEFT adapters in place: default.",), ())


def test_what_adapters_do_is_part_of_their_state() -> None:
    model = with_lora()
    inner = model.get_base_model()
    states = [adapter_state(inner)]
    with model.disable_adapter():
        states.append(adapter_state(inner))
    model.get_base_model().model.layers[0].self_attn.q_proj.set_scale("default", 3.0)
    states.append(adapter_state(inner))
    model.merge_adapter()
    states.append(adapter_state(inner))
    assert len(set(states)) == 4


def test_peft_models_are_left_as_they_were() -> None:
    model = with_lora()
    model.train()
    before = fingerprint(model)
    traced(model)
    assert_unchanged(model, before)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"])
def test_virtual_tokens_are_refused(kind: str) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(build_tiny_model("llama"), config)
    with pytest.raises(ModelStructureError, match="virtual tokens"):
        CausalTracer(model, tiny_tokenizer())


# nnsight, TransformerLens ---------------------------------------------------------------------------------------------


def test_nnsight_models_are_unwrapped() -> None:
    nnsight = pytest.importorskip("nnsight", reason="nnsight is not installed")
    expected = traced(build_tiny_model("llama"))
    same_map(traced(nnsight.NNsight(build_tiny_model("llama"))), expected)
    tokenizer = tiny_tokenizer().__class__(tokenizer_object=tiny_tokenizer().backend_tokenizer, pad_token="<bos>")
    language_model = nnsight.LanguageModel(build_tiny_model("llama"), tokenizer=tokenizer)
    same_map(traced(language_model), expected)


def test_bridges_of_transformer_lens_are_refused_and_left_as_they_were(tmp_path: Path) -> None:
    bridges = pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens is not installed")
    tiny_tokenizer().save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, pad_token="<bos>", eos_token="<bos>")
    bridge = bridges.TransformerBridge.boot_transformers(
        "tiny/llama", hf_model=build_tiny_model("llama"), tokenizer=tokenizer
    )
    ids = torch.tensor([[256, 7, 8, 9, 40]])
    before = bridge(ids)
    for given in (bridge, bridge.original_model):
        with pytest.raises(ModelStructureError, match="TransformerLens"):
            CausalTracer(given, tiny_tokenizer())
    assert torch.equal(bridge(ids), before)


# bitsandbytes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
def test_bitsandbytes_weights_give_the_map_of_the_full_sweep(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,  # its 4-bit products on the CPU take no narrower ones
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        tie_word_embeddings=False,
    )
    torch.manual_seed(1)
    model = make_sensitive(transformers.LlamaForCausalLM(config), gain=1.0, head=0.25, embedding_sd=0.5, seed=1)
    model.save_pretrained(tmp_path)
    quantized = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path,
        quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4),
        device_map="cpu",
    )
    flow = traced(quantized)
    full = traced(quantized, engine="full")
    effect = float((full.scores - full.low_score).abs().max())
    assert effect > 0.02
    assert flow.settings.engine == "resumed"
    assert flow.settings.dtype == f"float32 with {bits}-bit weights"
    # Products with 8-bit weights depend on the rows that share a batch.
    torch.testing.assert_close(flow.sample_scores, full.sample_scores, atol=1e-5 if bits == 4 else 0.1 * effect, rtol=0)
