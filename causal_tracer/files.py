"""Where this package keeps files on this machine, and how it writes a file: whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path

CACHE_VARIABLE = "CAUSAL_TRACER_CACHE"
"""The environment variable that names the cache folder."""

PART_SUFFIX = ".part"
"""The ending of a file that is being written; a killed process leaves one behind."""


def cache_root(cache_dir: str | os.PathLike[str] | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of converted models, finished results and engine checks.

    Args:
        cache_dir: The folder; None takes the one that `CAUSAL_TRACER_CACHE` names, else the user's cache folder.
        environ: The environment variables.
    """
    return Path(cache_dir or environ.get(CACHE_VARIABLE) or user_cache_path("causal-tracer")).expanduser()


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file in one step: a reader, a full disk or a crash leaves the old file or the new one, never a part.

    The folder is made if needed. A text is written as UTF-8. A pipe or a device is written to and stays what it is.

    Raises:
        OSError: The file cannot be written; what was there before is untouched.
        UnicodeEncodeError: The text has lone surrogates.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    # Resolved, so that a link stays a link.
    target = path.resolve()
    part = target.with_name(f".{secrets.token_hex(8)}{PART_SUFFIX}")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the name of a new or replaced file durable.

    Some file systems refuse to sync a folder; the file is in place all the same, so that is no error.
    """
    if os.name != "posix":
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
