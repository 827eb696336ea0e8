"""Stored studies as the page shows them: what a study found in words and numbers, and one figure at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import plotly.graph_objects as go

from causal_tracer.errors import CausalTracerError, StudyError
from causal_tracer.study.figures import figure_caption, figure_title
from causal_tracer.study.report import report_page
from causal_tracer.study.store import require_tables
from causal_tracer.study.stored import StoredStudy, StudyView, compared_figures, open_study, stored_studies
from causal_tracer.web.page.summary import message_html
from causal_tracer.web.page.views import in_the_page, scale_above
from causal_tracer.web.service.registry import model_title
from causal_tracer.web.service.settings import variable

SHIPPED_STUDIES = Path(__file__).parents[1] / "stored" / "studies"
ALONE = -1
"""The choice of no second study."""

_STUDY_FILES = (".json", ".jsonl", ".parquet")
_GRID = "rgba(128,128,128,.25)"
_CLEAR = "rgba(0,0,0,0)"


@dataclass(frozen=True)
class StudyShelf:
    """The studies that the app shows.

    Attributes:
        studies: Those that come with it, then those of the operator's folder.
    """

    studies: tuple[StoredStudy, ...] = ()

    @classmethod
    def of(cls, folder: str = "") -> StudyShelf:
        """What comes with the app, and what is in a folder: of one study, or of several; empty for none."""
        own = stored_studies(Path(folder)) if folder else ()
        return cls(tuple(study for study in (*stored_studies(SHIPPED_STUDIES), *own) if study.traced))

    def choices(self) -> list[tuple[str, int]]:
        """The studies by number, as a list to choose from."""
        return [(self._title(study), number) for number, study in enumerate(self.studies)]

    def beside(self) -> list[tuple[str, int]]:
        """What a study can be compared with."""
        return [("no other study", ALONE), *self.choices()]

    def show(self, number: int | None, other: int | None, figure: str | None) -> tuple[Any, Any, str, str]:
        """A study: the figures there are, the chosen one, its caption, and what the study found, as HTML."""
        try:
            study = self._study(number)
            view = _opened(study)
            alone = other in (None, ALONE, number)
            figures = view.figures if alone else _compared((study, self._study(other)))
        except CausalTracerError as error:
            return gr.skip(), gr.skip(), message_html(str(error)), gr.skip()
        name = figure if figure and figure in figures else next(iter(figures))
        listed = gr.Dropdown(choices=[(figure_title(each), each) for each in figures], value=name)
        caption = f'<p class="ct-made">{figure_caption(name)}</p>'
        return listed, _on_the_page(figures[name]), caption, view.findings

    def write_report(self, number: int | None, other: int | None) -> tuple[str | None, Any]:
        """The report as a file to download, and a message where it could not be made."""
        try:
            study = self._study(number)
            others = [] if other in (None, ALONE, number) else [self._study(other).folder]
            page = report_page(study.folder, others)
        except CausalTracerError as error:
            return None, message_html(str(error))
        path = Path(tempfile.mkdtemp(prefix="causal-tracer-")) / f"study-{study.folder.name}.html"
        path.write_text(page, encoding="utf-8")
        return str(path), gr.skip()

    def _title(self, study: StoredStudy) -> str:
        title = f"{model_title(study.model)}: {study.traced} facts"
        alike = sum((its.model, its.traced) == (study.model, study.traced) for its in self.studies)
        return title if alike == 1 else f"{title} ({study.folder.name})"

    def _study(self, number: int | None) -> StoredStudy:
        """The study of a number.

        Raises:
            StudyError: There is none of this number, or studies cannot be read here.
        """
        require_tables()
        if not self.studies:
            raise StudyError(
                "There is no study to show. Run one, causal-tracer study --out FOLDER, and name that folder in "
                f"{variable('studies_folder')}."
            )
        if number is None or not 0 <= number < len(self.studies):
            raise StudyError(f"There is no study {number} among the {len(self.studies)}. Choose one of the list.")
        return self.studies[number]


def _opened(study: StoredStudy) -> StudyView:
    return _open_once(study.folder, _changed_at(study.folder))


@lru_cache(maxsize=8)
def _open_once(folder: Path, changed_at: tuple[float, ...]) -> StudyView:
    """The study as it is while its files are unchanged: its intervals take a moment."""
    return open_study(folder)


def _compared(studies: tuple[StoredStudy, ...]) -> Mapping[str, go.Figure]:
    return _compare_once(tuple((study.folder, _changed_at(study.folder)) for study in studies))


@lru_cache(maxsize=8)
def _compare_once(studies: tuple[tuple[Path, tuple[float, ...]], ...]) -> Mapping[str, go.Figure]:
    figures = compared_figures([folder for folder, _ in studies])
    if not figures:
        raise StudyError("These two studies have no kind of map in common. Choose another one to set beside.")
    return figures


def _changed_at(folder: Path) -> tuple[float, ...]:
    """When a study's files were last written."""
    return tuple(path.stat().st_mtime for path in sorted(folder.rglob("*.*")) if path.suffix in _STUDY_FILES)


def _on_the_page(figure: go.Figure) -> go.Figure:
    """A figure on the page's own ground, light or dark; the kept one stays as it is."""
    shown = go.Figure(figure)
    shown.update_layout(paper_bgcolor=_CLEAR, plot_bgcolor=_CLEAR)
    shown.update_xaxes(gridcolor=_GRID, zerolinecolor=_GRID)
    shown.update_yaxes(gridcolor=_GRID, zerolinecolor=_GRID)
    if shown.data[0].type == "heatmap":
        scale_above(shown)
        shown.update_traces(colorbar={"nticks": 4, "len": 1})
        shown.update_layout(margin={"t": 50})
    return in_the_page(shown)
