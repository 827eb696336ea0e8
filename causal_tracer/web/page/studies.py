"""The tab Studies: a stored study's findings in words and numbers, and one figure at a time."""

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
from causal_tracer.files import write_atomically
from causal_tracer.study.figures import comparison_figures, study_figures, title_and_caption
from causal_tracer.study.report import findings_html, report_page
from causal_tracer.study.store import require_pyarrow
from causal_tracer.study.stored import StoredStudy, named_effects, stored_studies
from causal_tracer.web.page.download_buttons import SAVE
from causal_tracer.web.page.explore import TAB_TITLES
from causal_tracer.web.page.inputs_layout import AT_ONCE, PAGE_EVENT
from causal_tracer.web.page.summary import message_html
from causal_tracer.web.page.texts import STUDIES
from causal_tracer.web.service.figures import in_the_page, scale_above
from causal_tracer.web.service.registry import model_title
from causal_tracer.web.service.settings import variable
from causal_tracer.web.service.tracing import TraceService

SHIPPED_STUDIES = Path(__file__).parents[1] / "stored" / "studies"
NO_OTHER_STUDY = -1
"""The value of the choice "no other study"."""

Opened = tuple[str, Mapping[str, go.Figure], Mapping[str, tuple[str, str]]]
"""A study's findings as HTML, its figures by name, and each one's title and caption."""

_STUDY_FILES = (".json", ".jsonl", ".parquet")
_GRID = "rgba(128,128,128,.25)"
_CLEAR = "rgba(0,0,0,0)"


@dataclass(frozen=True)
class StudyList:
    """The studies that the app shows.

    Attributes:
        studies: Those that come with the app, then those of the operator's folder.
    """

    studies: tuple[StoredStudy, ...] = ()

    @classmethod
    def of(cls, folder: str = "") -> StudyList:
        """Find the studies that come with the app, and those of a folder, which holds one or several ("" for none)."""
        own = stored_studies(Path(folder)) if folder else ()
        return cls(tuple(study for study in (*stored_studies(SHIPPED_STUDIES), *own) if study.traced))

    def choices(self) -> list[tuple[str, int]]:
        """Return the studies by number, as a list to choose from."""
        return [(self._title(study), number) for number, study in enumerate(self.studies)]

    def show(self, number: int | None, other: int | None, figure: str | None) -> tuple[Any, Any, str, str]:
        """Return the list of figures, the chosen one, its caption and the study's findings, the last two as HTML."""
        try:
            findings, figures, words = opened(*self._folders(number, other))
        except CausalTracerError as error:
            return gr.skip(), gr.skip(), message_html(str(error)), gr.skip()
        name = figure if figure and figure in figures else next(iter(figures))
        listed = gr.Dropdown(choices=[(words[each][0], each) for each in figures], value=name)
        return listed, _with_page_background(figures[name]), f'<p class="ct-made">{words[name][1]}</p>', findings

    def write_report(self, number: int | None, other: int | None) -> tuple[str | None, Any]:
        """Return the report as a file to download, or a message if it could not be made."""
        try:
            study, *others = map(StoredStudy.open, self._folders(number, other))
            page = report_page(study, others)
        except CausalTracerError as error:
            return None, message_html(str(error))
        path = Path(tempfile.mkdtemp(prefix="causal-tracer-")) / f"study-{study.folder.name}.html"
        write_atomically(path, page)
        return str(path), gr.skip()

    def _title(self, study: StoredStudy) -> str:
        title = _title(study)
        alike = sum(_title(its) == title for its in self.studies)
        return title if alike == 1 else f"{title} ({study.folder.name})"

    def _folders(self, number: int | None, other: int | None) -> list[Path]:
        """Return the folders of a study and of the one that it is compared with.

        Raises:
            StudyError: There is no study with this number, or studies cannot be read here.
        """
        require_pyarrow()
        if not self.studies:
            raise StudyError(
                "There is no study to show. Run `causal-tracer study --out FOLDER`, and set "
                f"{variable('studies_folder')} to that folder."
            )
        folders = []
        for each in [number] if other in (None, NO_OTHER_STUDY, number) else [number, other]:
            if each is None or not 0 <= each < len(self.studies):
                raise StudyError(f"There is no study {each} of {len(self.studies)}. Choose one of the list.")
            folders.append(self.studies[each].folder)
        return folders


