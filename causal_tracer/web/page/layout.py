"""The layout of the page: the introduction, then the tool."""

from __future__ import annotations

from functools import partial
from html import escape
from typing import Any

import gradio as gr

from causal_tracer.request.sites import KINDS
from causal_tracer.web.page import explore, handlers
from causal_tracer.web.page.assets import static_text
from causal_tracer.web.page.history_layout import compare_tab, history_strip, wire_history
from causal_tracer.web.page.inputs_layout import AT_ONCE, Inputs, input_fields
from causal_tracer.web.page.story import story_html
from causal_tracer.web.page.studies import studies_tab
from causal_tracer.web.page.tab_layout import map_tab
from causal_tracer.web.page.texts import HOW_TO_READ, LEAD, TITLE
from causal_tracer.web.service.stored import stored_map
from causal_tracer.web.service.tracing import TraceService


def build_page(service: TraceService) -> gr.Blocks:
    """Lay out and wire the page. Nothing is computed or loaded: what is shown at first is stored."""
    demo: gr.Blocks
    with gr.Blocks(title=f"{TITLE}: where does a language model keep a fact?", analytics_enabled=False) as demo:
        gr.HTML(f"<h1>{escape(TITLE)}</h1><p>{escape(LEAD)}</p>", elem_classes="ct-header")
        gr.HTML(story_html(stored_map("hidden")), elem_id="ct-story", js_on_load=static_text("story.js"))
        gr.HTML("<h2>Trace a prompt</h2>", elem_id="ct-tool", elem_classes="ct-header")
        inputs, inspected = input_fields(service, demo)
        shown = gr.State("hidden")
        names = (*KINDS, "all")
        history = history_strip(service, {name: tuple(explore.stored_flows(name)) for name in names})
        with gr.Tabs(elem_id="ct-tabs") as tabs:
            maps = [map_tab(service, name, inputs, history, shown) for name in names]
            compare_tab(history, tabs)
            studies_tab(service)
        history.lay_out()
        upload = gr.UploadButton(
            "Open a saved result (JSON)", file_types=[".json"], size="sm", scale=0, min_width=240, elem_id="ct-upload"
        )
        wire_history(demo, history, inputs, [output for tab in maps for output in tab], tabs, upload)
        _use_from_python(service, inputs, inspected, shown)
        with gr.Accordion("How to read this", open=False):
            gr.Markdown(HOW_TO_READ, elem_classes="ct-help")
        demo.load(
            handlers.PageEvents(service).open_link,
            outputs=[*inputs.values, inputs.picked, tabs, inputs.link_message],
            **AT_ONCE,
        )
    return demo


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
