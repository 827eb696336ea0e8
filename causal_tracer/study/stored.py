"""Studies that lie in a folder, for those who show them: what there is, and each one's numbers and figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from causal_tracer.errors import StudyError
from causal_tracer.study.figures import comparison_figures, study_figures
from causal_tracer.study.report import findings_html, named_studies
from causal_tracer.study.statistics import StudyEffects, study_effects
from causal_tracer.study.store import read_manifest, read_records, study_settings

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class StoredStudy:
    """A study that is there to be shown.

    Attributes:
        folder: Where it is.
        model: The model's name.
        state: "complete", "partial", "failed", or "running" where it was not brought to an end.
        traced: Facts traced; 0 where it was not brought to an end.
        samples: Noise samples of each fact.
    """

    folder: Path
    model: str
    state: str
    traced: int
    samples: int


@dataclass(frozen=True, eq=False)
class StudyView:
    """A study's numbers and figures.

    Attributes:
        effects: What averages are taken of.
        findings: What it found, as HTML: counts, total effect, and the table of average effects.
        figures: Plotly figures by name, as `figures.study_figures` names them.
    """

    effects: StudyEffects
    findings: str
    figures: dict[str, go.Figure]


def stored_studies(root: Path) -> tuple[StoredStudy, ...]:
    """The studies in a folder: itself, or those right below it. Folders that hold no readable study are passed over."""
    found = []
    for folder in [root, *sorted(path for path in root.glob("*") if path.is_dir())]:
        try:
            manifest = read_manifest(folder)
            if manifest is None:
                continue
            settings = study_settings(folder)
        except StudyError:
            continue
        model = str(manifest.get("model", {}).get("model", settings.model))
        traced = int(manifest.get("facts", {}).get("traced", 0))
        found.append(StoredStudy(folder, model, str(manifest.get("state", "running")), traced, settings.samples))
    return tuple(found)


def open_study(folder: Path) -> StudyView:
    """The numbers and figures of the study in a folder; what is in its journals counts.

    Raises:
        StudyError: There is none, or none of its facts was traced.
    """
    settings, records = study_settings(folder), read_records(folder)
    effects = study_effects(records, settings.metric)
    findings = findings_html(effects, records, settings.samples, settings.seed)
    return StudyView(effects, findings, study_figures(effects, settings.seed))


def compared_figures(folders: list[Path]) -> dict[str, go.Figure]:
    """Figures of several studies together, by kind and token role.

    Raises:
        StudyError: A folder holds no study, or the studies differ in metric.
    """
    return comparison_figures(named_studies(folders))
