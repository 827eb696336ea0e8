"""Studies in folders, as they were when they were opened."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from causal_tracer.errors import StudyError
from causal_tracer.study.records import FactRecord
from causal_tracer.study.settings import StudySettings, stored_settings
from causal_tracer.study.statistics import StudyEffects, study_effects
from causal_tracer.study.store import read_manifest, read_records


@dataclass(frozen=True, eq=False)
class StoredStudy:
    """A study in a folder; its records are read when they are first needed, those in its journals too.

    Attributes:
        folder: Where it is.
        manifest: Its manifest.
        settings: Its settings.
    """

    folder: Path
    manifest: dict[str, Any]
    settings: StudySettings

    @classmethod
    def open(cls, folder: Path) -> StoredStudy:
        """Open the study in a folder.

        Raises:
            StudyError: There is none, or it is of another version.
        """
        manifest = read_manifest(folder)
        if manifest is None:
            raise StudyError(f"There is no study in {str(folder)!r}: it has no manifest.json. Run one into it first.")
        return cls(folder, manifest, stored_settings(manifest))

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.manifest.get("model", {}).get("model", self.settings.model))

    @property
    def state(self) -> str:
        """How far it has come: complete, partial, failed, or running where it was not brought to an end."""
        return str(self.manifest.get("state", "running"))

    @property
    def traced(self) -> int:
        """Facts traced when it was last brought to an end; 0 where it never was."""
        return int(self.manifest.get("facts", {}).get("traced", 0))

    @cached_property
    def records(self) -> tuple[FactRecord, ...]:
        """The record of each fact."""
        return read_records(self.folder)

    @cached_property
    def effects(self) -> StudyEffects:
        """The effects of the facts traced.

        Raises:
            StudyError: None was.
        """
        return study_effects(self.records, self.settings)


def stored_studies(root: Path) -> tuple[StoredStudy, ...]:
    """Return the studies in a folder: itself, or those right below it. What cannot be read is left out."""
    found = []
    for folder in [root, *sorted(path for path in root.glob("*") if path.is_dir())]:
        try:
            found.append(StoredStudy.open(folder))
        except StudyError:
            continue
    return tuple(found)


def named_effects(studies: Iterable[StoredStudy]) -> dict[str, StudyEffects]:
    """Return the effects of studies by their models' names, with the folder's where two have the same."""
    named: dict[str, StudyEffects] = {}
    for study in studies:
        name = study.model if study.model not in named else f"{study.model} ({study.folder.name})"
        named[name] = study.effects
    return named
