"""Finished results: one cell in detail, files to download, a file opened, two results compared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

import gradio as gr
import plotly.graph_objects as go

from causal_tracer.errors import CausalTracerError, ResultLostError
from causal_tracer.plots.difference import plot_difference_heatmap
from causal_tracer.request.sites import KINDS, SITES, SiteName, require_site
from causal_tracer.results.comparison import FlowDifference, compare_flows
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.words import display_token, effect_label, map_title, metric_of, patched_word, runs_line
from causal_tracer.web.page.cells import difference_table_html
from causal_tracer.web.page.detail import cell_details, detail_html
from causal_tracer.web.page.downloads import download, open_result
from causal_tracer.web.page.summary import message_html, recipe, status_html
from causal_tracer.web.page.views import TabView, maps_view
from causal_tracer.web.service.figures import Flows, app_figures, in_the_page, scale_above
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

# Results that one session may compare; earlier ones are forgotten.
_REMEMBERED = 12

_LOST = (
    "The app no longer has this result: it was restarted, or the page was open for too long. Press Run again, or open "
    "the result's link; what was finished usually comes back at once."
)

History = tuple[HiddenFlow, ...]


def stored_flows(tab: str) -> Flows:
    """Return the stored maps that a tab shows before anything was run."""
    return {kind: stored_map(kind) for kind in (KINDS if tab == "all" else (SITES[tab].name,))}


def shown_flows(tab: str, flows: Flows | None, made: bool) -> Flows:
    """Return the maps that a tab shows: those of its last result, or the stored ones.

    Args:
        tab: The tab.
        flows: The result that the app keeps for the page.
        made: Whether the page shows a result; the page knows it after the app has lost the result.

    Raises:
        ResultLostError: The app has lost the result: after a day, a restart, or many other pages.
    """
    if flows:
        return flows
    if made:
        raise ResultLostError(_LOST)
    return stored_flows(tab)


@dataclass(frozen=True)
class CellChoice:
    """A click on a map, or a choice in its table. A class: Gradio passes events only to functions with type hints."""

    tab: str
    kind: SiteName

    def show(self, event: gr.SelectData, flows: Flows | None, made: bool) -> str:
        """Return the chosen cell in detail, as HTML."""
        position, layer = event.index
        try:
            flow = shown_flows(self.tab, flows, made)[self.kind]
            return detail_html(cell_details(flow, int(position), int(layer)))
        except CausalTracerError as error:
            return message_html(str(error))


def redraw(tab: str, flows: Flows | None, made: bool, write_top_tokens: bool) -> tuple[Any, Any]:
    """Return the map of a tab with or without the most probable tokens in its cells, and a message if it is lost."""
    try:
        (figure,) = app_figures(shown_flows(tab, flows, made), write_top_tokens=write_top_tokens)
    except CausalTracerError as error:
        return gr.skip(), message_html(str(error))
    return figure, gr.skip()


def write_file(tab: str, format: str, kind: str, flows: Flows | None, made: bool) -> tuple[str | None, str]:
    """Return a file of a result to download, and a message if it could not be made."""
    try:
        shown = shown_flows(tab, flows, made)
        flow = next((flow for each, flow in shown.items() if each == kind), next(iter(shown.values())))
        return str(download(flow, format, Path(tempfile.mkdtemp(prefix="causal-tracer-")))), message_html()
    except CausalTracerError as error:
        return None, message_html(str(error))


def open_file(path: str, history: History, link: Callable[[Flows], str]) -> tuple[Any, ...]:
    """Show a saved result in its tab: return the values of the tab of each site, the tab to show, and the history.

    Args:
        path: The file.
        history: The session's results.
        link: Returns the link that reproduces maps, or why there is none.
    """
    selected: Any = gr.skip()
    views: dict[str, TabView]
    try:
        flow = open_result(Path(path))
        shown = require_site(flow.kind)
        flows, status = {shown: flow}, status_html("Opened from a file.")
        views = {shown: maps_view(shown, flows, status=status, origin="opened from a file", link=link(flows))}
        selected, history = gr.Tabs(selected=shown), remembered(history, flows)
    except CausalTracerError as error:
        views = {"hidden": TabView(message=message_html(str(error)))}
    outputs = (views.get(name, TabView()).outputs(1) for name in SITES)
    return (*chain.from_iterable(outputs), selected, history)


def remembered(history: History, flows: Flows | None) -> History:
    """Return the session's results with these added, where they are new."""
    new = [flow for flow in (flows or {}).values() if all(flow is not kept for kept in history)]
    return (*history, *new)[-_REMEMBERED:]


def choices(history: History) -> list[tuple[str, int]]:
    """Return the results that can be compared: the stored ones first, then the session's."""
    return [(f"{number + 1} · {_title(flow)}", number) for number, flow in enumerate(_all(history))]


def offer(history: History) -> tuple[Any, Any]:
    """Return both lists of the comparison, with the session's results added."""
    listed = choices(history)
    return gr.Dropdown(choices=listed), gr.Dropdown(choices=listed)


def compare(history: History, first: int | None, second: int | None) -> tuple[Any, Any, str]:
    """Return the map of a difference, the same as a table, and what is compared."""
    flows = _all(history)
    if first is None or second is None:
        return gr.skip(), gr.skip(), message_html("Choose two results.")
    try:
        if max(first, second) >= len(flows):
            raise ResultLostError(_LOST)
        difference = compare_flows(flows[first], flows[second])
    except CausalTracerError as error:
        return gr.skip(), gr.skip(), message_html(str(error))
    return difference_figure(difference), difference_table_html(difference), difference_html(difference)


def difference_figure(difference: FlowDifference) -> go.Figure:
    """Draw a difference for the app."""
    figure = plot_difference_heatmap(difference, title="", show=False)
    scale_above(figure)
    # On a phone, more numbers would be rotated and overlap the map.
    figure.update_traces(colorbar={"nticks": 4, "tickangle": 0})
    return in_the_page(figure)


def difference_html(difference: FlowDifference) -> str:
    """Return what is compared with what, and how. User's text is escaped."""
    how = (
        "Token by token: the prompts are of equal length and have the subject at the same place."
        if difference.aligned_by == "tokens"
        else "By token role, the mean over a role's tokens: the prompts differ in length or in where the subject is."
    )
    first, metric = difference.first, metric_of(difference.first)
    doing = patched_word(first).removesuffix("ed") + "ing"
    does = f"{doing} {'takes away' if first.settings.direction == 'corrupt' else 'brings back'}"
    sides = "".join(
        f'<p class="ct-prompt" dir="auto"><b>{name}</b> {escape(_title(flow))}</p>'
        f'<p class="ct-made">{escape(runs_line(flow, metric.written))} · '
        f"{escape(recipe(flow))}</p>"
        for name, flow in (("A", difference.first), ("B", difference.second))
    )
    return (
        f"<p>Difference of the {effect_label(first)}s, B − A, {escape(difference.label)}: "
        f"<b>blue</b> where {does} more in B, <b>orange</b> where in A. {how}</p>{sides}"
    )


def _all(history: History) -> History:
    return (*(stored_map(kind) for kind in KINDS), *history)


def _title(flow: HiddenFlow) -> str:
    return f"{map_title(flow)} · {flow.settings.metric} · {flow.prompt} → {display_token(flow.answer)}"
