"""Converting a GGUF file to a folder that transformers loads: config, fp32 safetensors and tokenizer files.

transformers reads GGUF files itself, but parses the whole vocabulary in Python three times (config, tokenizer,
weights): 40 s and more for Gemma's 262,144 tokens. Here the weights of the most common architectures
(`gguf_config.FAMILIES`) are converted piece by piece, so that memory stays far below the model's size; transformers
gives only their names and order. Models of other architectures are loaded by transformers once, as a whole. A file is
refused if the model does not use all its weights.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from causal_tracer.errors import ModelLoadError
from causal_tracer.loading.gguf_config import FAMILIES, ROPE_FACTORS, gguf_config
from causal_tracer.loading.gguf_header import GgufHeader, GgufTensor, read_gguf_header, require_whole_model

# Increase it whenever the written files change, so that older cached copies are converted again.
CONVERTER_VERSION = 1

# Called with the name of the current stage and the fraction done, from 0 to 1.
Progress = Callable[[str, float], None]

_Floats = npt.NDArray[np.float32]
_Weight = tuple[str, tuple[int, ...], Callable[[], Iterator[_Floats]]]
"""A weight's name in transformers, its shape, and a function that yields its values piece by piece."""

_PIECE = 1 << 22  # elements dequantised at once: 16 MiB of float32
_WEIGHTS_SHARE = 0.65  # of the time that a conversion takes; the rest goes to the tokenizer
_TOKENIZER_FLAGS = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token")


def convert_gguf(path: Path, folder: Path, progress: Progress) -> GgufHeader:
    """Write `config.json`, `model.safetensors` (fp32) and tokenizer files for a GGUF file into `folder`.

    The tokenizer is the one that transformers reads from the file, chat template included. If the file has no output
    matrix, the model's head is tied to the embedding. Peak memory is a few pieces and the tokenizer for architectures
    in `FAMILIES`, and one and a half times the model in fp32 for others.

    Returns:
        The file's header.

    Raises:
        ModelLoadError: The file is damaged, or has an unknown architecture or tensor.
        OSError: The files could not be written, for instance because the disk is full.
    """
    header = read_gguf_header(path)
    require_whole_model(header)
    with _isolated_link(path, folder) as link:
        family = FAMILIES.get(header.architecture)
        with _reading(header, "settings"):
            config = gguf_config(header, link)
        with _reading(header, "weights"):
            if family is None:
                progress("reading the weights", 0.0)
            weights = _loaded_weights(header, config, link) if family is None else _named_weights(header, config)
        config.save_pretrained(folder)
        try:
            _write_weights(weights, folder / "model.safetensors", progress)
        except (ValueError, NotImplementedError) as error:
            raise ModelLoadError(f"{path} has weights that cannot be read: {error}") from error
        del weights
        progress("building the tokenizer", _WEIGHTS_SHARE)
        with _reading(header, "tokenizer"):
            tokenizer = _tokenizer(header, link, None if family is None else family.tokenizer_class)
    _write_tokenizer(tokenizer, folder)
    return header


@contextmanager
def _reading(header: GgufHeader, part: str) -> Iterator[None]:
    """Raise a `ModelLoadError` for any error while a part of the file is read."""
    try:
        yield
    except (ModelLoadError, MemoryError):
        raise
    except Exception as error:
        raise ModelLoadError(
            f"The {part} of {header.path} ({header.architecture}) could not be read. {type(error).__name__}: {error}"
        ) from error


@contextmanager
def _isolated_link(path: Path, folder: Path) -> Iterator[Path]:
    """Link the file into an otherwise empty folder: transformers would also read config and tokenizer files beside it.

    Yields:
        The path of the link (or copy) in that folder, which is removed afterwards.
    """
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.source-", dir=folder.parent) as temporary:
        link = Path(temporary, "model.gguf")
        try:
            link.symlink_to(path.resolve())
        except OSError:
            try:
                os.link(path, link)
            except OSError:
                shutil.copyfile(path, link)
        yield link


