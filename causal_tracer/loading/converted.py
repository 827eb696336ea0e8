"""The cache of converted GGUF files.

A file is converted once, into a folder under `causal_tracer.files.cache_root` that transformers loads
(`causal_tracer.loading.gguf_conversion`). The folder's manifest is written last. At each use, the manifest must name
the same source and converter version, and the SHA-256 of every file must match; otherwise the file is converted again.
One process converts at a time. The others wait for it.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from causal_tracer.errors import ModelLoadError
from causal_tracer.files import CACHE_VARIABLE, cache_root
from causal_tracer.loading.gguf_conversion import CONVERTER_VERSION, Progress, convert_gguf

_logger = logging.getLogger(__name__)
_MANIFEST = "manifest.json"
# Fractions of a first use's time: when the source is checked, and when it is converted.
_SOURCE_SHARE, _CONVERTED_SHARE = 0.1, 0.95


@dataclass(frozen=True)
class Conversion:
    """A GGUF file to convert and cache.

    Attributes:
        slug: The folder's name in the cache.
        name: The model's name in the manifest.
        title: The model's name in messages.
        sha256: SHA-256 of the file.
        space_needed: Disk space in bytes that the conversion needs at its peak.
        source: Returns a context manager that yields the file's path while it is converted. Arguments: a temporary
            folder that the file may be written to, and the progress function.
        error: The class of errors that a full disk or a missing package raises.
        notice: Text of a file stored with the weights. If it is empty, no file is written.
    """

    slug: str
    name: str
    title: str
    sha256: str
    space_needed: int
    source: Callable[[Path, Progress], AbstractContextManager[Path]]
    error: type[ModelLoadError] = ModelLoadError
    notice: str = ""


def converted_folder(
    conversion: Conversion, cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None
) -> Path:
    """Return the folder with a GGUF file's config, fp32 weights and tokenizer; convert the file if needed.

    Args:
        conversion: The file to convert.
        cache_dir: Where converted models are cached; by default `CAUSAL_TRACER_CACHE`, else the user's cache.
        progress: Called with the stage and a fraction from 0 to 1. Not called if the file is converted already.

    Returns:
        The folder. All its files have been checked against the manifest.

    Raises:
        ModelLoadError: The file cannot be converted, the folder cannot be written, or the disk is full.
            `conversion.error` gives the class.
    """
    report = progress or (lambda _stage, _fraction: None)
    root = cache_root(cache_dir)
    target = root / conversion.slug
    if _fault(target, conversion) is None:
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f"{conversion.slug}.lock", conversion, report):
            _remove_leftovers(root, conversion)
            fault = _fault(target, conversion)
            if fault is not None:
                if target.exists():
                    _logger.warning("%s is converted again: %s (%s).", conversion.title, fault, target)
                _build(target, conversion, report)
    except OSError as error:
        raise _disk_error(error, root, conversion) from error
    return target


def quantisation_of(folder: Path) -> str:
    """Return the quantisation of the GGUF file that a folder was converted from, such as "Q4_K_M"."""
    manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_bytes())
    return str(manifest["quantisation"])


def _lock(path: Path, conversion: Conversion, report: Progress) -> AbstractContextManager[object]:
    """Acquire the lock, waiting for a process that holds it. The returned object releases it when a `with` ends."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        _logger.info("Another process is converting %s; waiting for it.", conversion.title)
        report("waiting for another process that is converting the model", 0.0)
        return lock.acquire()


def _fault(folder: Path, conversion: Conversion) -> str | None:
    """Return why the converted copy in `folder` cannot be used, or None if it can."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        if (manifest["source_sha256"], manifest["converter"]) != (conversion.sha256, CONVERTER_VERSION):
            return "the copy was made from another file or by another version"
        files: dict[str, dict[str, Any]] = manifest["files"]
        # Sizes first, since hashing takes long.
        if any((folder / name).stat().st_size != entry["bytes"] for name, entry in files.items()):
            return "a file has the wrong size"
        if any(file_hash(folder / name) != entry["sha256"] for name, entry in files.items()):
            return "a file has the wrong SHA-256"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"the copy is incomplete ({type(error).__name__})"
    return None


def file_hash(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary_prefix(conversion: Conversion) -> str:
    return f".{conversion.slug}.partial-"


def _remove_leftovers(root: Path, conversion: Conversion) -> None:
    """Remove the folders of killed conversions. No running conversion uses them, because the lock is held."""
    for leftover in root.glob(_temporary_prefix(conversion) + "*"):
        _logger.warning("Removing %s, left by a conversion that was killed.", leftover)
        shutil.rmtree(leftover)


def _build(target: Path, conversion: Conversion, report: Progress) -> None:
    """Convert the file in a temporary folder next to the target, then rename the folder."""
    if importlib.util.find_spec("gguf") is None:
        raise conversion.error(f"Converting {conversion.title} needs the package gguf. Run: pip install gguf")
    if shutil.disk_usage(target.parent).free < conversion.space_needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _logger.info("Converting %s into %s.", conversion.title, target)
    with tempfile.TemporaryDirectory(prefix=_temporary_prefix(conversion), dir=target.parent) as temporary:
        made, old = Path(temporary, "made"), Path(temporary, "old")
        made.mkdir()
        with conversion.source(Path(temporary), _share(report, 0, _SOURCE_SHARE)) as gguf:
            header = convert_gguf(gguf, made, _share(report, _SOURCE_SHARE, _CONVERTED_SHARE))
        if conversion.notice:
            changed = "Modified: converted from GGUF to fp32 safetensors by causal-tracer.\n"
            (made / "NOTICE.txt").write_text(conversion.notice + changed, encoding="utf-8")
        report("hashing the converted files", _CONVERTED_SHARE)
        _write_manifest(made, conversion, header.quantisation)
        if target.exists():
            # A rename cannot replace a folder that is not empty.
            target.rename(old)
        made.rename(target)
    report("ready", 1.0)


def _write_manifest(folder: Path, conversion: Conversion, quantisation: str) -> None:
    files = sorted(folder.iterdir())
    manifest = {
        "model": conversion.name,
        "source_sha256": conversion.sha256,
        "quantisation": quantisation,
        "converter": CONVERTER_VERSION,
        "files": {file.name: {"sha256": file_hash(file), "bytes": file.stat().st_size} for file in files},
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _share(report: Progress, start: float, end: float) -> Progress:
    return lambda stage, fraction: report(stage, start + (end - start) * fraction)


def _disk_error(error: OSError, root: Path, conversion: Conversion) -> ModelLoadError:
    way_out = f"Free some space, or set the environment variable {CACHE_VARIABLE} to another folder."
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        needed = f"Converting {conversion.title} needs {conversion.space_needed / 1e9:.2f} GB of disk space in {root}"
        return conversion.error(f"{needed}, and the disk is full ({error}). {way_out}")
    return conversion.error(f"{conversion.title} could not be stored in {root}: {error}. {way_out}")
