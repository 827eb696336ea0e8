"""A study's journals: one append-only file per process, a line per fact, safe against being killed at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

from causal_tracer.errors import StudyError

FOLDER = "journal"


class Journal:
    """A new journal in a study's folder. Each line is on disk when `append` returns.

    A process never writes to another's file, nor to one that it found: what is there is not touched.
    """

    def __init__(self, study: Path) -> None:
        folder = study / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{uuid4().hex}.jsonl"
        self._file = self.path.open("xb")
        _sync_folder(folder)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record and wait until it is on disk."""
        self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; an empty one is removed."""
        self._file.close()
        if self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def journal_files(study: Path) -> list[Path]:
    """The journals that a study's folder holds."""
    return sorted((study / FOLDER).glob("*.jsonl"))


def read_journal(path: Path) -> Iterator[Any]:
    """The records of one journal. A last line without its end was being written when the process died: it is left out.

    Raises:
        StudyError: A line before that is damaged.
    """
    *lines, _torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise StudyError(
                f"Line {number} of {path} is damaged ({error}), though lines follow it. Remove the line; its fact "
                "will be traced again."
            ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Put a whole file in place of another, so that a reader or a crash sees one or the other."""
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")
    with part.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a new or renamed file's name durable, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
