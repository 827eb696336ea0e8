"""Reading the header of a GGUF file: its metadata and tensor table, without weights and vocabulary strings.

transformers and the gguf package parse the whole vocabulary in Python, which takes 20 s for Gemma's 262,144 tokens.
Here the vocabulary's strings are skipped.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causal_tracer.errors import ModelLoadError

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_PART_NAME = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class GgufTensor:
    """The name, shape, type and position of one tensor in a GGUF file."""

    name: str
    shape: tuple[int, ...]  # in torch's order: rows first
    ggml_type: int
    offset: int  # in bytes from the start of the file

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """The metadata and tensor table of a GGUF file."""

    path: Path
    values: dict[str, Any]  # metadata by key; an array is replaced by its length
    tensors: tuple[GgufTensor, ...]

    def __getitem__(self, key: str) -> Any:
        """Return the metadata value of a key.

        Raises:
            ModelLoadError: The file has no such key.
        """
        if key not in self.values:
            raise ModelLoadError(
                f"{self.path} has no metadata key {key!r}, so it cannot be converted. Give another GGUF file, or the "
                "model's original checkpoint."
            )
        return self.values[key]

    @property
    def architecture(self) -> str:
        """The name of the model's architecture in GGUF."""
        return str(self["general.architecture"])

    def of_architecture(self, key: str, default: Any = None) -> Any:
        """Return the metadata value of the key "<architecture>.<key>", or `default` if there is none."""
        return self.values.get(f"{self.architecture}.{key}", default)

    @property
    def quantisation(self) -> str:
        """The file's quantisation, such as "Q4_K_M": the one in its metadata, else that of most weights."""
        from gguf import GGMLQuantizationType, LlamaFileType

        stated = self.values.get("general.file_type")
        known = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
        if stated in known and known[stated] != "GUESSED":
            return str(known[stated])
        weights: Counter[int] = Counter()
        for tensor in self.tensors:
            weights[tensor.ggml_type] += tensor.elements
        return str(GGMLQuantizationType(weights.most_common(1)[0][0]).name)


def read_gguf_header(path: Path) -> GgufHeader:
    """Read a GGUF file's metadata and tensor table in one pass.

    Raises:
        ModelLoadError: The file is not a GGUF file of version 2 or 3, or ends early.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _walk_header(path, view)
    except struct.error as error:
        raise ModelLoadError(
            f"{path} is not a complete GGUF file: it ends within its header. Download it again."
        ) from error
    except (ValueError, KeyError) as error:
        raise ModelLoadError(
            f"{path} is not a complete GGUF file of version 2 or 3 ({error!r}). Download it again."
        ) from error


def require_whole_model(header: GgufHeader) -> None:
    """Check that a file contains one complete model with its tokenizer.

    Raises:
        ModelLoadError: The file is one part of several, has no weights, has weights of an unknown type, ends before its
            last tensor, or has no tokenizer.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    path, parts = header.path, header.values.get("split.count", 1)
    named = _PART_NAME.search(path.name)
    if parts > 1 or (named and int(named[2]) > 1):
        number = int(named[1]) if named else header.values.get("split.no", 0) + 1
        raise ModelLoadError(
            f"{path} is part {number} of {max(parts, int(named[2]) if named else 0)} of a split model. Join the parts "
            "first, with llama.cpp's tool: llama-gguf-split --merge FIRST_PART.gguf WHOLE.gguf"
        )
    if not header.tensors:
        raise ModelLoadError(f"{path} has no weights, so it is not a model. Give the GGUF file with the weights.")
    size = path.stat().st_size
    for tensor in header.tensors:
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.ggml_type)]
        except (ValueError, KeyError) as error:
            raise ModelLoadError(
                f"{path} has weights that cannot be read: {tensor.name} is of type {tensor.ggml_type}, which this "
                "version of the gguf package does not know. Run: pip install --upgrade gguf"
            ) from error
        if (end := tensor.offset + tensor.elements // block * block_bytes) > size:
            raise ModelLoadError(
                f"{path} ends early: it has {size} bytes, and {tensor.name} ends at byte {end}. Download it again."
            )
    if not header.values.get("tokenizer.ggml.tokens") or header.values.get("tokenizer.ggml.model", "none") == "none":
        raise ModelLoadError(f"{path} has no tokenizer. Give a GGUF file that includes the vocabulary.")


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
    # ggml writes the dimension that varies fastest first, torch writes it last.
    entries = [(text(), take(f"{take('I')[0]}Q")[::-1], *take("IQ")) for _ in range(tensor_count)]
    alignment = values.get("general.alignment", 32)
    start = position + -position % alignment
    tensors = tuple(GgufTensor(name, shape, kind, start + offset) for name, shape, kind, offset in entries)
    return GgufHeader(path, values, tensors)
