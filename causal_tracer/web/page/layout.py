"""The layout of the page: the introduction, then the tool."""

from __future__ import annotations

from functools import partial
from html import escape
from typing import Any

import gradio as gr

from causal_tracer.request.sites import SITES
from causal_tracer.web.blocks import AppBlocks
from causal_tracer.web.page import explore, handlers
from causal_tracer.web.page.assets import static_text
from causal_tracer.web.page.inputs_layout import AT_ONCE, IDLE_SECONDS, Inputs, input_fields, model_field
from causal_tracer.web.page.lens_tab import lens_tab
from causal_tracer.web.page.patch_tab import patch_tab
from causal_tracer.web.page.story import story_html
from causal_tracer.web.page.studies import studies_tab
from causal_tracer.web.page.tab_layout import map_tab
from causal_tracer.web.page.texts import HOW_TO_READ, TITLE
from causal_tracer.web.service.stored import stored_map
from causal_tracer.web.service.tracing import TraceService


def build_page(service: TraceService) -> gr.Blocks:
    """Lay out and wire the page. Nothing is computed or loaded: what is shown at first is stored."""
    demo: gr.Blocks
    with AppBlocks(title=f"{TITLE}: where does a language model keep a fact?", analytics_enabled=False) as demo:
        with gr.Row(elem_id="ct-top", equal_height=True):
            gr.HTML(f"<h1>{escape(TITLE)}</h1>", elem_classes="ct-header", elem_id="ct-title")
            model, line = model_field(service)
        gr.HTML(story_html(stored_map("hidden")), elem_id="ct-story", js_on_load=static_text("story.js"))
        shown = gr.State("hidden")
        history = gr.State((), time_to_live=IDLE_SECONDS)
        with gr.Row(elem_id="ct-tool", equal_height=False):
            with gr.Column(elem_id="ct-setup", scale=0, min_width=340):
                inputs, inspected = input_fields(service, demo, model, line)
            with gr.Column(elem_id="ct-results", scale=1, min_width=320):
                with gr.Tabs(elem_id="ct-tabs") as tabs:
                    maps = {name: map_tab(service, name, inputs, history, shown) for name in explore.MAP_TABS}
                    lens_tab(service, inputs, inspected)
                    patch_tab(service, inputs)
                    _compare_tab(history)
                    studies_tab(service)
                _open_saved(service, history, [*(part for name in SITES for part in maps[name]), tabs, history])
                _use_from_python(service, inputs, inspected, shown)
                with gr.Accordion("How to read this", open=False):
                    gr.Markdown(HOW_TO_READ, elem_classes="ct-help")
        demo.load(
            handlers.PageEvents(service).open_link,
            outputs=[*inputs.values, inputs.picked, tabs, inputs.link_message],
            **AT_ONCE,
        )
    return demo


def _compare_tab(history: gr.State) -> None:
    flows = explore.choices(())
    start = explore.compare((), 0, 1)
    with gr.Tab(explore.TAB_TITLES["compare"], id="compare") as tab:
        with gr.Row():
            first = gr.Dropdown(flows, value=0, label="A", elem_id="ct-compare-first", min_width=280)
            second = gr.Dropdown(flows, value=1, label="B", elem_id="ct-compare-second", min_width=280)
        figure = gr.Plot(
            start[0], label="Difference B − A", show_label=False, elem_id="ct-map-compare", elem_classes="ct-map"
        )
        words = gr.HTML(start[2], elem_id="ct-compare-words")
        table = gr.HTML(start[1], elem_id="ct-table-compare", js_on_load=static_text("table_stays.js"))
    gr.on([tab.select, history.change], explore.offer, inputs=[history], outputs=[first, second], **AT_ONCE)
    gr.on(
        [first.change, second.change],
        explore.compare,
        inputs=[history, first, second],
        outputs=[figure, table, words],
        **AT_ONCE,
    )


def _open_saved(service: TraceService, history: gr.State, outputs: list[Any]) -> None:
    with gr.Row():
        upload = gr.UploadButton(
            "Open a saved result (JSON)", file_types=[".json"], size="sm", scale=0, min_width=240, elem_id="ct-upload"
        )
    upload.upload(
        handlers.PageEvents(service).open_file,
        inputs=[upload, history],
        outputs=outputs,
        show_progress="hidden",
        api_visibility="private",
    )


def _use_from_python(service: TraceService, inputs: Inputs, inspected: Any, shown: gr.State) -> None:
    with gr.Accordion("Use from Python", open=False, elem_id="ct-python") as python:
        lines = gr.Code("", language="python", interactive=False, show_label=False, elem_id="ct-python-lines")
    # After the look at the fields and not on their changes: in Gradio 6.31, two events of one trigger set each other
    # off without end if both wait for the last change.
    for event in (python.expand, inspected.then):
        event(
            partial(handlers.python_lines, service),
            inputs=[shown, inputs.picked, *inputs.values],
            outputs=[lines],
            trigger_mode="multiple",
            **AT_ONCE,
        )
