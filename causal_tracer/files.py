"""The cache folder of this package, and atomic writes of files."""

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
"""The suffix of a file that is being written. A killed process may leave such a file behind."""


def cache_root(cache_dir: str | os.PathLike[str] | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the cache folder, which holds converted models, finished results and engine checks.

    Args:
        cache_dir: The folder. None takes the environment variable `CAUSAL_TRACER_CACHE`, or else the user's cache
            folder.
        environ: The environment variables.
    """
    return Path(cache_dir or environ.get(CACHE_VARIABLE) or user_cache_path("causal-tracer")).expanduser()


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file atomically: after an error or a crash the path has its old content or the new one, never a part.

    Missing folders are created. A string is encoded as UTF-8. A pipe or a device is written to directly.

    Raises:
        OSError: The file cannot be written. Its old content is unchanged.
        UnicodeEncodeError: The string has lone surrogates.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    # Resolved, so that a symbolic link stays a link.
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
    """Sync a folder to disk, so that the name of a new or replaced file in it is durable.

    Errors are ignored: some file systems cannot sync a folder, and the file itself is already in place.
    """
    if os.name != "posix":
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
