"""Tiny random models of every text decoder in transformers, with weights that make them sensitive to noise.

A config starts from its class's defaults. `SIZES` sets the sizes that have the same name in most families to small
values, and `OVERRIDES` has the other settings of single types. Sliding windows and chunks are shorter than the traced
prompts, there are more experts than each token uses, and output heads are untied. `build` then gives the model weights
with which noise on the subject changes the answer's probability. With its usual initialisation it would not change.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

VOCAB_SIZE = 96
WINDOW = 4
LAYERS = 4

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "num_hidden_layers": LAYERS,
    "n_layer": LAYERS,
    "n_layers": LAYERS,
    "num_layers": LAYERS,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "max_seq_len": 64,
    "sliding_window": WINDOW,
    "sliding_window_size": WINDOW,
    "attention_chunk_size": WINDOW,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "num_experts": 6,
    "num_local_experts": 6,
    "n_routed_experts": 6,
    "moe_num_experts": 6,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "n_group": 2,
    "num_expert_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_head_dim": 8,
    "index_n_heads": 8,
    "index_topk": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_num_heads": 4,
    "linear_head_dim": 8,
    "query_pre_attn_scalar": 8,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_global_layers": 1,
    "encoder_layers": 1,
    "depth": 1,
    "num_heads": 4,
    "num_attention_heads": 4,
    "encoder_attention_heads": 4,
    "attention_heads": 4,
    "encoder_ffn_dim": 48,
    "embed_dim": 32,
    "d_model": 32,
    "out_hidden_size": 32,
    "projection_dim": 32,
    "image_size": 28,
    "patch_size": 14,
    "num_channels": 3,
    "vocab_size": VOCAB_SIZE,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
}
_MLA = {"num_key_value_heads": 4}
_MIXED_WINDOWS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_INKLING = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "d_rel": 4,
    "rel_extent": 6,
    "unpadded_vocab_size": VOCAB_SIZE,
    "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"],
}
_SPECIAL_AT_START = {"bos_token_id": 1, "eos_token_id": 2}

OVERRIDES: dict[str, dict[str, Any]] = {
    "axk1": _MLA,
    "axk2": {**_MLA, "gated_norm_rank": 4},
    "bailing_hybrid": {**_MLA, "layer_group_size": 2},
    "bamba": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_chunk_size": 4,
        "attn_layer_indices": [1, 3],
    },
    "blt": {
        "patch_in_forward": False,
        "vocab_size": 260,
        "encoder_hash_byte_group_size": [3],
        "encoder_hash_byte_group_vocab": 64,
        "patcher_config": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 48,
        },
        "encoder_config": {
            "hidden_size": 32,
            "hidden_size_global": 64,
            "num_attention_heads": 2,
            "intermediate_size": 48,
        },
        "decoder_config": {
            "hidden_size": 32,
            "hidden_size_global": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "intermediate_size": 48,
        },
        "global_config": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48},
    },
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "cpmant": {"dim_ff": 48, "dim_head": 8, "prompt_length": 4},
    "ctrl": {"dff": 48},
    "cwm": _SPECIAL_AT_START,
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": _MLA,
    "deepseek_v3": _MLA,
    "deepseek_v32": _MLA,
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "o_groups": 2,
        "o_lora_rank": 8,
        "hc_mult": 2,
        "layer_types": [
            "sliding_attention",
            "heavily_compressed_attention",
            "compressed_sparse_attention",
            "sliding_attention",
        ],
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    },
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1, "n_recurrent_loops": 2},
    "dots3_note_text": {
        **_MLA,
        "shared_experts_intermediate_size": 24,
        "head_dim": 16,
        **{
            f"swa_{name}": value
            for name, value in {
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "q_lora_rank": 16,
                "kv_lora_rank": 16,
                "head_dim": 16,
                "qk_nope_head_dim": 8,
                "v_head_dim": 8,
            }.items()
        },
    },
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_chunk_size": 4,
    },
    "gemma3n_text": {
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "laurel_rank": 8,
        "altup_num_inputs": 3,
    },
    "gemma4_text": {
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "global_head_dim": 16,
        "num_global_key_value_heads": 2,
    },
    "gemma4_unified_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "global_head_dim": 16,
        "num_global_key_value_heads": 2,
    },
    "glm4_moe_lite": _MLA,
    "glm_moe_dsa": _MLA,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "shared_intermediate_size": 24,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_chunk_size": 4,
    },
    "granitemoe_swa": {"shared_intermediate_size": 24},
    "granitemoeshared": {"shared_intermediate_size": 24},
    "hrm_text": {"num_layers_per_stack": 2, "H_cycles": 1, "L_cycles": 2, "L_bp_cycles": [1]},
    "inkling2_loop_text": {
        **_INKLING,
        "n_layers_per_attn_res_block": 2,
        "num_hidden_layers": 6,
        "layer_types": ["hybrid_sliding", "hybrid"] * 3,
        "loop_layer_index_start": 2,
        "loop_layer_index_end": 4,
        "loop_num_passes": 2,
        "loop_gate_rank": 4,
    },
    "inkling2_text": {**_INKLING, "n_layers_per_attn_res_block": 2},
    "inkling_text": {**_INKLING, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "jetmoe": {"kv_channels": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {
        **_MLA,
        "num_layers": 3,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 24,
        "moe_topk": 2,
        "zero_expert_num": 2,
    },
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 2, "chunk_size": 4},
    "minicpm3": _MLA,
    "minimax_m3_vl_text": {
        "dense_intermediate_size": 48,
        "shared_intermediate_size": 24,
        "rotary_dim": 4,
        "index_n_heads": 2,
        "index_block_size": 2,
        "index_topk_blocks": 2,
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
    "modernbert-decoder": {
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
        "local_attention": 2 * WINDOW,
    },
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 4,
        "moe_shared_expert_intermediate_size": 24,
        "sliding_window": None,
    },
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "hc_count": 2,
        "hc_lowrank": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "local"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "attention_head_size": 8,
        "feed_forward_size": 48,
        "local_attn_chunk_length": 64,
    },
    "sarvam_mla": _MLA,
    "youtu": _MLA,
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "mamba_d_state": 8,
        "n_mamba_heads": 4,
        "chunk_size": 4,
    },
    "qwen2": {**_MIXED_WINDOWS, "use_sliding_window": True},
    "qwen2_moe": {**_MIXED_WINDOWS, "use_sliding_window": True},
    "qwen3": {**_MIXED_WINDOWS, "use_sliding_window": True},
    "dots1": _MIXED_WINDOWS,
    "laguna": _MIXED_WINDOWS,
    "mellum": _MIXED_WINDOWS,
    "gemma3_text": _MIXED_WINDOWS,
    "ministral": _MIXED_WINDOWS,
    "kolibri1": _MIXED_WINDOWS,
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
    "kimi_linear": {**_MLA, "layer_types": ["linear_attention", "full_attention"] * 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "attention_window_size": WINDOW, "lru_width": 32},
    "doge": {"keep_window_size": WINDOW},
    "emu3_text_model": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "mllama_text_model": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cross_attention_layers": []},
    "qwen2_5_vl_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}

EXCLUDED: dict[str, str] = {
    "bert-generation": "an encoder that can be run as a decoder",
    "gemma4_assistant": "drafts for another model, whose keys and values it needs",
    "gemma4_unified_assistant": "drafts for another model, whose keys and values it needs",
    "trocr": "the decoder of an encoder-decoder",
    "xlnet": "predicts in permuted orders",
}
"""Types of the causal-LM mapping that are not text decoders, but that no rule of `decoder_types` excludes."""

WRAPPERS: tuple[str, ...] = tuple(
    "aria aya_vision cohere2_vision deepseek_vl emu3 fuyu gemma3 gemma4 got_ocr2 idefics2 idefics3 internvl lfm2_vl "
    "llama4 llava llava_next llava_onevision mistral3 mllama paligemma qwen2_5_vl qwen3_5 qwen3_5_moe qwen3_vl "
    "qwen3_vl_moe smolvlm video_llava vipllava".split()
)
"""Multimodal types whose text model is traced from token ids alone."""

AROUND_THE_STREAM: dict[str, str] = {
    "gemma3n_text": "per-layer inputs made from the embeddings, keys and values of earlier blocks",
    "gemma4_text": "per-layer inputs made from the embeddings, keys and values of earlier blocks",
    "hy_v4": "the tokens that an earlier block chose to attend to",
    "inkling2_text": "the states at the ends of groups of blocks",
    "zamba": "the embeddings, given to every shared attention",
    "zamba2": "the embeddings, given to every shared attention",
    "zaya": "the router's states",
    "gemma4": "per-layer inputs made from the embeddings, keys and values of earlier blocks",
}
"""The state that these types pass between blocks besides the residual stream. Restored hidden states alone do not give
the clean run."""

_HYBRID_MAMBA = {"linear_attention": "mamba", "full_attention": "self_attn", "hybrid": "mamba_decoder.mamba"}
_HYBRID_LINEAR = {
    "linear_attention": "linear_attn",
    "full_attention": "self_attn",
    "sliding_attention": "self_attn",
    "indexed_attention": "self_attn",
}
_HYBRID_CONV = {"conv": "conv", "full_attention": "self_attn"}
_NEMOTRON_ATTENTION = {"linear_attention": "mixer", "full_attention": "mixer", "moe": "", "mlp": ""}
_NEMOTRON_MLP = {"linear_attention": "", "full_attention": "", "moe": "mixer", "mlp": "mixer"}

SITES: dict[str, tuple[str | dict[str, str], str | dict[str, str]]] = {
    "bamba": (_HYBRID_MAMBA, "feed_forward"),
    "biogpt": ("self_attn", "fc2"),
    "bloom": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "codegen": ("attn", "mlp"),
    "ctrl": ("multi_head_attention", "ffn"),
    "dbrx": ("norm_attn_norm.attn", "ffn"),
    "falcon": ("self_attention", "mlp"),
    "falcon_h1": ("mamba+self_attn", "feed_forward"),
    "falcon_mamba": ("mixer", ""),
    "gemma4": ("self_attn", "mlp+per_layer_projection"),
    "gemma4_text": ("self_attn", "mlp+per_layer_projection"),
    "gpt-sw3": ("attn", "mlp"),
    "gpt2": ("attn", "mlp"),
    "gpt_bigcode": ("attn", "mlp"),
    "gpt_neo": ("attn", "mlp"),
    "gpt_neox": ("attention", "mlp"),
    "gpt_neox_japanese": ("attention", "mlp"),
    "gptj": ("attn", "mlp"),
    "granitemoe": ("self_attn", "block_sparse_moe"),
    "granitemoe_swa": ("self_attn", "block_sparse_moe+shared_mlp"),
    "granitemoehybrid": (_HYBRID_MAMBA, "block_sparse_moe+shared_mlp"),
    "granitemoeshared": ("self_attn", "block_sparse_moe+shared_mlp"),
    "inkling2_text": ("post_attention_convolution", "post_mlp_convolution"),
    "inkling_text": ("attn_sconv", "mlp_sconv"),
    "jamba": (_HYBRID_MAMBA, "feed_forward"),
    "jetmoe": ("self_attention", "mlp"),
    "lara_mini": (_HYBRID_LINEAR, "mlp"),
    "lfm2": (_HYBRID_CONV, "feed_forward"),
    "lfm2_moe": (_HYBRID_CONV, "feed_forward"),
    "lfm2_vl": (_HYBRID_CONV, "feed_forward"),
    "lfm3": (_HYBRID_CONV, "feed_forward"),
    "llama4": ("self_attn", "feed_forward"),
    "llama4_text": ("self_attn", "feed_forward"),
    "longcat_flash": ("self_attn.0+self_attn.1", "mlp+mlps.0+mlps.1"),
    "mamba": ("mixer", ""),
    "mamba2": ("mixer", ""),
    "modernbert-decoder": ("attn", "mlp"),
    "mpt": ("attn", "ffn.down_proj"),
    "nemotron_h": (_NEMOTRON_ATTENTION, _NEMOTRON_MLP),
    "olmo_hybrid": (_HYBRID_LINEAR, "mlp"),
    "openai-gpt": ("attn", "mlp"),
    "opt": ("self_attn", "fc2"),
    "qwen3_5": (_HYBRID_LINEAR, "mlp"),
    "qwen3_5_moe": (_HYBRID_LINEAR, "mlp"),
    "qwen3_5_moe_text": (_HYBRID_LINEAR, "mlp"),
    "qwen3_5_text": (_HYBRID_LINEAR, "mlp"),
    "qwen3_next": (_HYBRID_LINEAR, "mlp"),
    "qwen4_exp_text": (_HYBRID_LINEAR, "mlp"),
    "recurrent_gemma": ("temporal_block", "mlp_block"),
    "rwkv": ("attention", "feed_forward"),
    "xglm": ("self_attn", "fc2"),
    "xlstm": ("mlstm_layer", "ffn"),
    "zamba": (_HYBRID_MAMBA, ""),
    "zamba2": (_HYBRID_MAMBA, ""),
}
"""The names of attention and MLP inside a block in the models' source code.

