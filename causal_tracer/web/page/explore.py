"""What is done with a finished result: a look at one cell, files, a file opened, two results compared."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import plotly.graph_objects as go

from causal_tracer.errors import CausalTracerError, ResultLostError
from causal_tracer.plots.difference import plot_difference_heatmap
from causal_tracer.request.sites import KINDS, LayerKind
from causal_tracer.results.comparison import FlowDifference, compare_flows
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.words import display_token, effect_label, map_title, metric_of
from causal_tracer.web.page.cell_details import cell_details
from causal_tracer.web.page.cells import difference_table_html
from causal_tracer.web.page.detail import detail_html
from causal_tracer.web.page.summary import message_html, recipe, status_html
from causal_tracer.web.page.views import Flows, TabView, app_figures, in_the_page, maps_view, scale_above
from causal_tracer.web.service.downloads import download, open_result
from causal_tracer.web.service.stored import stored_map

TAB_TITLES: Mapping[str, str] = {
    "hidden": "Hidden states",
    "mlp": "MLP",
    "attention": "Attention",
    "all": "All three",
    "compare": "Compare",
    "studies": "Studies",
}

# Results that one session may compare; earlier ones are forgotten.
_REMEMBERED = 12

_LOST = (
    "The app no longer has this result: it was restarted, or the page was open for too long. Press Run again, or open "
    "the result's link; what was finished usually comes back at once."
)

History = tuple[HiddenFlow, ...]


def stored_flows(tab: str) -> Flows:
    """The stored maps that a tab shows before anything was run."""
    return {kind: stored_map(kind) for kind in (KINDS if tab == "all" else (kind for kind in KINDS if kind == tab))}


def shown_flows(tab: str, flows: Flows | None, made: bool) -> Flows:
    """The maps that a tab shows: its last result's, or the stored ones.

    Args:
        tab: The tab.
        flows: What the app remembers of the page.
        made: Whether the page shows a result; it knows where the app has forgotten.

    Raises:
        ResultLostError: The app has forgotten: after a day, a restart, or many other pages.
    """
    if flows:
        return flows
    if made:
        raise ResultLostError(_LOST)
    return stored_flows(tab)


@dataclass(frozen=True)
class CellChoice:
    """A click on a map, or a choice in its table.

    A class, since Gradio hands on events to methods with hints only.
    """

    tab: str
    kind: LayerKind

    def show(self, event: gr.SelectData, flows: Flows | None, made: bool) -> str:
        """The chosen cell in detail."""
        position, layer = event.index
        try:
            flow = shown_flows(self.tab, flows, made)[self.kind]
            return detail_html(cell_details(flow, int(position), int(layer)))
        except CausalTracerError as error:
            return message_html(str(error))


def redraw(tab: str, flows: Flows | None, made: bool, write_top_tokens: bool) -> tuple[Any, Any]:
    """The map of a tab with or without the most probable tokens in its cells, and a message where it is lost."""
    try:
        (figure,) = app_figures(shown_flows(tab, flows, made), write_top_tokens=write_top_tokens)
    except CausalTracerError as error:
        return gr.skip(), message_html(str(error))
    return figure, gr.skip()


def write_file(tab: str, format: str, kind: str, flows: Flows | None, made: bool) -> tuple[str | None, str]:
    """A file of a result to download, and a message where it could not be made."""
    try:
        shown = shown_flows(tab, flows, made)
        flow = next((flow for each, flow in shown.items() if each == kind), next(iter(shown.values())))
        return str(download(flow, format, Path(tempfile.mkdtemp(prefix="causal-tracer-")))), message_html()
    except CausalTracerError as error:
        return None, message_html(str(error))


def open_file(path: str, history: History, link: Callable[[Flows], str]) -> tuple[Any, ...]:
    """A saved result as the map of its tab: the values of all three tabs, the tab to show, and what to compare.

    Args:
        path: The file.
        history: The session's results.
        link: Gives the link that reproduces maps, or why there is none.
    """
    try:
        flow = open_result(Path(path))
    except CausalTracerError as error:
        views = [TabView(message=message_html(str(error))).outputs(1)] + [TabView().outputs(1) for _ in KINDS[1:]]
        return (*sum(views, ()), gr.skip(), history)
    status = status_html("Opened from a file.")
    flows = {flow.kind: flow}
    view = maps_view(flow.kind, flows, status=status, origin="opened from a file", link=link(flows))
    outputs = [view if kind == flow.kind else TabView() for kind in KINDS]
    return (
        *sum((each.outputs(1) for each in outputs), ()),
        gr.Tabs(selected=flow.kind),
        remembered(history, flows),
    )


def remembered(history: History, flows: Flows | None) -> History:
    """The session's results with these added, where they are new."""
    new = [flow for flow in (flows or {}).values() if all(flow is not kept for kept in history)]
    return (*history, *new)[-_REMEMBERED:]


