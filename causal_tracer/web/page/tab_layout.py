"""A tab of maps: Run and Stop, the maps, their numbers and texts, links and files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
import plotly.graph_objects as go

from causal_tracer.request.sites import SITES, SiteName
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.web.page import explore, handlers
from causal_tracer.web.page.assets import static_text
from causal_tracer.web.page.cells import table_html
from causal_tracer.web.page.detail import NO_CELL
from causal_tracer.web.page.download_buttons import download_buttons
from causal_tracer.web.page.downloads import FORMATS
from causal_tracer.web.page.history_layout import HistoryStrip
from causal_tracer.web.page.inputs_layout import AT_ONCE, IDLE_SECONDS, Inputs
from causal_tracer.web.page.summary import details_html, status_html, warnings_html
from causal_tracer.web.page.texts import NO_LINK_YET
from causal_tracer.web.page.views import map_id, numbers
from causal_tracer.web.service.figures import app_figures
from causal_tracer.web.service.tracing import TraceService

MODEL_QUEUE = "model"


@dataclass(frozen=True, eq=False)
class MapTab:
    """The components of one tab of maps.

    Attributes:
        page: The tab.
        run: Its Run button.
        running: The event of its run.
        flows: Its result, which the app keeps for each open page.
        lens: The logit lens, shown instead of the map while the map is of another prompt.
        outputs: The components that change, in the order of `TabView.outputs`.
        downloads: The buttons that download the result.
        downloaded: The components that hold the result to download, in the order of `explore.write_file`.
    """

    page: gr.Tab
    run: gr.Button
    running: Any
    flows: gr.State
    lens: gr.HTML
    outputs: list[Any]
    downloads: gr.HTML
    downloaded: list[Any]


def map_tab(service: TraceService, name: str, inputs: Inputs, history: HistoryStrip) -> MapTab:
    """Lay out and wire a tab (`explore.MAP_TABS`)."""
    stored = explore.stored_flows(name)
    kinds = tuple(stored)
    with gr.Tab(explore.TAB_TITLES[name], id=name) as page:
        # Inside the tab: Gradio counts components between tabs as tabs.
        flows, finished = (gr.State(None, time_to_live=IDLE_SECONDS) for _ in range(2))
        # Whether a result is shown. The browser keeps this even when the app has lost the result.
        has_result = gr.Checkbox(False, visible=False)
        with gr.Row(elem_classes="ct-run", equal_height=True):
            run = gr.Button("Run", variant="primary", scale=0, min_width=120, elem_id=f"ct-run-{name}")
            stop = gr.Button("Stop", interactive=False, scale=0, min_width=90, elem_id=f"ct-stop-{name}")
            line = status_html("A stored map. Run computes the map of your prompt.")
            status = gr.HTML(line, scale=1, min_width=200, elem_id=f"ct-status-{name}")
        script = static_text("lens_grid.js")
        lens = gr.HTML("", elem_id=f"ct-prompt-lens-{name}", elem_classes="ct-prompt-lens", js_on_load=script)
        above = gr.HTML(numbers(stored), elem_id=f"ct-numbers-{name}")
        with gr.Row(equal_height=False, elem_classes="ct-shown"):
            figures = [
                _map(name, kind, figure, titled=len(kinds) > 1)
                for kind, figure in zip(kinds, app_figures(stored), strict=True)
            ]
            with gr.Column(scale=0 if len(kinds) == 1 else 1, min_width=280, elem_classes="ct-beside"):
                cell = gr.HTML(NO_CELL, elem_id=f"ct-cell-{name}")
        warnings = gr.HTML(warnings_html(*stored.values()), elem_id=f"ct-doubts-{name}")
        label = "Write the most probable next token into each cell"
        write = gr.Checkbox(False, label=label, elem_id=f"ct-write-{name}", visible=len(kinds) == 1)
        tables = [_table(name, kind, flow) for kind, flow in stored.items()]
        made_of = details_html(stored[kinds[0]], origin="a stored result")
        details = gr.HTML(made_of, elem_id=f"ct-details-{name}")
        link, which, downloads = _sharing(name, kinds)
    outputs = [
        inputs.message,
        status,
        above,
        warnings,
        cell,
        details,
        flows,
        has_result,
        link,
        lens,
        finished,
        *figures,
        *tables,
        run,
        stop,
    ]
    for kind, table in zip(kinds, tables, strict=True):
        table.select(explore.CellChoice(name, kind).show, inputs=[flows, has_result], outputs=[cell], **AT_ONCE)
    if len(kinds) == 1:
        redrawn = [*figures, inputs.message]
        write.input(partial(explore.redraw, name), inputs=[flows, has_result, write], outputs=redrawn, **AT_ONCE)
    buttons = history.events.runs[name]
    running = _run(handlers.MapRun(service, name, len(kinds), buttons), outputs, [inputs.picked, write, *inputs.values])
    history.follow(running, finished, flows)
    return MapTab(page, run, running, flows, lens, outputs, downloads, [which, flows, has_result, link])


def _map(name: str, kind: SiteName, figure: go.Figure, *, titled: bool) -> gr.Plot:
    title = SITES[kind].title
    with gr.Column(min_width=300):
        if titled:
            gr.HTML(f"<h3>{title}</h3>")
        return gr.Plot(
            figure, label=f"Map: {title}", show_label=False, elem_id=map_id(name, kind), elem_classes="ct-map"
        )


def _table(name: str, kind: SiteName, flow: HiddenFlow) -> gr.HTML:
    return gr.HTML(
        table_html(flow, map_id(name, kind)),
        elem_id=f"ct-table-{name}-{kind}",
        js_on_load=static_text("click_bridge.js") + static_text("table_stays.js"),
    )


def _run(tab: handlers.MapRun, outputs: list[Any], inputs: list[Any]) -> Any:
    """Wire Run and Stop; return the event of the run."""
    _message, status, *_, run, stop = outputs
    buttons = tab.buttons
    running = run.click(buttons.begin, outputs=outputs, **AT_ONCE).then(
        tab.run,
        inputs=inputs,
        outputs=outputs,
        # The usual overlay would hide the map while it fills in.
        show_progress="minimal",
        show_progress_on=[status],
        concurrency_id=MODEL_QUEUE,
        concurrency_limit=tab.service.settings.workers,
        api_visibility="private",
    )
    running.failure(buttons.ended, outputs=outputs, **AT_ONCE)
    stop.click(buttons.stop, outputs=outputs, cancels=[running], **AT_ONCE)
    return running


def _sharing(name: str, kinds: tuple[SiteName, ...]) -> tuple[gr.Textbox, gr.Radio, gr.HTML]:
    """Lay out the link, the choice of a map to download, and the buttons that download it."""
    with gr.Accordion("Share and download", open=False, elem_id=f"ct-share-{name}"):
        link = gr.Textbox(
            NO_LINK_YET,
            label="Link to this result",
            info="It opens the page with the same prompt, model, settings and seed.",
            interactive=False,
            buttons=["copy"],
            max_lines=6,
            elem_id=f"ct-link-{name}",
        )
        which = gr.Radio(
            [(SITES[kind].title, kind) for kind in kinds],
            value=kinds[0],
            label="Which map",
            visible=len(kinds) > 1,
            elem_id=f"ct-which-{name}",
        )
        return link, which, download_buttons(name, FORMATS)
