"""Rows of buttons that download results: one component and one event for all formats and tabs.

When the page opens, Gradio's script goes through all events for each component.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from causal_tracer.web.page.assets import static_text
from causal_tracer.web.page.inputs_layout import PAGE_EVENT

SAVE = """file => { if (!file) return; const a = document.createElement('a'); a.href = file.url;
a.download = file.orig_name || file.path.split('/').pop(); document.body.append(a); a.click(); a.remove(); }"""
"""The script that saves a file through the browser: it needs a URL, which Gradio gives to a hidden file component."""


def download_buttons(tab: str, formats: Sequence[str]) -> gr.HTML:
    """Lay out a row of buttons, one for each format in which a tab's result can be downloaded."""
    buttons = "".join(
        f'<button type="button" id="ct-{format}-{tab}" data-format="{format}">{format.upper()}</button>'
        for format in formats
    )
    html = f'<div class="ct-downloads" role="group" aria-label="Download" data-downloads="{tab}">{buttons}</div>'
    return gr.HTML(html, js_on_load=static_text("download_buttons.js"))


def wire_downloads(rows: Sequence[gr.HTML], write: Callable[..., Any], inputs: list[Any], problem: gr.HTML) -> None:
    """Wire rows of buttons.

    Args:
        rows: The rows.
        write: Called with the event, whose index is the tab and whose value is the format, and with the inputs.
            Returns the file's path or None, and the value of `problem`.
        inputs: The components that hold the results.
        problem: Shows why there is no file.
    """
    saved = gr.File(visible=False)
    gr.on([row.select for row in rows], write, inputs=inputs, outputs=[saved, problem], **PAGE_EVENT).success(
        None, inputs=[saved], js=SAVE, api_visibility="private"
    )