A dictionary has the name for each layer type. "" means that the block has none. Types that are not here have
("self_attn", "mlp").
"""


def decoder_types() -> list[str]:
    """Return the text decoders in transformers' causal-LM mapping.

    Left out are encoder-decoders (in a sequence-to-sequence mapping), encoders (in the masked-LM mapping, except
    Reformer, which is a decoder), multimodal types (with sub-configs for text, images or sound), and `EXCLUDED`.
    """
    encoder_decoders = {*MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES}
    encoders = {*MODEL_FOR_MASKED_LM_MAPPING_NAMES} - {"reformer"}
    left_out = {*encoder_decoders, *encoders, *EXCLUDED}
    types = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in left_out]
    return [name for name in types if not _is_multimodal(name)]


def _is_multimodal(model_type: str) -> bool:
    config_class = CONFIG_MAPPING[model_type]
    others = {"text_config", "vision_config", "audio_config", "text_encoder", "audio_encoder", "audio_encoder_config"}
    return bool(others & set(getattr(config_class, "sub_configs", None) or ()))


def expected_sites(model_type: str, config: Any) -> tuple[list[str], list[str]]:
    """Return the names of attention and MLP inside each block, as in the source code."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or []
    count = len(kinds) or text.num_hidden_layers
    if model_type == "longcat_flash":
        count //= 2  # its config counts attentions, two in each block

    def names(spec: str | dict[str, str]) -> list[str]:
        return [spec] * count if isinstance(spec, str) else [spec[kind] for kind in kinds]

    attention, mlp = SITES.get(model_type, ("self_attn", "mlp"))
    return names(attention), names(mlp)


