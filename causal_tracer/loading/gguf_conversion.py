"""Turning a GGUF file into a folder that transformers loads: config, fp32 safetensors and tokenizer files.

transformers reads GGUF files itself, but walks the whole vocabulary in Python for config, tokenizer and weights each:
40 s and more for Gemma's 262,144 tokens. Here the header is walked once, strings that nobody needs are stepped over,
and the weights go from file to file in pieces, so that memory stays far below the model's size.

Known are `gemma3` and `llama`; a tensor that the tables below lack is an error, not a guess.
"""

import errno
import json
import math
import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from causal_tracer.errors import ModelLoadError

# Raised whenever the files written change, so that copies of older versions are rebuilt.
CONVERTER_VERSION = 1

# Called with words for what is being done and the fraction done, from 0 to 1.
Progress = Callable[[str, float], None]

_Floats = npt.NDArray[np.float32]
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_PIECE = 1 << 22  # elements dequantised at once: 16 MiB of float32
_WEIGHTS_SHARE = 0.65  # of the time that a conversion takes; the rest goes to the tokenizer


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies in the file and how it is stored."""

    name: str
    shape: tuple[int, ...]  # in torch's order: rows first
    ggml_type: int
    offset: int  # in bytes from the start of the file


@dataclass(frozen=True)
class GgufHeader:
    """Everything in a GGUF file that is not weights."""

    path: Path
    values: dict[str, Any]  # scalars and strings as they are, arrays as their length
    tensors: tuple[GgufTensor, ...]

    def __getitem__(self, key: str) -> Any:
        """The metadata value, or a `ModelLoadError` that names the missing key."""
        if key not in self.values:
            raise ModelLoadError(f"{self.path} lacks the metadata key {key!r}, which its conversion needs.")
        return self.values[key]


@dataclass(frozen=True)
class _Family:
    config_class: str
    model_class: str
    tokenizer_class: str
    layer_names: dict[str, str]
    norm_offset: float = 0.0  # llama.cpp stores norm weights plus this
    permuted: tuple[str, ...] = ()  # rows that llama.cpp reorders, head by head, for its rotary embedding


_CONFIG_KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_TOKENIZER_FLAGS = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token")
_TOP_NAMES = {
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
_FAMILIES = {
    "gemma3": _Family(
        config_class="Gemma3TextConfig",
        model_class="Gemma3ForCausalLM",
        tokenizer_class="GemmaTokenizer",
        layer_names=_LAYER_NAMES
        | {
            "attn_q_norm.weight": "self_attn.q_norm.weight",
            "attn_k_norm.weight": "self_attn.k_norm.weight",
            "post_attention_norm.weight": "post_attention_layernorm.weight",
            "ffn_norm.weight": "pre_feedforward_layernorm.weight",
            "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
        },
        norm_offset=1.0,
    ),
    "llama": _Family(
        config_class="LlamaConfig",
        model_class="LlamaForCausalLM",
        tokenizer_class="PreTrainedTokenizerFast",
        layer_names=_LAYER_NAMES | {"ffn_norm.weight": "post_attention_layernorm.weight"},
        permuted=("attn_q.weight", "attn_k.weight"),
    ),
}


def read_gguf_header(path: Path) -> GgufHeader:
    """Read a GGUF file's metadata and tensor table in one pass, without weights and vocabulary strings.

    Raises:
        ModelLoadError: The file is not a GGUF file of version 2 or 3, or ends early.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _walk_header(path, view)
    except (struct.error, ValueError, KeyError) as error:
        raise ModelLoadError(f"{path} is not a whole GGUF file of version 2 or 3: {error!r}") from error


def convert_gguf(path: Path, folder: Path, progress: Progress) -> None:
    """Write `config.json`, `model.safetensors` (fp32) and tokenizer files for a GGUF file into `folder`.

    The tokenizer is the one that transformers makes of the file, chat template included. A model without an
    output matrix of its own ties it to the embedding. Peak memory is a few pieces and the tokenizer.

    Raises:
        ModelLoadError: The file is broken, or holds an architecture or a tensor that is not known here.
        OSError: The files could not be written, for instance because the disk is full.
    """
    header = read_gguf_header(path)
    name = header["general.architecture"]
    if name not in _FAMILIES:
        raise ModelLoadError(f"{path} holds architecture {name!r}; can convert only {', '.join(_FAMILIES)}.")
    family = _FAMILIES[name]
    config = _config(header, name, family)
    config.save_pretrained(folder)
    try:
        _write_weights(header, folder, config, family, progress)
    except (ValueError, NotImplementedError) as error:
        raise ModelLoadError(f"{path} holds weights that cannot be read: {error}") from error
    progress("building the tokenizer", _WEIGHTS_SHARE)
    _write_tokenizer(header, folder, family.tokenizer_class)


