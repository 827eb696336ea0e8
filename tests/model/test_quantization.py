"""Quantized weights of many libraries: named in results, traced with the full sweep's numbers, or refused.

The libraries are optional: if one is not installed, its test is skipped. Libraries that need a GPU or do not work with
this version of torch are replaced by stand-ins: modules with the same names and attributes for their weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from causal_tracer import CausalTracer, HiddenFlow
from causal_tracer.errors import ModelStructureError
from causal_tracer.model.quantization import quantizes_activations, weight_bits
from causal_tracer.model.wrappers import model_notes
from tests.support.tiny_models import PROMPT, SUBJECT, build_tiny_model, tiny_tokenizer


def traced(model: Any, kind: Any = "mlp", **options: Any) -> HiddenFlow:
    tracer = CausalTracer(model, tiny_tokenizer(), noise=1.5)
    return tracer.calculate_hidden_flow(PROMPT, SUBJECT, kind, window=2, samples=2, **options)


def traced_as_the_full_sweep_does(model: Any, dtype: str) -> None:
    for kind in ("attention", "mlp"):
        found, full = traced(model, kind), traced(model, kind, engine="full")
        assert found.settings.engine == "resumed"
        assert found.settings.dtype == dtype
        assert float((full.scores - full.low_score).abs().max()) > 0.02
        torch.testing.assert_close(found.sample_scores, full.sample_scores, atol=1e-5, rtol=0)


# Libraries ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "bits"), [("qint8", 8), ("qint4", 4), ("qint2", 2), ("qfloat8", 8)])
def test_weights_of_quanto(weights: str, bits: int) -> None:
    quanto = pytest.importorskip("optimum.quanto", reason="quanto is not installed")
    model = build_tiny_model("llama")
    quanto.quantize(model, weights=getattr(quanto, weights))
    quanto.freeze(model)
    traced_as_the_full_sweep_does(model, f"float32 with {bits}-bit weights")


@pytest.mark.parametrize(
    ("config", "bits"), [("Int8WeightOnlyConfig", 8), ("Float8WeightOnlyConfig", 8), ("IntxWeightOnlyConfig", 8)]
)
def test_weights_of_torchao(config: str, bits: int) -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = build_tiny_model("llama")
    torchao.quantize_(model, getattr(torchao, config)())
    traced_as_the_full_sweep_does(model, f"float32 with {bits}-bit weights")


def test_weights_of_torchao_with_four_bits() -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = build_tiny_model("llama")
    torchao.quantize_(model, torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4))
    assert weight_bits(model) == (4,)


def test_activations_that_torchao_rounds_are_noted() -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = build_tiny_model("llama")
    torchao.quantize_(model, torchao.Int8DynamicActivationInt8WeightConfig())
    assert any("round activations" in note for note in traced(model).notes)


# torch's dynamic quantization -----------------------------------------------------------------------------------------


def dynamically_quantized(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def test_torchs_dynamic_quantization_is_refused() -> None:
    model = dynamically_quantized(build_tiny_model("llama"))
    ids = torch.tensor([[7, 8, 9, 40]])
    changed = torch.tensor([[7, 8, 9, 256]])
    with torch.no_grad():
        assert not torch.allclose(model(ids).logits[:, :3], model(changed).logits[:, :3]), (
            "a token changes earlier ones"
        )
    with pytest.raises(ModelStructureError, match=r"self_attn.q_proj.*one scale.*quantize_dynamic"):
        CausalTracer(model, tiny_tokenizer())


# Stand-ins ------------------------------------------------------------------------------------------------------------


class FewBitLinear(nn.Module):
    """A linear layer that stores its weights as a library does: `keep` stores them, and `scale` dequantises them."""

    def __init__(self, given: nn.Linear, keep: Callable[[nn.Module, Tensor], None]) -> None:
        super().__init__()
        self.scale = float(given.weight.data.abs().max()) / 7
        self.rounded = [(given.weight.data / self.scale).round()]
        keep(self, self.rounded[0])

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.rounded[0] * self.scale)


def as_gptq(module: Any, rounded: Tensor) -> None:
    module.bits = 4
    module.register_buffer("qweight", torch.zeros(rounded.shape[1] // 8, rounded.shape[0], dtype=torch.int32))


def as_awq(module: Any, rounded: Tensor) -> None:
    module.w_bit = 4
    module.register_buffer("qweight", torch.zeros(rounded.shape[1], rounded.shape[0] // 8, dtype=torch.int32))


def as_hqq(module: Any, rounded: Tensor) -> None:
    module.meta = {"nbits": 3, "group_size": 64}
    module.W_q = nn.Parameter(torch.zeros(rounded.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)


def as_compressed_tensors(module: Any, rounded: Tensor) -> None:
    module.quantization_scheme = SimpleNamespace(weights=SimpleNamespace(num_bits=4))
    module.register_buffer("weight_packed", torch.zeros(rounded.shape[0], rounded.shape[1] // 8, dtype=torch.int32))


def as_fp8(module: Any, rounded: Tensor) -> None:
    module.weight = nn.Parameter(rounded.to(torch.float8_e4m3fn), requires_grad=False)


def as_int8(module: Any, rounded: Tensor) -> None:
    module.register_buffer("weight", rounded.to(torch.int8))


def with_few_bits(name: str, keep: Callable[[nn.Module, Tensor], None]) -> Any:
    model = build_tiny_model("llama")
    kind = type(name, (FewBitLinear,), {})
    for block in model.model.layers:
        for parent, names in (
            (block.mlp, ("gate_proj", "up_proj", "down_proj")),
            (block.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")),
        ):
            for part in names:
                setattr(parent, part, kind(getattr(parent, part), keep))
    return model


@pytest.mark.parametrize(
    ("name", "keep", "bits"),
    [
        ("TorchQuantLinear", as_gptq, 4),
        ("WQLinear_GEMM", as_awq, 4),
        ("HQQLinear", as_hqq, 3),
        ("CompressedLinear", as_compressed_tensors, 4),
        ("FP8Linear", as_fp8, 8),
        ("EetqLinear", as_int8, 8),
    ],
)
def test_stand_ins_of_other_libraries_are_traced_and_their_bits_named(name: str, keep: Any, bits: int) -> None:
    model = with_few_bits(name, keep)
    traced_as_the_full_sweep_does(model, f"float32 with {bits}-bit weights")
    assert not quantizes_activations(model)
    assert model_notes(model) == ()


def test_weights_of_two_sizes_are_both_named() -> None:
    model = with_few_bits("TorchQuantLinear", as_gptq)
    model.model.layers[0].mlp.up_proj.bits = 8
    assert CausalTracer(model, tiny_tokenizer(), noise=1.5).context.traced.dtype_name == (
        "float32 with 4-bit and 8-bit weights"
    )


@pytest.mark.parametrize(
    ("config", "bits"),
    [
        ({"quant_method": "aqlm", "bits": 2}, (2,)),
        ({"quant_method": "bitnet"}, (2,)),
        ({"quant_method": "mxfp4"}, (4,)),
        ({"quant_method": "fbgemm_fp8"}, (8,)),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, (4,)),
        ({"quant_method": "quanto", "weights": "int4"}, (4,)),
        (SimpleNamespace(quant_method="torchao", quant_type="int8_weight_only"), (8,)),
        (SimpleNamespace(quant_method="torchao", quant_type=type("Int4WeightOnlyConfig", (), {})()), (4,)),
        ({"quant_method": "of_the_future"}, ()),
        (None, ()),
        (5, ()),
    ],
)
def test_where_modules_say_nothing_the_models_config_names_the_bits(config: Any, bits: tuple[int, ...]) -> None:
    model = with_few_bits("SomeLinear", lambda _module, _rounded: None)
    model.config.quantization_config = config
    assert weight_bits(model) == bits


def test_weights_that_no_tensor_of_the_model_shows_are_still_found_as_attention_and_mlp() -> None:
    found = CausalTracer(with_few_bits("SomeLinear", lambda _module, _rounded: None), tiny_tokenizer(), noise=1.5)
    for kind in ("attention", "mlp"):
        assert len(found.get_layer_names_of_kind(kind)) == 3  # type: ignore[arg-type]


def test_the_config_is_ignored_after_weights_were_dequantised() -> None:
    model = build_tiny_model("llama")
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert weight_bits(model) == ()
