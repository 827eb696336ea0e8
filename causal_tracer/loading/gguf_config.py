"""Building the transformers config of a GGUF file.

The config of the most common architectures is read here, in milliseconds. Others are read by transformers, which parses
the whole vocabulary. Both leave some values at the config class's default although the file states them; these are
corrected afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from causal_tracer.errors import ModelLoadError
from causal_tracer.loading.gguf_header import GgufHeader

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor of constants by which llama.cpp divides the rotary frequencies of Llama 3.1 and later."""


class Family(NamedTuple):
    """An architecture whose config is read here and whose weights are converted piece by piece.

    Attributes:
        config_class: The name of its config class in transformers.
        tokenizer_class: The name of its tokenizer class in transformers.
        head_dim: Whether its config has the field `head_dim`.
    """

    config_class: str
    tokenizer_class: str
    head_dim: bool = True


FAMILIES: Mapping[str, Family] = {
    "gemma3": Family("Gemma3TextConfig", "GemmaTokenizer"),
    "llama": Family("LlamaConfig", "PreTrainedTokenizerFast"),
    "qwen2": Family("Qwen2Config", "Qwen2Tokenizer", head_dim=False),
    "qwen3": Family("Qwen3Config", "Qwen2Tokenizer"),
}

_CONFIG_KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
# GGUF keys that transformers does not read, with the names of the config attributes that may hold their values.
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
# The architectures whose corrected configs were checked against the original models.
_AMENDABLE = (
    *FAMILIES,
    *("falcon", "gemma2", "gpt2", "nemotron", "phi3", "qwen2moe", "qwen3moe", "stablelm", "starcoder2"),
)
# Numbers of layers by which llama.cpp, too, recognises models whose attention scales by hidden size per head.
_SCALED_BY_HEADS = {"gemma2": 46, "gemma3": 62}
_OLD_NAMES = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss", "minimax_m2": "minimax-m2"}
_NO_DECODERS = ("general", "tokenizer", "t5", "umt5")


def supported_architectures() -> tuple[str, ...]:
    """Return the architectures that this version of transformers reads from GGUF files, by their names in GGUF."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    names = {_OLD_NAMES.get(name, name) for name in GGUF_SUPPORTED_ARCHITECTURES if name not in _NO_DECODERS}
    try:
        from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    except ImportError:  # before transformers 5.24
        return tuple(sorted(names | FAMILIES.keys()))
    return tuple(sorted(names | FAMILIES.keys() | set(GGUF_CONFIG_ARCHS)))


def gguf_config(header: GgufHeader, link: Path) -> Any:
    """Return the transformers config of a GGUF file.

    Args:
        header: The file's header.
        link: A link to the file (or a copy), in a folder without other files.

    Raises:
        ModelLoadError: The architecture or the rotary scaling is unknown, or a metadata key is missing.
    """
    from transformers import AutoConfig

    name = header.architecture
    if name not in (known := supported_architectures()):
        raise ModelLoadError(
            f"{header.path} has architecture {name!r}, which this version of transformers does not read from GGUF "
            f"files. It reads {', '.join(known)}. Give the model's original checkpoint."
        )
    if name in FAMILIES:
        config = _family_config(header, FAMILIES[name])
    else:
        config = AutoConfig.from_pretrained(link.parent, gguf_file=link.name, local_files_only=True)
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
        # GGUF has no key for the rotary base of sliding-window layers. All Gemma 3 models use 10000.
        own["rope_parameters"] = {"full_attention": rope, "sliding_attention": rope | {"rope_theta": 10000.0}}
    else:
        own["rope_parameters"] = rope
    for token, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        if (number := header.values.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            own[f"{token}_token_id"] = number
    return getattr(transformers, family.config_class)(
        dtype="float32",
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in header.tensors),
        **own,
    )


def _amend(config: Any, header: GgufHeader) -> None:
    """Correct the values of a config that the file states and the reader left at the config class's default."""
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
    """Return the scaling of rotary frequencies for longer contexts, as transformers' `rope_parameters`."""
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
        f"{header.path} scales its rotary frequencies by a method ({kind!r}) that cannot be read from GGUF files. "
        "Without the scaling the model's outputs would be wrong. Give the model's original checkpoint."
    )


def _llama3_scaling(header: GgufHeader, head_dim: int, theta: float) -> dict[str, Any]:
    """Return the rotary scaling of Llama 3.1 and later, checked against the factors in the file."""
    low, high, original = 1.0, 4.0, 8192
    tensor = next(tensor for tensor in header.tensors if tensor.name == ROPE_FACTORS)
    stated: npt.NDArray[np.float32] = np.memmap(header.path, "<f4", "r", offset=tensor.offset, shape=tensor.shape)
    factor = float(stated.max())
    periods = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / periods - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if tensor.ggml_type != 0 or stated.shape != expected.shape or not np.allclose(stated, expected, rtol=1e-3):
        raise ModelLoadError(
            f"{header.path} has rotary factors ({ROPE_FACTORS}) that differ from those of Llama 3. Give the model's "
            "original checkpoint."
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
