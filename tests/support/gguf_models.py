"""Tiny GGUF files of several architectures, written from transformers models as llama.cpp's converter writes them.

What llama.cpp changes on the way (row order, transposes, offsets) is written here by hand from its converter, not taken
from transformers' reader, so that the reader's result can be compared with the model that the file was made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Change = Callable[[str, npt.NDArray[np.float32], Any], npt.NDArray[np.float32]]
"""From a tensor's GGUF name, its values in the transformers model, and the model's config, to the file's values."""


def byte_level_vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Tokens, their types, and merges of a small byte-level vocabulary."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = ["Ġ t", "h e", "Ġt he", "i n", "Ġ in", "o f", "Ġ of"]
    tokens = control + list(bytes_to_unicode().values()) + [merge.replace(" ", "") for merge in merges]
    return tokens, [3] * 3 + [1] * (len(tokens) - 3), merges


def sentencepiece_vocabulary() -> tuple[list[str], list[int]]:
    """Tokens and their types of a small sentencepiece vocabulary, as long as the byte-level one."""
    control = ["<pad>", "<bos>", "<eos>", "<unk>"]
    tokens = control + [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "t", "h", "e", "th", "▁the"]
    return tokens, [3] * 4 + [6] * 256 + [1] * 6


VOCABULARY = len(byte_level_vocabulary()[0])
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _as_is(name: str, values: npt.NDArray[np.float32], config: Any) -> npt.NDArray[np.float32]:
    return values


def _rotary_rows(name: str, values: npt.NDArray[np.float32], config: Any) -> npt.NDArray[np.float32]:
    """`LlamaModel.permute`: the two halves of each head's rows interleaved."""
    if not name.endswith(("attn_q.weight", "attn_k.weight")):
        return values
    heads = config.num_attention_heads if "attn_q" in name else config.num_key_value_heads
    return values.reshape(heads, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)


def _norms_plus_one(name: str, values: npt.NDArray[np.float32], config: Any) -> npt.NDArray[np.float32]:
    return values + 1 if name.endswith("norm.weight") else values


def _transposed(name: str, values: npt.NDArray[np.float32], config: Any) -> npt.NDArray[np.float32]:
    """GPT-2's Conv1D matrices the other way round."""
    parts = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    return values.T if name.endswith(parts) else values