def studies_tab(service: TraceService) -> None:
    """Lay out and wire the tab. The studies' records are read when the tab is opened."""
    study_list = StudyList.of(service.settings.studies_folder)
    with gr.Tab(TAB_TITLES["studies"], id="studies") as tab:
        gr.Markdown(STUDIES, elem_classes="ct-help")
        with gr.Row():
            study = gr.Dropdown(study_list.choices(), value=0, label="Study", elem_id="ct-study", min_width=280)
            others = [("no other study", NO_OTHER_STUDY), *study_list.choices()]
            other = gr.Dropdown(
                others, value=NO_OTHER_STUDY, label="Compare with", elem_id="ct-study-other", min_width=280
            )
        figure = gr.Dropdown([], label="Figure", elem_id="ct-study-figure")
        plot = gr.Plot(
            _empty_figure(),
            label="Figure",
            show_label=False,
            elem_id="ct-study-plot",
            elem_classes="ct-map",
        )
        caption = gr.HTML(elem_id="ct-study-caption")
        findings = gr.HTML(elem_id="ct-study-findings", elem_classes="ct-findings")
        report = gr.Button("Report (HTML)", size="sm", scale=0, min_width=160, elem_id="ct-study-report")
        saved = gr.File(visible=False)
    gr.on(
        [tab.select, study.input, other.input, figure.input],
        study_list.show,
        inputs=[study, other, figure],
        outputs=[figure, plot, caption, findings],
        **AT_ONCE,
    )
    report.click(
        study_list.write_report,
        inputs=[study, other],
        outputs=[saved, caption],
        **PAGE_EVENT,
    ).success(None, inputs=[saved], js=SAVE, api_visibility="private")


def opened(*folders: Path) -> Opened:
    """Return a study's findings and figures, or the figures that compare two studies; cached until a file changes.

    Raises:
        StudyError: A study cannot be read, or two have no kind of map in common.
    """
    return _open_once(tuple((folder, _changed_at(folder)) for folder in folders))


@lru_cache(maxsize=16)
def _open_once(folders: tuple[tuple[Path, tuple[float, ...]], ...]) -> Opened:
    studies = [StoredStudy.open(folder) for folder, _ in folders]
    figures = study_figures(studies[0].effects) if len(studies) == 1 else comparison_figures(named_effects(studies))
    if not figures:
        raise StudyError("These two studies have no kind of map in common. Choose another one to compare with.")
    words = {name: title_and_caption(name, studies[0].settings.request.direction) for name in figures}
    return findings_html(studies[0]), figures, words


def _title(study: StoredStudy) -> str:
    pairs = ", second prompts" if study.settings.pairs else ""
    return f"{model_title(study.model)}: {study.traced} facts{pairs}"


def _changed_at(folder: Path) -> tuple[float, ...]:
    """Return when a study's files were last written."""
    return tuple(path.stat().st_mtime for path in sorted(folder.rglob("*.*")) if path.suffix in _STUDY_FILES)


def _empty_figure() -> go.Figure:
    """Return an empty figure: Gradio's own picture of an empty plot breaks an accessibility rule."""
    hidden = {"visible": False}
    return go.Figure(layout={"paper_bgcolor": _CLEAR, "plot_bgcolor": _CLEAR, "xaxis": hidden, "yaxis": hidden})


def _with_page_background(figure: go.Figure) -> go.Figure:
    """Return a copy of a figure with the page's own background, light or dark; the cached figure stays unchanged."""
    shown = go.Figure(figure)
    shown.update_layout(paper_bgcolor=_CLEAR, plot_bgcolor=_CLEAR)
    shown.update_xaxes(gridcolor=_GRID, zerolinecolor=_GRID)
    shown.update_yaxes(gridcolor=_GRID, zerolinecolor=_GRID)
    if shown.data[0].type == "heatmap":
        scale_above(shown)
        shown.update_traces(colorbar={"nticks": 4, "len": 1})
        shown.update_layout(margin={"t": 50})
    return in_the_page(shown)