def _named_weights(header: GgufHeader, config: Any) -> list[_Weight]:
    """Return the weights with their names in transformers. Their values are read later, piece by piece."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=config.to_dict())
    names = get_gguf_hf_weights_map(model, processor)
    tensors = [tensor for tensor in header.tensors if (header.architecture, tensor.name) != ("llama", ROPE_FACTORS)]
    unknown = sorted({tensor.name for tensor in tensors} - names.keys())
    missing = sorted(names.keys() - {tensor.name for tensor in tensors} - {"output.weight"})
    if unknown or missing:
        raise ModelLoadError(f"{header.path} has tensors that are unknown ({unknown}) or missing ({missing}).")

    def pieces(tensor: GgufTensor) -> Callable[[], Iterator[_Floats]]:
        return lambda: _pieces(header.path, tensor, processor)

    return [(names[tensor.name], tensor.shape, pieces(tensor)) for tensor in tensors]


def _loaded_weights(header: GgufHeader, config: Any, link: Path) -> list[_Weight]:
    """Load the whole model with transformers and return its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"gguf_file": link.name, "config": config, "dtype": torch.float32}
    model, info = AutoModelForCausalLM.from_pretrained(
        link.parent, local_files_only=True, output_loading_info=True, **options
    )
    if missing := sorted(info["missing_keys"]):
        raise ModelLoadError(
            f"{header.path} lacks {len(missing)} weights of {type(model).__name__} ({', '.join(missing[:4])}, …), or "
            "transformers cannot find them. Give the model's original checkpoint."
        )
    # Tied weights are written once.
    state = {id(value): (name, value) for name, value in reversed(model.state_dict(keep_vars=True).items())}
    _require_all_taken(header, config, sum(value.numel() for _, value in state.values()))
    config.architectures, config.dtype = [type(model).__name__], "float32"

    def whole(value: torch.Tensor) -> Callable[[], Iterator[_Floats]]:
        return lambda: iter([value.detach().float().numpy()])

    return [(name, tuple(value.shape), whole(value)) for name, value in state.values()]


def _require_all_taken(header: GgufHeader, config: Any, taken: int) -> None:
    """Check that the model uses all weights of the file, since its outputs would be wrong otherwise."""
    ignored = {ROPE_FACTORS}
    if config.tie_word_embeddings:
        ignored.add("output.weight")  # llama.cpp writes it for some tied models too
    layers = config.num_hidden_layers
    beyond = tuple(f"blk.{layer}." for layer in range(layers, header.of_architecture("block_count", layers)))
    tensors = [tensor for tensor in header.tensors if tensor.name not in ignored]
    held = sum(tensor.elements for tensor in tensors if not tensor.name.startswith(beyond or ("\0",)))
    if held != taken:
        raise ModelLoadError(
            f"{header.path} has {held} weights, and the {header.architecture} model that transformers loads from it "
            f"uses {taken}, so its outputs would be wrong. Give the model's original checkpoint."
        )


def _write_weights(weights: Sequence[_Weight], path: Path, progress: Progress) -> None:
    """Write the safetensors file piece by piece: the safetensors library needs all weights in memory at once."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape, _ in weights:
        start, end = end, end + 4 * math.prod(shape)
        table[name] = {"dtype": "F32", "shape": shape, "data_offsets": (start, end)}
    head = json.dumps(table).encode()
    head += b" " * (-len(head) % 8)
    written = 0
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for _, _, pieces in weights:
            for piece in pieces():
                file.write(np.ascontiguousarray(piece, dtype="<f4").data)
                written += piece.nbytes
                progress("converting the weights", _WEIGHTS_SHARE * written / end)


def _pieces(path: Path, tensor: GgufTensor, processor: Any) -> Iterator[_Floats]:
    """Yield a tensor's values in fp32, ordered and scaled as in transformers, a few rows at a time."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType(tensor.ggml_type)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    columns = tensor.shape[-1]
    rows, row_bytes = math.prod(tensor.shape[:-1]), columns // block * block_bytes
    data = np.memmap(path, np.uint8, "r", offset=tensor.offset, shape=(rows, row_bytes))
    # llama.cpp reorders the rows of attention matrices, so each of these is converted as a whole.
    step = rows if ".attn_" in tensor.name else max(1, _PIECE // columns)
    for first in range(0, rows, step):
        yield processor.process(dequantize(np.asarray(data[first : first + step]), kind), tensor.name).weights


def _tokenizer(header: GgufHeader, link: Path, class_name: str | None) -> Any:
    import transformers

    # transformers 5.20 does not read these flags, and Gemma does not work without a BOS.
    flags = {
        key.removeprefix("tokenizer.ggml."): header.values[key] for key in _TOKENIZER_FLAGS if key in header.values
    }
    options = {"gguf_file": link.name, "local_files_only": True, **flags}
    # A known class is used directly: AutoTokenizer would read the whole file once more to find it.
    reader = transformers.AutoTokenizer if class_name is None else getattr(transformers, class_name)
    return reader.from_pretrained(link.parent, **options)


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        # The tokenizers library raises a plain Exception with the system's message if a write fails.
        full = getattr(error, "errno", None) == errno.ENOSPC or f"(os error {errno.ENOSPC})" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error
    # The tokenizer loads twice as fast without indentation and with the added tokens in tokenizer_config.json.
    backend = tokenizer.backend_tokenizer.to_str(pretty=False)
    (folder / "tokenizer.json").write_bytes(backend.encode())
    settings = json.loads((folder / "tokenizer_config.json").read_bytes())
    settings["added_tokens_decoder"] = {token.pop("id"): token for token in json.loads(backend)["added_tokens"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
