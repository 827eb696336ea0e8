"""`StoredStudy`: a study read from its folder, and finding the studies below a folder."""

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
    """A study read from its folder. The records, also those in journals, are read at their first use.

    Attributes:
        folder: The study's folder.
        manifest: The content of manifest.json when the study was opened.
        settings: The study's settings.
    """

    folder: Path
    manifest: dict[str, Any]
    settings: StudySettings

    @classmethod
    def open(cls, folder: Path) -> StoredStudy:
        """Open the study in a folder.

        Raises:
            StudyError: The folder has no study, or one of another version.
        """
        manifest = read_manifest(folder)
        if manifest is None:
            raise StudyError(
                f"There is no study in {str(folder)!r}: it has no manifest.json. Give the folder of a study, or run a "
                "study with this folder first."
            )
        return cls(folder, manifest, stored_settings(manifest))

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.manifest.get("model", {}).get("model", self.settings.model))

    @property
    def state(self) -> str:
        """The state after the last run: complete, partial or failed; or running, if the run has not finished."""
        return str(self.manifest.get("state", "running"))

    @property
    def traced(self) -> int:
        """The number of traced facts after the last finished run; 0 before the first one."""
        return int(self.manifest.get("facts", {}).get("traced", 0))

    @cached_property
    def records(self) -> tuple[FactRecord, ...]:
        """The record of each fact."""
        return read_records(self.folder)

    @cached_property
    def effects(self) -> StudyEffects:
        """The effects of the traced facts.

        Raises:
            StudyError: No fact was traced.
        """
        return study_effects(self.records, self.settings)


def stored_studies(root: Path) -> tuple[StoredStudy, ...]:
    """Return the studies in a folder and in its direct subfolders. Folders without a readable study are left out."""
    found = []
    for folder in [root, *sorted(path for path in root.glob("*") if path.is_dir())]:
        try:
            found.append(StoredStudy.open(folder))
        except StudyError:
            continue
    return tuple(found)


def named_effects(studies: Iterable[StoredStudy]) -> dict[str, StudyEffects]:
    """Return the effects of studies by model name. A second study of the same model gets its folder's name, too."""
    named: dict[str, StudyEffects] = {}
    for study in studies:
        name = study.model if study.model not in named else f"{study.model} ({study.folder.name})"
        named[name] = study.effects
    return named
