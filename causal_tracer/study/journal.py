"""A study's journals: one append-only file per process, a line per fact, whole whenever the process is killed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from causal_tracer.errors import StudyError
from causal_tracer.files import sync_folder

FOLDER = "journal"


class Journal:
    """A new journal in a study's folder, closed by `close`. Each line is on disk when `append` returns.

    A process writes to its own file only, so that what is there is not touched.
    """

    def __init__(self, study: Path) -> None:
        folder = study / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{uuid4().hex}.jsonl"
        self._file = self.path.open("xb")
        sync_folder(folder)

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


def journal_files(study: Path) -> list[Path]:
    """Return the journals in a study's folder."""
    return sorted((study / FOLDER).glob("*.jsonl"))


def read_journal(path: Path) -> Iterator[Any]:
    """Yield the records of one journal, without a last line that was being written when the process died.

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
