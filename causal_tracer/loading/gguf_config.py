"""The transformers config of a GGUF file.

The most common architectures have a table here, which is read in an instant. All others take transformers' reader,
which walks the whole vocabulary. What either leaves at a class's default although the file states it is amended.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from causal_tracer.errors import ModelLoadError
from causal_tracer.loading.gguf_header import GgufHeader

ROPE_FACTORS = "rope_freqs.weight"
"""A tensor of constants, by which llama.cpp divides the rotary frequencies of Llama 3.1 and later."""


@dataclass(frozen=True)
class Family:
    """An architecture whose weights go from file to file in pieces.

    Attributes:
        config_class: Its config in transformers.
        model_class: Its model there.
        tokenizer_class: What transformers reads its tokenizer with.
        layer_names: From a tensor's name in a GGUF block to its name in transformers' layer.
        norm_offset: What llama.cpp adds to norm weights.
        permuted: Weights whose rows llama.cpp reorders, head by head, for its rotary embedding.
        head_dim: Whether the config states the width of a head.
    """

    config_class: str
    model_class: str
    tokenizer_class: str
    layer_names: Mapping[str, str]
    norm_offset: float = 0.0
    permuted: tuple[str, ...] = ()
    head_dim: bool = True


TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_ONE_NORM_BEFORE_EACH = {"ffn_norm.weight": "post_attention_layernorm.weight"}
_HEAD_NORMS = {
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
}
FAMILIES: Mapping[str, Family] = {
    "gemma3": Family(
        config_class="Gemma3TextConfig",
        model_class="Gemma3ForCausalLM",
        tokenizer_class="GemmaTokenizer",
        layer_names=_LAYER_NAMES
        | _HEAD_NORMS
        | {
            "post_attention_norm.weight": "post_attention_layernorm.weight",
            "ffn_norm.weight": "pre_feedforward_layernorm.weight",
            "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
        },
        norm_offset=1.0,
    ),
    "llama": Family(
        config_class="LlamaConfig",
        model_class="LlamaForCausalLM",
        tokenizer_class="PreTrainedTokenizerFast",
        layer_names=_LAYER_NAMES | _ONE_NORM_BEFORE_EACH,
        permuted=("attn_q.weight", "attn_k.weight"),
    ),
    "qwen2": Family(
        config_class="Qwen2Config",
        model_class="Qwen2ForCausalLM",
        tokenizer_class="Qwen2Tokenizer",
        layer_names=_LAYER_NAMES
        | _ONE_NORM_BEFORE_EACH
        | {f"attn_{part}.bias": f"self_attn.{part}_proj.bias" for part in "qkv"},
        head_dim=False,
    ),
    "qwen3": Family(
        config_class="Qwen3Config",
        model_class="Qwen3ForCausalLM",
        tokenizer_class="Qwen2Tokenizer",
        layer_names=_LAYER_NAMES | _ONE_NORM_BEFORE_EACH | _HEAD_NORMS,
    ),
}

_CONFIG_KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
# What transformers' reader leaves at the class's default, by the attributes that a config may have for it.
_AMENDED = {
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "context_length": ("n_positions",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "final_logit_softcapping": ("final_logit_softcapping",),
}
# Checked against the models that such files were made of; others are left to transformers.
_AMENDABLE = (
    *FAMILIES,
    *("falcon", "gemma2", "gpt2", "nemotron", "phi3", "qwen2moe", "qwen3moe", "stablelm", "starcoder2"),
)
# Where llama.cpp, too, knows a model by its number of layers: attention scales by hidden size per head.
_SCALED_BY_HEADS = {"gemma2": 46, "gemma3": 62}
_OLD_NAMES = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss", "minimax_m2": "minimax-m2"}
_NO_DECODERS = ("general", "tokenizer", "t5", "umt5")


def supported_architectures() -> tuple[str, ...]:
    """Return the architectures that this version of transformers reads from GGUF files, as those name them."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    names = {_OLD_NAMES.get(name, name) for name in GGUF_SUPPORTED_ARCHITECTURES if name not in _NO_DECODERS}
    try:
        from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    except ImportError:  # before transformers 5.24
        return tuple(sorted(names | FAMILIES.keys()))
    return tuple(sorted(names | FAMILIES.keys() | set(GGUF_CONFIG_ARCHS)))


