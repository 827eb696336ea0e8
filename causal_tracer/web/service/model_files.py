"""Revision, identity and size of a model, read from its name and files before it is loaded."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from causal_tracer.errors import ModelLoadError, SettingsError
from causal_tracer.files import cache_root
from causal_tracer.loading.embedded import find_embedded_model, is_embedded_name
from causal_tracer.loading.gguf_files import find_local_gguf
from causal_tracer.loading.gguf_header import read_gguf_header
from causal_tracer.loading.models import public_model_name

_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
_MODEL_FILES = (".json", ".safetensors", ".gguf", ".model", ".txt", ".jinja")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def split_source(source: str) -> tuple[str, str | None]:
    """Return the name and the revision of "name@revision"; the revision is None if there is none.

    Raises:
        SettingsError: The revision is not a valid branch, tag or commit.
    """
    if Path(source).expanduser().exists() or "@" not in source:
        return source, None
    name, _, revision = source.rpartition("@")
    if not name or not _REVISION.fullmatch(revision) or ".." in revision:
        raise SettingsError(
            f"{source!r} is not a model name with a revision. Write owner/name@revision: a branch, tag or commit."
        )
    return name, revision


def public_name(source: str) -> str:
    """Return a model's name in requests: its own, or that of its folder or file."""
    return public_model_name(split_source(source)[0])


def stored_identity(source: str) -> str | None:
    """Return a text that identifies a model's weights; None if the model must be loaded first.

    A hub model is identified by a pinned commit, an embedded model by its file's hash, and a folder or GGUF file by the
    names, sizes and modification times of its files.
    """
    name, revision = split_source(source)
    if is_embedded_name(name):
        return f"embedded {find_embedded_model(name).sha256}"
    path = Path(name).expanduser()
    if path.exists():
        files = [path] if path.is_file() else [entry for entry in path.iterdir() if entry.suffix in _MODEL_FILES]
        found = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file())
        return f"folder {hashlib.sha256(json.dumps(found).encode()).hexdigest()}"
    return f"hub {name} {revision}" if revision and _COMMIT.fullmatch(revision) else None


def stored_parameters(source: str) -> int | None:
    """Return the number of parameters in the model's weight files; None if they are not on this machine."""
    try:
        path = Path(split_source(source)[0]).expanduser()
        gguf = find_local_gguf(source, path) if path.exists() else None
        if gguf is not None:
            return sum(tensor.elements for tensor in read_gguf_header(gguf).tensors)
        return _counted(_weight_files(source))
    except (OSError, ValueError, SafetensorError, ModelLoadError):
        # Damaged files are reported when the model is loaded.
        return None


def require_safetensors(source: str) -> None:
    """Refuse a folder without safetensors or GGUF weights: other formats can run code.

    Raises:
        ModelLoadError: The folder has neither.
    """
    folder = Path(source).expanduser()
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.gguf")):
        raise ModelLoadError(
            f"The folder {folder.name!r} has no .safetensors or .gguf weights, and this app loads no other formats. "
            "Save the model with save_pretrained, which writes safetensors."
        )


def _weight_files(source: str) -> list[Path]:
    name, revision = split_source(source)
    if is_embedded_name(name):
        return sorted((cache_root() / find_embedded_model(name).slug).glob("*.safetensors"))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return sorted(folder.glob("*.safetensors"))
    cached = try_to_load_from_cache(name, "model.safetensors", revision=revision)
    return [Path(cached)] if isinstance(cached, str) else []


def _counted(files: list[Path]) -> int | None:
    total = 0
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total or None