def choices(history: History) -> list[tuple[str, int]]:
    """What can be compared: the stored results first, then the session's."""
    return [(f"{number + 1} · {_title(flow)}", number) for number, flow in enumerate(_all(history))]


def offer(history: History) -> tuple[Any, Any]:
    """Both choices of the comparison, with the session's results added."""
    listed = choices(history)
    return gr.Dropdown(choices=listed), gr.Dropdown(choices=listed)


def compare(history: History, first: int | None, second: int | None) -> tuple[Any, Any, str]:
    """The map of a difference, the same as a table, and what it is of."""
    flows = _all(history)
    if first is None or second is None:
        return gr.skip(), gr.skip(), message_html("Choose two results.")
    if max(first, second) >= len(flows):
        return gr.skip(), gr.skip(), message_html(_LOST)
    try:
        difference = compare_flows(flows[first], flows[second])
    except CausalTracerError as error:
        return gr.skip(), gr.skip(), message_html(str(error))
    return difference_figure(difference), difference_table_html(difference), difference_html(difference)


def difference_figure(difference: FlowDifference) -> go.Figure:
    """The difference as the app shows it."""
    figure = plot_difference_heatmap(difference, title="", show=False)
    scale_above(figure)
    # On a phone more numbers would be turned, and stand in the map.
    figure.update_traces(colorbar={"nticks": 4, "tickangle": 0})
    return in_the_page(figure)


def difference_html(difference: FlowDifference) -> str:
    """What is compared with what, and how. User's text is escaped."""
    how = (
        "Token by token: the prompts are of equal length and have the subject at the same place."
        if difference.aligned_by == "tokens"
        else "By token role, the mean over a role's tokens: the prompts differ in length or in where the subject is."
    )
    first = difference.first
    does = "corrupting takes away" if first.settings.direction == "corrupt" else "restoring brings back"
    sides = "".join(
        f'<p class="ct-prompt" dir="auto"><b>{name}</b> {html.escape(_title(flow))}</p>'
        f'<p class="ct-made">{html.escape(f"{_runs(flow)} · {recipe(flow)}")}</p>'
        for name, flow in (("A", difference.first), ("B", difference.second))
    )
    return (
        f"<p>Difference of the {effect_label(first)}s, B − A, {html.escape(difference.label)}: "
        f"<b>blue</b> where {does} more in B, <b>orange</b> where in A. {how}</p>{sides}"
    )


def _all(history: History) -> History:
    return (*(stored_map(kind) for kind in KINDS), *history)


def _title(flow: HiddenFlow) -> str:
    return f"{map_title(flow)} · {flow.settings.metric} · {flow.prompt} → {display_token(flow.answer)}"


def _runs(flow: HiddenFlow) -> str:
    metric = metric_of(flow)
    return f"clean {metric.written(flow.high_score)}, corrupted {metric.written(flow.low_score)}"
