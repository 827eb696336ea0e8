"""A tab's result after its run: one cell in detail, the map redrawn, files to download."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from causal_tracer.arguments import choice
from causal_tracer.errors import CausalTracerError, ResultLostError
from causal_tracer.request.sites import KINDS, SITES, SiteName
from causal_tracer.web.page.detail import cell_details, detail_html
from causal_tracer.web.page.downloads import download
from causal_tracer.web.page.summary import message_html
from causal_tracer.web.service.figures import Flows, app_figures
from causal_tracer.web.service.stored import stored_map

TAB_TITLES: Mapping[str, str] = {
    **{kind: SITES[kind].title for kind in KINDS},
    "all": "All three",
    "head": SITES["head"].title,
    "knockout": "Knockout",
    "span_knockout": "Spans",
    "lens": "Lens",
    "patch": "Patch",
    "compare": "Compare",
    "studies": "Studies",
}

MAP_TABS = (*KINDS, "all", "head", "knockout", "span_knockout")
"""The tabs of maps: one for each site, and one of all three kinds."""

TITLED: Mapping[str, str] = {title: name for name, title in TAB_TITLES.items()}
"""The names of tabs by their titles, which Gradio gives to the event of a selected tab."""

_LOST = (
    "The app no longer has this result: it was restarted, or the page was open for too long. Press Run again, or open "
    "the result's link: a finished result is usually still stored."
)


def stored_flows(tab: str) -> Flows:
    """Return the stored maps that a tab shows before anything was run."""
    return {kind: stored_map(kind) for kind in (KINDS if tab == "all" else (SITES[tab].name,))}


def shown_flows(tab: str, flows: Flows | None, has_result: bool) -> Flows:
    """Return the maps that a tab shows: those of its last result, or the stored ones.

    Args:
        tab: The tab.
        flows: The result that the app keeps for the page.
        has_result: Whether the page shows a result. The browser keeps this even when the app has lost the result.

    Raises:
        ResultLostError: The app has lost the result: after a day, a restart, or many other pages.
    """
    if flows:
        return flows
    if has_result:
        raise ResultLostError(_LOST)
    return stored_flows(tab)


@dataclass(frozen=True)
class CellChoice:
    """Handles clicks on a map and in its table. A class, since Gradio passes events only to methods with type hints."""

    tab: str
    kind: SiteName

    def show(self, event: gr.SelectData, flows: Flows | None, has_result: bool) -> str:
        """Return the chosen cell in detail, as HTML."""
        position, layer = event.index
        try:
            flow = shown_flows(self.tab, flows, has_result)[self.kind]
            return detail_html(cell_details(flow, int(position), int(layer)))
        except CausalTracerError as error:
            return message_html(str(error))


def redraw(tab: str, flows: Flows | None, has_result: bool, write_top_tokens: bool) -> tuple[Any, Any]:
    """Return a tab's map with or without the most probable tokens in its cells, and a message if the map is lost."""
    try:
        (figure,) = app_figures(shown_flows(tab, flows, has_result), write_top_tokens=write_top_tokens)
    except CausalTracerError as error:
        return gr.skip(), message_html(str(error))
    return figure, gr.skip()


def write_chosen_file(event: gr.SelectData, *results: Any) -> tuple[str | None, str]:
    """Return the file that a button asks for (`download_buttons`), as `write_file` does.

    Args:
        event: Names the tab and the format.
        results: For each of `MAP_TABS`, the arguments of `write_file` from `kind` on.
    """
    try:
        tab = choice("tab", event.index, MAP_TABS)
    except CausalTracerError as error:
        return None, message_html(str(error))
    each = len(results) // len(MAP_TABS)
    at = each * MAP_TABS.index(tab)
    return write_file(tab, str(event.value), *results[at : at + each])


def write_file(
    tab: str, format: str, kind: str, flows: Flows | None, has_result: bool, link: str = ""
) -> tuple[str | None, str]:
    """Return a file of a result to download, and a message if it could not be made.

    The file names the link only if that is an http(s) address.
    """
    try:
        shown = shown_flows(tab, flows, has_result)
        flow = next((flow for each, flow in shown.items() if each == kind), next(iter(shown.values())))
        folder = Path(tempfile.mkdtemp(prefix="causal-tracer-"))
        address = link if link.startswith(("http://", "https://")) else ""
        return str(download(flow, format, folder, address)), message_html()
    except CausalTracerError as error:
        return None, message_html(str(error))