def config_of(model_type: str) -> Any:
    """Return the tiny config of a type."""
    config_class = CONFIG_MAPPING[model_type]
    # Only declared names: a deprecated or mapped name would set the same field twice.
    declared = {name for base in config_class.__mro__ for name in getattr(base, "__annotations__", {})}
    settings = {name: value for name, value in SIZES.items() if name in declared}
    settings.update(OVERRIDES.get(model_type, {}))
    return config_class(**{name: value for name, value in settings.items() if value != "default"})


HEADS: dict[str, float] = {"cohere": 6.0, "cohere2": 6.0, "cohere2_moe": 6.0, "inkling_text": 4.0}
"""The standard deviation of the output head's weights, for types that scale the logits down after it."""

READS_EARLIER_BLOCKS = frozenset({"inkling2_text"})
"""Types whose final norm and head read outputs of earlier blocks, too, not only of the last one."""


def make_sensitive(model: Any, seed: int, *, head: float = 0.4, embedding_sd: float = 0.5) -> Any:
    """Set a model's weights in place so that noise on the subject changes the answer, and return it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    parameters = sorted(model.named_parameters(), key=lambda item: item[0])
    with torch.no_grad():
        for _, parameter in parameters:
            if parameter.dim() < 2:
                if not bool(parameter.any()):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
                continue
            if outer is not None and parameter is getattr(outer, "weight", None):
                sd = head
            elif parameter is getattr(inner, "weight", None):
                sd = embedding_sd
            else:
                sd = parameter.shape[-1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * sd)
    return model.eval()


def build(model_type: str, seed: int = 0) -> Any:
    """Build a tiny sensitive model of a type. The same seed gives the same weights."""
    config = wrapper_config(model_type) if model_type in WRAPPERS else config_of(model_type)
    wrapper_class = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    torch.manual_seed(seed)
    model_class = (
        wrapper_class if model_type in WRAPPERS and wrapper_class else MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    )
    return make_sensitive(model_class(config), seed, head=HEADS.get(model_type, 0.4))


def wrapper_config(model_type: str) -> Any:
    """Return the tiny config of a multimodal type: its text part as in `config_of`, the other parts small, too."""
    config_class = CONFIG_MAPPING[model_type]
    default = config_class()
    text = default.get_text_config()
    parts: dict[str, Any] = {}
    for name in config_class.sub_configs:
        part = getattr(default, name)
        if part is None:
            continue
        if part.model_type == text.model_type and text.model_type in CONFIG_MAPPING:
            # Some types replace image tokens by the pad token, which must be in the tiny vocabulary.
            parts[name] = {**config_of(text.model_type).to_dict(), "pad_token_id": 0}
            continue
        sizes = SIZES if part.model_type == text.model_type else _TOWER
        renamed = type(part).attribute_map
        small = {key: value for key, value in sizes.items() if hasattr(part, key) and key not in renamed}
        parts[name] = {**small, "model_type": part.model_type, **OVERRIDES.get(part.model_type, {})}
    return config_class(**parts)
