"""Finding the GGUF file that a user names (a file, a folder, a file of a hub repository), and converting it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from causal_tracer.errors import ModelLoadError
from causal_tracer.loading.converted import Conversion, converted_folder, file_hash, quantisation_of
from causal_tracer.loading.gguf_conversion import Progress
from causal_tracer.loading.gguf_header import read_gguf_header

_MAGIC = b"GGUF"
_FLOATS = ("F32", "F16", "BF16")
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
# Disk space besides the weights, in bytes: for tokenizer files, with a margin.
_SPACE_BESIDES_WEIGHTS = 100_000_000


@dataclass(frozen=True)
class ConvertedGguf:
    """A converted GGUF file.

    Attributes:
        folder: The folder that transformers loads.
        title: The file's name and quantisation, to show to people.
        quantisation: The quantisation, such as "Q4_K_M".
        sha256: SHA-256 of the GGUF file.
    """

    folder: Path
    title: str
    quantisation: str
    sha256: str


def find_local_gguf(name: str, path: Path) -> Path | None:
    """Return the GGUF file at a path: the file itself, or the only one in a folder.

    Returns:
        The file's path. None for a folder without a GGUF file, and for a folder with weights that save_pretrained
        wrote, even if it has a GGUF file too.

    Raises:
        ModelLoadError: The path is a file of another type, or a folder with several GGUF files and no other weights.
    """
    if path.is_dir():
        if (path / "config.json").is_file() and any([*path.glob("*.safetensors"), *path.glob("*.bin")]):
            return None
        chosen = choose_gguf([entry.name for entry in path.iterdir()], None, name, "Give the path of one of them.")
        return None if chosen is None else path / chosen
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except OSError as error:
        raise ModelLoadError(f"{name!r} cannot be read: {error}") from error
    if start == _MAGIC:
        return path
    if path.suffix == ".gguf":
        raise ModelLoadError(f"{name!r} is not a GGUF file: it does not start with {_MAGIC!r}. Download it again.")
    raise ModelLoadError(f"{name!r} is a file. Give a .gguf file, or the folder with config.json and the weights.")


def choose_gguf(files: Sequence[str], wanted: str | None, name: str, advice: str) -> str | None:
    """Choose a GGUF file from the files of a folder or repository.

    Args:
        files: The names of all files.
        wanted: The file's name, or a part of the name that only one GGUF file has. None means the only GGUF file.
        name: The model's name in error messages.
        advice: The advice in the error message if several files match.

    Returns:
        The file's name, or None if `wanted` is None and there is no GGUF file.

    Raises:
        ModelLoadError: No file has this name, or several match.
    """
    # Image encoders ("mmproj...") are stored beside language models and are not language models.
    found = sorted(f for f in files if f.endswith(".gguf") and not PurePosixPath(f).name.startswith("mmproj"))
    fitting = found if wanted is None else [f for f in found if f == wanted] or [f for f in found if wanted in f]
    listed = ", ".join(found) or "none"
    if not fitting:
        if wanted is None:
            return None
        raise ModelLoadError(f"{name!r} has no GGUF file {wanted!r}. Its GGUF files: {listed}.")
    if len(fitting) > 1 and len({_PART.sub("", f) for f in fitting}) > 1:
        raise ModelLoadError(f"{name!r} matches {len(fitting)} GGUF files ({', '.join(fitting)}). {advice}")
    # Several are the parts of one split model. Reading the first part raises the error for that.
    return fitting[0]


def converted_gguf(path: Path, cache_dir: Any, progress: Progress | None) -> ConvertedGguf:
    """Return the folder of a GGUF file in transformers' format; convert the file if needed.

    The cache identifies a file by its content, so a file with changed content is converted again.

    Raises:
        ModelLoadError: The file is damaged or cannot be converted, the cache cannot be written, or the disk is full.
    """
    header = read_gguf_header(path)
    try:
        digest = file_hash(path)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error

    @contextmanager
    def unchanged(temporary: Path, report: Progress) -> Iterator[Path]:
        yield path
        if file_hash(path) != digest:
            raise ModelLoadError(f"{path} changed while it was read. Try again when the file is complete.")

    conversion = Conversion(
        slug=f"gguf-{re.sub(r'[^A-Za-z0-9.-]+', '-', path.stem)[:60]}-{digest[:12]}",
        name=path.name,
        title=path.name,
        sha256=digest,
        space_needed=4 * sum(tensor.elements for tensor in header.tensors) + _SPACE_BESIDES_WEIGHTS,
        source=unchanged,
    )
    folder = converted_folder(conversion, cache_dir, progress)
    quantisation = quantisation_of(folder)
    kept = [] if quantisation in path.stem else [quantisation]
    changed = [] if quantisation in _FLOATS else ["dequantised"]
    words = f" ({', '.join(kept + changed)})" if kept or changed else ""
    return ConvertedGguf(folder, path.stem + words, quantisation, digest)