def _walk_header(path: Path, view: mmap.mmap) -> GgufHeader:
    position, read_length = 0, struct.Struct("<Q").unpack_from

    def take(layout: str) -> tuple[Any, ...]:
        nonlocal position
        values = struct.unpack_from("<" + layout, view, position)
        position += struct.calcsize("<" + layout)
        return values

    def text() -> str:
        return bytes(take(f"{take('Q')[0]}s")[0]).decode()

    def value(kind: int) -> Any:
        nonlocal position
        if kind == _STRING:
            return text()
        if kind != _ARRAY:
            return take(_SCALARS[kind])[0]
        item, count = take("IQ")
        if item != _STRING:
            position += count * struct.calcsize("<" + _SCALARS[item])
        else:
            for _ in range(count):
                position += 8 + read_length(view, position)[0]
        return count

    magic, version, tensor_count, value_count = take("4sIQQ")
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"it starts with {magic!r} and version {version}")
    values = {text(): value(take("I")[0]) for _ in range(value_count)}
    # ggml writes the dimension that moves fastest first, torch last.
    entries = [(text(), take(f"{take('I')[0]}Q")[::-1], *take("IQ")) for _ in range(tensor_count)]
    alignment = values.get("general.alignment", 32)
    start = position + -position % alignment
    tensors = tuple(GgufTensor(name, shape, kind, start + offset) for name, shape, kind, offset in entries)
    return GgufHeader(path, values, tensors)


def _config(header: GgufHeader, name: str, family: _Family) -> Any:
    import transformers

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": header[f"{name}.rope.freq_base"]}
    if name == "gemma3":
        # The format has no key for it: all Gemma 3 models use this base in their sliding layers.
        sliding = rope | {"rope_theta": 10000.0}
        own = {
            "vocab_size": header["tokenizer.ggml.tokens"],
            "head_dim": header["gemma3.attention.key_length"],
            "sliding_window": header["gemma3.attention.sliding_window"],
            "rope_parameters": {"full_attention": rope, "sliding_attention": sliding},
        }
    else:
        size, head_dim = header["llama.vocab_size"], header["llama.rope.dimension_count"]
        own = {"vocab_size": size, "head_dim": head_dim, "rope_parameters": rope}
    for token, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        if (number := header.values.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            own[f"{token}_token_id"] = number
    return getattr(transformers, family.config_class)(
        architectures=[family.model_class],
        dtype="float32",
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in header.tensors),
        **{ours: header[f"{name}.{key}"] for ours, key in _CONFIG_KEYS.items()},
        **own,
    )


def _write_weights(header: GgufHeader, folder: Path, config: Any, family: _Family, progress: Progress) -> None:
    """Write the safetensors file piece by piece: the library's own writer takes all weights at once."""
    names = _TOP_NAMES | {
        f"blk.{layer}.{gguf}": f"model.layers.{layer}.{ours}"
        for gguf, ours in family.layer_names.items()
        for layer in range(config.num_hidden_layers)
    }
    unknown = sorted({tensor.name for tensor in header.tensors} - names.keys())
    missing = sorted(names.keys() - {tensor.name for tensor in header.tensors} - {"output.weight"})
    if unknown or missing:
        raise ModelLoadError(f"{header.path} has tensors that are unknown ({unknown}) or missing ({missing}).")
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in header.tensors:
        start, end = end, end + 4 * math.prod(tensor.shape)
        table[names[tensor.name]] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": (start, end)}
    head = json.dumps(table).encode()
    head += b" " * (-len(head) % 8)
    written = 0
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for tensor in header.tensors:
            for piece in _pieces(header.path, tensor, config, family):
                file.write(np.ascontiguousarray(piece, dtype="<f4").data)
                written += piece.nbytes
                progress("converting the weights", _WEIGHTS_SHARE * written / end)


def _pieces(path: Path, tensor: GgufTensor, config: Any, family: _Family) -> Iterator[_Floats]:
    """The tensor's values in fp32, as transformers orders and scales them, a few rows at a time."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType(tensor.ggml_type)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    columns = tensor.shape[-1]
    rows, row_bytes = math.prod(tensor.shape[:-1]), columns // block * block_bytes
    data = np.memmap(path, np.uint8, "r", offset=tensor.offset, shape=(rows, row_bytes))
    part = tensor.name.removeprefix("blk.").lstrip("0123456789.")
    if part in family.permuted:
        heads = config.num_attention_heads if part == "attn_q.weight" else config.num_key_value_heads
        weights = dequantize(np.asarray(data), kind).reshape(heads, -1, 2, columns)
        yield weights.swapaxes(1, 2)
        return
    offset = np.float32(family.norm_offset if part.endswith("norm.weight") else 0)
    step = max(1, _PIECE // columns)
    for first in range(0, rows, step):
        weights = dequantize(np.asarray(data[first : first + step]), kind)
        yield weights - offset if offset else weights


def _write_tokenizer(header: GgufHeader, folder: Path, class_name: str) -> None:
    import transformers

    # transformers 5.20 does not look for these flags, and Gemma without a BOS knows nothing.
    flags = {
        key.removeprefix("tokenizer.ggml."): header.values[key] for key in _TOKENIZER_FLAGS if key in header.values
    }
    options = {"gguf_file": header.path.name, "local_files_only": True, **flags}
    # Not AutoTokenizer, which reads the whole file once more to find out which class to take.
    tokenizer = getattr(transformers, class_name).from_pretrained(header.path.parent, **options)
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        # The tokenizers library reports a failed write as a bare Exception with the system's words.
        full = getattr(error, "errno", None) == errno.ENOSPC or f"(os error {errno.ENOSPC})" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error
    # Without indentation, and with the added tokens where they are looked for first, it loads twice as fast.
    backend = tokenizer.backend_tokenizer.to_str(pretty=False)
    (folder / "tokenizer.json").write_bytes(backend.encode())
    settings = json.loads((folder / "tokenizer_config.json").read_bytes())
    settings["added_tokens_decoder"] = {token.pop("id"): token for token in json.loads(backend)["added_tokens"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
