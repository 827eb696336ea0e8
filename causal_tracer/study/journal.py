"""A study's journals: append-only files, one for each process, with one JSON line for each fact."""

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
    """A new journal file in a study's folder. Each line is on disk when `append` returns.

    Each process writes only to its own new file, so that a killed process cannot damage earlier records.
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
        """Close the file, and remove it if it is empty."""
        self._file.close()
        if self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()


def journal_files(study: Path) -> list[Path]:
    """Return the journals in a study's folder."""
    return sorted((study / FOLDER).glob("*.jsonl"))


def read_journal(path: Path) -> Iterator[Any]:
    """Yield the records of one journal. A last line without a line break is left out: its process was killed.

    Raises:
        StudyError: Another line is damaged.
    """
    *lines, _torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise StudyError(
                f"Line {number} of {path} is damaged ({error}). Remove the line and run the study again. It will trace "
                "the line's fact again."
            ) from error
