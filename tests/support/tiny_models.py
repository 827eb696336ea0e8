"""Tiny random models and tokenizers, made in memory: no files, no network.

A freshly initialised model gives the same answer for any change of its subject, so even a sweep that computes nothing
passes on it. These models are scaled until noise on the subject moves the answer (`tests/sweep/test_sweep.py` asserts
that): the head is untied and wide, matrices keep the norm of their inputs, sliding windows and chunks are shorter than
the text, there are more experts than are chosen, and the subject is not at the start.

    model = tiny_model("gpt2")               # shared, cached: leave it as it is
    model = build_tiny_model("gpt2")         # a new one, the same weights
    tokenizer = tiny_tokenizer(bos=True)     # byte-level BPE: emoji and CJK are several tokens with equal offsets
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from causal_tracer import CausalTracer

PROMPT = "Look: the Space Needle is in the city of"
SUBJECT = "Space Needle"
OTHER_PROMPT = "In truth, Steve Jobs was the founder of"
OTHER_SUBJECT = "Steve Jobs"

VOCAB_SIZE = 391
D_MODEL = 32
N_LAYERS = 3
CONTEXT = 64

BOS_ID = 256
_WORDS = (
    "Look the The Space Needle is in city of In truth Steve Jobs was founder Paris France capital located a on and to "
    "Seattle Apple tower river Rome Italy speaks language"
).split()


@dataclass(frozen=True)
class Family:
    """One architecture: how to make a tiny one, and the modules' names, pinned by hand.

    Attributes:
        make: The untrained causal LM.
        embedding: The token embedding's name.
        block: Template of a block's name.
        attention: For each layer, the attention module's name inside the block.
        mlp: For each layer, the MLP's.
        gain: Size of the matrices, in units of 1/sqrt(inputs).
        head: Standard deviation of the head's weights.
        embedding_sd: Standard deviation of the embedding's weights.
        seed: Seed of the weights.
    """

    make: Callable[[], Any]
    embedding: str
    block: str
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    gain: float = 1.0
    head: float = 0.5
    embedding_sd: float = 0.5
    seed: int = 0

    @property
    def n_layers(self) -> int:
        return len(self.attention)

    def site_names(self, kind: str) -> tuple[str, ...]:
        """The pinned module names of a kind, layer by layer."""
        blocks = [self.block.format(num=layer) for layer in range(self.n_layers)]
        if kind == "hidden":
            return tuple(blocks)
        inside = self.attention if kind == "attention" else self.mlp
        return tuple(f"{block}.{name}" for block, name in zip(blocks, inside, strict=True))


def _make(config_class: str, model_class: str, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        config = getattr(transformers, config_class)(**settings)
        return getattr(transformers, model_class)(config)

    return make


_LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": D_MODEL,
    "intermediate_size": 64,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_SPECIAL: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def _like_llama(**changes: Any) -> dict[str, Any]:
    return {**_LLAMA_LIKE, **changes}


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        make=_make(
            "GPT2Config",
            "GPT2LMHeadModel",
            vocab_size=VOCAB_SIZE,
            n_embd=D_MODEL,
            n_layer=N_LAYERS,
            n_head=4,
            n_positions=CONTEXT,
            tie_word_embeddings=False,
            **_SPECIAL,
        ),
        embedding="transformer.wte",
        block="transformer.h.{num}",
        attention=("attn",) * N_LAYERS,
        mlp=("mlp",) * N_LAYERS,
        seed=0,
    ),
    "llama": Family(
        make=_make("LlamaConfig", "LlamaForCausalLM", **_like_llama()),
        embedding="model.embed_tokens",
        block="model.layers.{num}",
        attention=("self_attn",) * N_LAYERS,
        mlp=("mlp",) * N_LAYERS,
        seed=1,
    ),
    "gpt_neox": Family(
        make=_make(
            "GPTNeoXConfig",
            "GPTNeoXForCausalLM",
            **{key: value for key, value in _like_llama().items() if key != "num_key_value_heads"},
            rotary_pct=0.5,
        ),
        embedding="gpt_neox.embed_in",
        block="gpt_neox.layers.{num}",
        attention=("attention",) * N_LAYERS,
        mlp=("mlp",) * N_LAYERS,
        seed=0,
    ),
    "gemma3_text": Family(
        make=_make(
            "Gemma3TextConfig",
            "Gemma3ForCausalLM",
            **_like_llama(
                num_hidden_layers=4,
                head_dim=8,
                query_pre_attn_scalar=8,
                sliding_window=4,
                layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            ),
        ),
        embedding="model.embed_tokens",
        block="model.layers.{num}",
        attention=("self_attn",) * 4,
        mlp=("mlp",) * 4,
        embedding_sd=0.2,
        seed=6,
    ),
    "opt": Family(
        make=_make(
            "OPTConfig",
            "OPTForCausalLM",
            vocab_size=VOCAB_SIZE,
            hidden_size=D_MODEL,
            word_embed_proj_dim=D_MODEL,
            ffn_dim=64,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            **_SPECIAL,
        ),
        embedding="model.decoder.embed_tokens",
        block="model.decoder.layers.{num}",
        attention=("self_attn",) * N_LAYERS,
        mlp=("fc2",) * N_LAYERS,
        seed=3,
    ),
    "bloom": Family(
        make=_make(
            "BloomConfig",
            "BloomForCausalLM",
            vocab_size=VOCAB_SIZE,
            hidden_size=D_MODEL,
            n_layer=N_LAYERS,
            n_head=4,
            tie_word_embeddings=False,
            **_SPECIAL,
        ),
        embedding="transformer.word_embeddings",
        block="transformer.h.{num}",
        attention=("self_attention.dense",) * N_LAYERS,
        mlp=("mlp.dense_4h_to_h",) * N_LAYERS,
        seed=4,
    ),
    "mixtral": Family(
        make=_make(
            "MixtralConfig",
            "MixtralForCausalLM",
            **_like_llama(num_local_experts=5, num_experts_per_tok=2, sliding_window=None),
        ),
        embedding="model.embed_tokens",
        block="model.layers.{num}",
        attention=("self_attn",) * N_LAYERS,
        mlp=("mlp",) * N_LAYERS,
        seed=0,
    ),
    "phi": Family(
        make=_make("PhiConfig", "PhiForCausalLM", **_like_llama(num_key_value_heads=4, partial_rotary_factor=0.5)),
        embedding="model.embed_tokens",
        block="model.layers.{num}",
        attention=("self_attn",) * N_LAYERS,
        mlp=("mlp",) * N_LAYERS,
        seed=6,
    ),
    "mistral": Family(
        make=_make("MistralConfig", "MistralForCausalLM", **_like_llama(sliding_window=4)),
        embedding="model.embed_tokens",
        block="model.layers.{num}",
        attention=("self_attn",) * N_LAYERS,
        mlp=("mlp",) * N_LAYERS,
        seed=6,
    ),
    "gptj": Family(
        make=_make(
            "GPTJConfig",
            "GPTJForCausalLM",
            vocab_size=VOCAB_SIZE,
            n_embd=D_MODEL,
            n_layer=N_LAYERS,
            n_head=4,
            rotary_dim=4,
            n_positions=CONTEXT,
            tie_word_embeddings=False,
            **_SPECIAL,
        ),
        embedding="transformer.wte",
        block="transformer.h.{num}",
        attention=("attn",) * N_LAYERS,
        mlp=("mlp",) * N_LAYERS,
        seed=9,
    ),
    "falcon": Family(
        make=_make(
            "FalconConfig",
            "FalconForCausalLM",
            vocab_size=VOCAB_SIZE,
            hidden_size=D_MODEL,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            **_SPECIAL,
        ),
        embedding="transformer.word_embeddings",
        block="transformer.h.{num}",
        attention=("self_attention",) * N_LAYERS,
        mlp=("mlp",) * N_LAYERS,
        seed=7,
    ),
    "qwen3_next": Family(
        make=_make(
            "Qwen3NextConfig",
            "Qwen3NextForCausalLM",
            **_like_llama(
                num_hidden_layers=4,
                head_dim=8,
                linear_num_key_heads=2,
                linear_num_value_heads=4,
                linear_key_head_dim=8,
                linear_value_head_dim=8,
                num_experts=5,
                num_experts_per_tok=2,
                moe_intermediate_size=32,
                shared_expert_intermediate_size=32,
                layer_types=["linear_attention", "linear_attention", "linear_attention", "full_attention"],
            ),
        ),
        embedding="model.embed_tokens",
        block="model.layers.{num}",
        attention=("linear_attn", "linear_attn", "linear_attn", "self_attn"),
        mlp=("mlp",) * 4,
        seed=7,
    ),
    "lfm2": Family(
        make=_make(
            "Lfm2Config",
            "Lfm2ForCausalLM",
            **_like_llama(
                num_hidden_layers=4,
                block_auto_adjust_ff_dim=False,
                layer_types=["conv", "full_attention", "conv", "conv"],
            ),
        ),
        embedding="model.embed_tokens",
        block="model.layers.{num}",
        attention=("conv", "self_attn", "conv", "conv"),
        mlp=("feed_forward",) * 4,
        seed=9,
    ),
    "gpt_oss": Family(
        make=_make(
            "GptOssConfig",
            "GptOssForCausalLM",
            **_like_llama(
                num_hidden_layers=4,
                head_dim=8,
                num_local_experts=5,
                num_experts_per_tok=2,
                sliding_window=4,
                layer_types=["sliding_attention", "full_attention"] * 2,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            ),
        ),
        embedding="model.embed_tokens",
        block="model.layers.{num}",
        attention=("self_attn",) * 4,
        mlp=("mlp",) * 4,
        seed=9,
    ),
    "mpt": Family(
        make=_make(
            "MptConfig",
            "MptForCausalLM",
            vocab_size=VOCAB_SIZE,
            d_model=D_MODEL,
            n_layers=N_LAYERS,
            n_heads=4,
            expansion_ratio=2,
            max_seq_len=CONTEXT,
            tie_word_embeddings=False,
            **_SPECIAL,
        ),
        embedding="transformer.wte",
        block="transformer.blocks.{num}",
        attention=("attn",) * N_LAYERS,
        mlp=("ffn.down_proj",) * N_LAYERS,
        seed=13,
    ),
}

ARCHITECTURES: tuple[str, ...] = tuple(FAMILIES)
# A plain one, one with sliding windows, one that takes no broadcast mask.
_QUICK = ("gpt2", "gemma3_text", "bloom")


def of_architecture(name: str) -> Any:
    """The marks of a case of this architecture: all but a few are slow."""
    return () if name in _QUICK else pytest.mark.slow


EVERY_ARCHITECTURE = [pytest.param(name, marks=of_architecture(name), id=name) for name in ARCHITECTURES]


def make_sensitive(model: Any, *, gain: float, head: float, embedding_sd: float, seed: int) -> Any:
    """Give a model weights with which noise on the subject moves the answer; in place, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
            if parameter.dim() < 2:
                continue
            if outer is not None and parameter is outer.weight:
                sd = head
            elif parameter is inner.weight:
                sd = embedding_sd
            else:
                sd = gain * parameter.shape[-1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * sd)
        for _, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
            # Biases that differ from token to token's average, so that a dropped bias is seen.
            if parameter.dim() == 1 and not bool(parameter.any()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def build_tiny_model(name: str) -> Any:
    """A new tiny model of a family; always the same weights."""
    family = FAMILIES[name]
    state = torch.random.get_rng_state()
    torch.manual_seed(family.seed)
    try:
        model = family.make()
    finally:
        torch.random.set_rng_state(state)
    return make_sensitive(model, gain=family.gain, head=family.head, embedding_sd=family.embedding_sd, seed=family.seed)


@functools.cache
def tiny_model(name: str) -> Any:
    """The tiny model of a family that tests share: leave it as it is."""
    return build_tiny_model(name)


@functools.cache
def tiny_tracer(name: str, *, bos: bool = True, noise: float | None = None) -> CausalTracer:
    """A tracer of the shared tiny model with automatic noise; its clean runs are shared as well."""
    return CausalTracer(tiny_model(name), tiny_tokenizer(bos=bos), noise=noise)


def byte_level_tokenizer(*, bos: bool = True) -> Tokenizer:
    """A byte-level BPE tokenizer in which the words of `_WORDS` are one token, with a space before them or not."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: number for number, symbol in enumerate(alphabet)}
    vocab["<bos>"] = BOS_ID
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        # Whole words by merging from the left, then the space before them.
        pairs = [(word[: end - 1], word[end - 1]) for end in range(2, len(word) + 1)]
        for left, right in [*pairs, ("Ġ", word)]:
            vocab.setdefault(left + right, len(vocab))
            if (left, right) not in merges:
                merges.append((left, right))
    if len(vocab) > VOCAB_SIZE:
        raise ValueError(f"The vocabulary has {len(vocab)} entries, more than the models' {VOCAB_SIZE}.")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<bos>", special=True)])
    offsets = processors.ByteLevel(trim_offsets=True)
    if bos:
        template = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS_ID)])
        tokenizer.post_processor = processors.Sequence([offsets, template])
    else:
        tokenizer.post_processor = offsets
    return tokenizer


@functools.cache
def tiny_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """A fast tokenizer without a pad token, for any tiny model."""
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(bos=bos),
        bos_token="<bos>" if bos else None,
        clean_up_tokenization_spaces=False,
    )
