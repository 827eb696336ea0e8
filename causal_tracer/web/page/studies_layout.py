"""The tab of stored studies."""

from __future__ import annotations

import gradio as gr

from causal_tracer.web.page.explore import TAB_TITLES
from causal_tracer.web.page.inputs_layout import AT_ONCE
from causal_tracer.web.page.studies import ALONE, StudyShelf
from causal_tracer.web.page.tab_layout import SAVE
from causal_tracer.web.page.texts import STUDIES
from causal_tracer.web.service.tracing import TraceService


def studies_tab(service: TraceService) -> None:
    """Lay out and wire the tab. Nothing is read before somebody opens it."""
    shelf = StudyShelf.of(service.settings.studies_folder)
    with gr.Tab(TAB_TITLES["studies"], id="studies") as tab:
        gr.Markdown(STUDIES, elem_classes="ct-help")
        with gr.Row():
            study = gr.Dropdown(shelf.choices(), value=0, label="Study", elem_id="ct-study", min_width=280)
            other = gr.Dropdown(shelf.beside(), value=ALONE, label="Beside it", elem_id="ct-study-other", min_width=280)
        figure = gr.Dropdown([], label="Figure", elem_id="ct-study-figure")
        plot = gr.Plot(label="Figure", show_label=False, elem_id="ct-study-plot", elem_classes="ct-map")
        caption = gr.HTML(elem_id="ct-study-caption")
        findings = gr.HTML(elem_id="ct-study-findings", elem_classes="ct-findings")
        report = gr.Button("Report (HTML)", size="sm", scale=0, min_width=160, elem_id="ct-study-report")
        saved = gr.File(visible=False)
    gr.on(
        [tab.select, study.input, other.input, figure.input],
        shelf.show,
        inputs=[study, other, figure],
        outputs=[figure, plot, caption, findings],
        **AT_ONCE,
    )
    report.click(
        shelf.write_report,
        inputs=[study, other],
        outputs=[saved, caption],
        show_progress="hidden",
        api_visibility="private",
    ).success(None, inputs=[saved], js=SAVE, api_visibility="private")