def gguf_config(header: GgufHeader, alone: Path) -> Any:
    """Return the transformers config of a GGUF file.

    Args:
        header: The file's header.
        alone: The file, in a folder that holds nothing else.

    Raises:
        ModelLoadError: The architecture or the rotary scaling is unknown, or a metadata key is missing.
    """
    from transformers import AutoConfig

    name = header.architecture
    if name not in (known := supported_architectures()):
        raise ModelLoadError(
            f"{header.path} holds architecture {name!r}, which this version of transformers does not read from GGUF "
            f"files. It reads {', '.join(known)}. Give the model's original checkpoint."
        )
    if name in FAMILIES:
        config = _family_config(header, FAMILIES[name])
    else:
        config = AutoConfig.from_pretrained(alone.parent, gguf_file=alone.name, local_files_only=True)
    if name in _AMENDABLE:
        _amend(config, header)
    return config


def _family_config(header: GgufHeader, family: Family) -> Any:
    import transformers

    name = header.architecture
    heads, hidden = header[f"{name}.attention.head_count"], header[f"{name}.embedding_length"]
    own: dict[str, Any] = {ours: header[f"{name}.{key}"] for ours, key in _CONFIG_KEYS.items()}
    own["vocab_size"] = header.of_architecture("vocab_size", header["tokenizer.ggml.tokens"])
    own["num_key_value_heads"] = header.of_architecture("attention.head_count_kv", heads)
    if family.head_dim:
        width = header.of_architecture("rope.dimension_count", hidden // heads)
        own["head_dim"] = header.of_architecture("attention.key_length", width)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": header.of_architecture("rope.freq_base", 10000.0)}
    if name == "gemma3":
        # The format has no key for it: all Gemma 3 models use this base in their sliding layers.
        own["rope_parameters"] = {"full_attention": rope, "sliding_attention": rope | {"rope_theta": 10000.0}}
    else:
        own["rope_parameters"] = rope
    for token, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        if (number := header.values.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            own[f"{token}_token_id"] = number
    return getattr(transformers, family.config_class)(
        architectures=[family.model_class],
        dtype="float32",
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in header.tensors),
        **own,
    )


def _amend(config: Any, header: GgufHeader) -> None:
    """Set what the file states, and the config has at its class's default."""
    name = header.architecture
    for key, attributes in _AMENDED.items():
        value = header.of_architecture(key)
        for attribute in attributes:
            if value is not None and attribute in config.to_dict():
                setattr(config, attribute, value)
    if header.of_architecture("block_count") == _SCALED_BY_HEADS.get(name):
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    if name == "gpt2" and (width := header.of_architecture("feed_forward_length")) is not None:
        config.n_inner = width
    rope = getattr(config, "rope_parameters", None)
    if rope is None:
        return
    rope = rope.get("full_attention", rope)
    rope["rope_theta"] = header.of_architecture("rope.freq_base", rope["rope_theta"])
    if "partial_rotary_factor" in rope and (turned := header.of_architecture("rope.dimension_count")) is not None:
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        rope["partial_rotary_factor"] = turned / head
    rope |= _scaling(header, config, rope["rope_theta"])


def _scaling(header: GgufHeader, config: Any, theta: float) -> dict[str, Any]:
    """Return how the rotary frequencies are scaled for longer contexts, in transformers' terms."""
    kind = header.of_architecture("rope.scaling.type", "none")
    factor = header.of_architecture("rope.scaling.factor", 1.0)
    names = {tensor.name for tensor in header.tensors}
    if ROPE_FACTORS in names:
        return _llama3_scaling(header, config.head_dim, theta)
    if kind == "none" and not any(name.startswith("rope_factors") for name in names):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and (original := header.of_architecture("rope.scaling.original_context_length")) is not None:
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise ModelLoadError(
        f"{header.path} scales its rotary frequencies in a way that cannot be read from GGUF files ({kind!r}), and "
        "without it all its numbers would be wrong. Give the model's original checkpoint."
    )


def _llama3_scaling(header: GgufHeader, head_dim: int, theta: float) -> dict[str, Any]:
    """Return the scaling of Llama 3.1 and later if it gives the file's factors."""
    low, high, original = 1.0, 4.0, 8192
    tensor = next(tensor for tensor in header.tensors if tensor.name == ROPE_FACTORS)
    stated: npt.NDArray[np.float32] = np.memmap(header.path, "<f4", "r", offset=tensor.offset, shape=tensor.shape)
    factor = float(stated.max())
    periods = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / periods - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if tensor.ggml_type != 0 or stated.shape != expected.shape or not np.allclose(stated, expected, rtol=1e-3):
        raise ModelLoadError(
            f"{header.path} has rotary factors ({ROPE_FACTORS}) that are not those of Llama 3. Give the model's "
            "original checkpoint."
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