def _fused_heads(name: str, values: npt.NDArray[np.float32], config: Any) -> npt.NDArray[np.float32]:
    """BLOOM's queries, keys and values head by head, as three blocks."""
    if "attn_qkv" not in name:
        return values
    heads = config.n_head
    rows = values.reshape(heads, 3, config.hidden_size // heads, *values.shape[1:])
    return rows.swapaxes(0, 1).reshape(values.shape)


def _mamba(name: str, values: npt.NDArray[np.float32], config: Any) -> npt.NDArray[np.float32]:
    if name.endswith("ssm_a"):
        return -np.exp(values)
    return values.squeeze(1) if name.endswith("ssm_conv1d.weight") else values


def _shared_expert(name: str, values: npt.NDArray[np.float32], config: Any) -> npt.NDArray[np.float32]:
    return values.squeeze(0) if name.endswith("ffn_gate_inp_shexp.weight") else values


@dataclass(frozen=True)
class Source:
    """A transformers model and how its GGUF file is written.

    Attributes:
        architecture: Its name in GGUF files.
        config_class: Of transformers.
        settings: Of the config, beside the common ones.
        change: What llama.cpp does to the weights.
        values: More metadata, by key without the architecture.
        tokenizer: The kind of its tokenizer: "gpt2" for byte-level, "llama" for sentencepiece.
    """

    architecture: str
    config_class: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    change: Change = _as_is
    values: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str = "gpt2"


_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_EXPERT_VALUES = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
_STATE = {"state_size": 8, "conv_kernel": 4, "intermediate_size": 128, "time_step_rank": 4}
_STATE_VALUES = {"ssm.conv_kernel": 4, "ssm.state_size": 8, "ssm.time_step_rank": 4, "ssm.inner_size": 128}
_GPT2 = {"n_layer": 3, "n_head": 4}
_GEMMA = {"head_dim": 32, "sliding_window": 8, "num_hidden_layers": 6}
_SOURCES = (
    Source("llama", "LlamaConfig", {"head_dim": 32}, _rotary_rows, {"rope.dimension_count": 32}),
    Source("qwen2", "Qwen2Config"),
    Source("qwen3", "Qwen3Config", {"head_dim": 32}),
    Source(
        "qwen2moe",
        "Qwen2MoeConfig",
        {**_EXPERTS, "shared_expert_intermediate_size": 48},
        _shared_expert,
        {**_EXPERT_VALUES, "expert_shared_feed_forward_length": 48},
    ),
    Source("qwen3moe", "Qwen3MoeConfig", {**_EXPERTS, "head_dim": 32, "norm_topk_prob": True}, values=_EXPERT_VALUES),
    Source(
        "gemma2",
        "Gemma2Config",
        {**_GEMMA, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0},
        _norms_plus_one,
        {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0},
        "llama",
    ),
    Source("gemma3", "Gemma3TextConfig", _GEMMA, _norms_plus_one, tokenizer="llama"),
    Source("phi3", "Phi3Config", {"sliding_window": 8}),
    Source("falcon", "FalconConfig"),
    Source("starcoder2", "Starcoder2Config"),
    Source("stablelm", "StableLmConfig", {"use_qkv_bias": True}),
    Source("nemotron", "NemotronConfig", {}, _norms_plus_one),
    Source("bloom", "BloomConfig", _GPT2, _fused_heads),
    Source(
        "gpt2", "GPT2Config", {"n_layer": 3, "n_head": 4, "n_embd": 64, "n_positions": 128, "n_inner": 96}, _transposed
    ),
    Source("mamba", "MambaConfig", _STATE, _mamba, _STATE_VALUES),
)
SOURCES: Mapping[str, Source] = {source.architecture: source for source in _SOURCES}
_EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")


def source_model(source: Source) -> Any:
    """A random model whose answers depend on all its weights."""
    import transformers
    from transformers import AutoModelForCausalLM

    settings = {**_COMMON, **source.settings}
    config = getattr(transformers, source.config_class)(**settings)
    # No value is a class's default, so that one that is not read from the file shows.
    for name in _EPSILONS:
        if hasattr(config, name):
            setattr(config, name, 3e-4)
    if (rope := getattr(config, "rope_parameters", None)) is not None:
        rope = rope.get("full_attention", rope)
        rope["rope_theta"] = 5000.0
        if "partial_rotary_factor" in rope:
            rope["partial_rotary_factor"] = 0.75
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.add_(0.1 * noise if parameter.dim() == 1 else 0.2 * noise)
    return model


def write_source(
    path: Path, source: Source, model: Any, *, extra: Mapping[str, Any] | None = None, tokenizer: bool = True
) -> None:
    """Write a model's GGUF file, float32, with more tensors or without a tokenizer if asked to."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, source.architecture)
    writer.add_name("tiny")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    if heads := getattr(config, "num_attention_heads", None):
        writer.add_head_count(heads)
        writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
        head = getattr(config, "head_dim", None) or config.hidden_size // heads
        writer.add_key_length(head)
        writer.add_value_length(head)
        if (turned := (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor")) is not None:
            writer.add_rope_dimension_count(int(turned * head))
    for name in _EPSILONS:
        if (epsilon := getattr(config, name, None)) is not None:
            of_squares = "rms" in name or source.architecture == "mamba"
            (writer.add_layer_norm_rms_eps if of_squares else writer.add_layer_norm_eps)(epsilon)
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    if theta := rope.get("rope_theta"):
        writer.add_rope_freq_base(theta)
    if window := getattr(config, "sliding_window", None):
        writer.add_sliding_window(window)
    for key, value in source.values.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(f"{source.architecture}.{key}", value)
    if tokenizer:
        _add_tokenizer(writer, source.tokenizer)
    for name, values in _tensors(source, model):
        writer.add_tensor(name, np.ascontiguousarray(values))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, kind: str) -> None:
    writer.add_tokenizer_model(kind)
    if kind == "gpt2":
        tokens, types, merges = byte_level_vocabulary()
        writer.add_token_merges(merges)
    else:
        tokens, types = sentencepiece_vocabulary()
        writer.add_token_scores([-float(index) for index in range(len(tokens))])
        writer.add_unk_token_id(3)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)


def _tensors(source: Source, model: Any) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """The file's tensors by llama.cpp's names."""
    import gguf

    config = model.config
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == source.architecture)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name.endswith("mlp.experts.gate_up_proj"):
            block = f"blk.{name.split('.')[2]}"
            gate, up = np.split(values, 2, axis=1)
            yield from ((f"{block}.ffn_gate_exps.weight", gate), (f"{block}.ffn_up_exps.weight", up))
            continue
        spelling = name.removeprefix("transformer.") if source.architecture == "bloom" else name
        found = names.get_name(spelling, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ValueError(f"llama.cpp has no name for {name}")
        suffix = ".weight" if name.endswith("experts.down_proj") else ""
        yield found + suffix, source.change(found, values, config)
