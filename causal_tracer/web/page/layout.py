"""The layout of the page: the introduction, then the tool."""

from __future__ import annotations

from functools import partial
from html import escape

import gradio as gr

from causal_tracer.web.blocks import AppBlocks
from causal_tracer.web.page import explore, handlers
from causal_tracer.web.page.assets import static_text
from causal_tracer.web.page.comparing import compare_tab
from causal_tracer.web.page.download_buttons import wire_downloads
from causal_tracer.web.page.gallery import gallery_button, wire_gallery
from causal_tracer.web.page.history_layout import history_strip, wire_history
from causal_tracer.web.page.inputs_layout import AT_ONCE, Inputs, follower, input_fields, model_field
from causal_tracer.web.page.lens_tab import lens_tab, wire_lens_tab
from causal_tracer.web.page.patch_tab import patch_tab
from causal_tracer.web.page.prompt_lens import wire_prompt_lens
from causal_tracer.web.page.story import story_html
from causal_tracer.web.page.studies import studies_tab
from causal_tracer.web.page.tab_layout import map_tab
from causal_tracer.web.page.texts import HOW_TO_READ, TITLE
from causal_tracer.web.service.stored import stored_map
from causal_tracer.web.service.tracing import TraceService


def build_page(service: TraceService) -> gr.Blocks:
    """Lay out and wire the page. Nothing is computed or loaded here: the page opens with stored results."""
    demo: gr.Blocks
    with AppBlocks(title=f"{TITLE}: where does a language model keep a fact?", analytics_enabled=False) as demo:
        with gr.Row(elem_id="ct-top", equal_height=True):
            gr.HTML(
                f"<h1>{escape(TITLE)}</h1>",
                elem_classes="ct-header",
                elem_id="ct-title",
                js_on_load=static_text("legend_press.js"),
            )
            model, line = model_field(service)
        with gr.Row(elem_id="ct-intro"):
            gr.HTML(story_html(stored_map("hidden")), elem_id="ct-story", js_on_load=static_text("story.js"))
            gallery = gallery_button()
        shown = gr.State("hidden")
        history = history_strip(service, {name: tuple(explore.stored_flows(name)) for name in explore.MAP_TABS})
        with gr.Row(elem_id="ct-tool", equal_height=False):
            with gr.Column(elem_id="ct-setup", scale=0, min_width=340):
                inputs, inspected = input_fields(service, demo, model, line)
            with gr.Column(elem_id="ct-results", scale=1, min_width=320):
                with gr.Tabs(elem_id="ct-tabs") as tabs:
                    maps = [map_tab(service, name, inputs, history) for name in explore.MAP_TABS]
                    lens = lens_tab()
                    patch = patch_tab(service, inputs, history)
                    compare_tab(history, tabs)
                    studies_tab(service)
                gr.on([tab.page.select for tab in maps], handlers.selected_tab, outputs=[shown], **AT_ONCE)
                results = [part for tab in maps for part in tab.downloaded]
                wire_downloads([tab.downloads for tab in maps], explore.write_chosen_file, results, inputs.message)
                wire_lens_tab(service, inputs, lens)
                history.lay_out()
                upload = gr.UploadButton(
                    "Open a saved result (JSON)",
                    file_types=[".json"],
                    size="sm",
                    scale=0,
                    min_width=240,
                    elem_id="ct-upload",
                )
                shown_parts = [part for tab in maps for part in tab.outputs]
                opened = wire_history(demo, history, inputs, shown_parts, patch, tabs, upload)
                wire_prompt_lens(service, inputs, [inspected, opened], maps)
                wire_gallery(gallery, history.events, inputs, shown_parts, tabs)
                _use_from_python(service, inputs, shown)
                with gr.Accordion("How to read this", open=False):
                    gr.Markdown(HOW_TO_READ, elem_classes="ct-help")
        demo.load(
            handlers.PageEvents(service).open_link,
            outputs=[*inputs.values, inputs.picked, tabs, inputs.link_message],
            **AT_ONCE,
        )
    return demo


def _use_from_python(service: TraceService, inputs: Inputs, shown: gr.State) -> None:
    with gr.Accordion("Use from Python or a shell", open=False, elem_id="ct-python") as python:
        hint = follower("The same request, as Python lines and as a command.")
        lines = gr.Code("", language="python", interactive=False, show_label=False, elem_id="ct-python-lines")
        command = gr.Code("", language="shell", interactive=False, show_label=False, elem_id="ct-command-line")
    gr.on(
        [python.expand, hint.input],
        partial(handlers.program_lines, service),
        inputs=[shown, inputs.picked, *inputs.values],
        outputs=[lines, command],
        trigger_mode="multiple",
        **AT_ONCE,
    )
