"""What a run changes on the page, as values for Gradio."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
import plotly.graph_objects as go

from causal_tracer.plots.heatmap import COLOR_SCALES, plot_hidden_flow_heatmap, shared_limits
from causal_tracer.plots.scale import ColorLimits, color_stops
from causal_tracer.request.sites import LayerKind
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.words import metric_label, metric_of, patched_word
from causal_tracer.web.page.cells import table_html
from causal_tracer.web.page.detail import NO_CELL
from causal_tracer.web.page.summary import details_html, doubts_html, numbers_html

Flows = Mapping[LayerKind, HiddenFlow]
"""The maps that a tab shows, by kind."""

# Maps that share a scale share a colour too.
SHARED_SCALE = COLOR_SCALES["hidden"]


@dataclass(frozen=True)
class TabView:
    """What changes in a tab of maps; None leaves a part as it is.

    Attributes:
        message: What is wrong, beside the fields, as HTML; empty where all is well.
        status: The line beside the Run button, as HTML.
        numbers: What stands above the maps, as HTML.
        doubts: Warnings and notes about the maps, as HTML.
        figures: The maps.
        tables: The maps as tables, HTML.
        cell: One cell in detail, as HTML.
        details: How the maps were made, as HTML.
        flows: The maps, for what is done with them. The page itself then knows that it shows a result.
        link: The link that reproduces them.
        running: Whether Run is off and Stop is on; None leaves both.
    """

    message: str | None = None
    status: str | None = None
    numbers: str | None = None
    doubts: str | None = None
    figures: tuple[go.Figure, ...] = ()
    tables: tuple[str, ...] = ()
    cell: str | None = None
    details: str | None = None
    flows: Flows | None = field(default=None, repr=False)
    link: str | None = None
    running: bool | None = None

    def outputs(self, maps: int) -> tuple[Any, ...]:
        """The values of the tab's components, in the order of `Tab.outputs`; it has so many maps."""
        figures = self.figures or (None,) * maps
        tables = self.tables or (None,) * maps
        made = None if self.flows is None else True
        told = (self.message, self.status, self.numbers, self.doubts, self.cell, self.details)
        texts = (*told, self.flows, made, self.link)
        shown = tuple(gr.skip() if part is None else part for part in (*texts, *figures, *tables))
        if self.running is None:
            return (*shown, gr.skip(), gr.skip())
        return (*shown, gr.Button(interactive=not self.running), gr.Button(interactive=self.running))


def map_id(tab: str, kind: LayerKind) -> str:
    """The element id of a map of a tab."""
    return f"ct-map-{kind}" if tab == kind else f"ct-map-{tab}-{kind}"


def app_figure(flow: HiddenFlow, *, write_top_tokens: bool = False) -> go.Figure:
    """The map as the app shows it: without a title, and not in the way of a finger that scrolls the page."""
    figure = plot_hidden_flow_heatmap(
        flow,
        title="",
        show=False,
        tick_interval=_tick_interval(flow),
        skip_final_labels_portion=0.0,
        write_top_tokens=write_top_tokens,
    )
    scale_above(figure)
    return in_the_page(figure)


def app_figures(flows: Flows, *, write_top_tokens: bool = False) -> tuple[go.Figure, ...]:
    """The maps of a tab: one with its own scale, or several side by side on one."""
    maps = tuple(flows.values())
    if len(maps) == 1:
        return (app_figure(maps[0], write_top_tokens=write_top_tokens),)
    limits = shared_limits(maps)
    return tuple(_side_by_side(flow, limits) for flow in maps)


def maps_view(
    tab: str,
    flows: Flows,
    *,
    status: str,
    origin: str,
    link: str | None = None,
    filling: bool = False,
    write_top_tokens: bool = False,
) -> TabView:
    """All of a result; while it fills in too, so that whatever stands on the page is of one and the same prompt."""
    return TabView(
        status=status,
        numbers=numbers(flows, filling=filling),
        doubts=doubts_html(*flows.values()),
        figures=app_figures(flows, write_top_tokens=write_top_tokens),
        tables=tuple(table_html(flow, map_id(tab, kind)) for kind, flow in flows.items()),
        cell=NO_CELL,
        details=details_html(next(iter(flows.values())), origin=origin),
        flows=flows,
        link=link,
        running=filling,
    )


def numbers(flows: Flows, *, filling: bool = False) -> str:
    """What stands above the maps: their numbers, and the colour scale of those that share one."""
    legend = _legend(tuple(flows.values())) if len(flows) > 1 else ""
    return numbers_html(*flows.values(), filling=filling) + legend


def _legend(maps: tuple[HiddenFlow, ...]) -> str:
    metric, limits = metric_of(maps[0]), shared_limits(maps)
    low, high = (metric.written(end) for end in limits.ends)
    colors = ", ".join(f"{color} {at:.1%}" for at, color in color_stops(SHARED_SCALE, *limits.places(metric)))
    return (
        f'<div class="ct-legend"><span>{html.escape(metric_label(maps[0]))}</span> <span>{low}</span>'
        f'<i style="background:linear-gradient(90deg, {colors})"></i><span>{high}</span></div>'
    )


def _side_by_side(flow: HiddenFlow, limits: ColorLimits) -> go.Figure:
    figure = plot_hidden_flow_heatmap(
        flow,
        title="",
        xlabel=f"{patched_word(flow)} layer",
        show=False,
        color=SHARED_SCALE,
        tick_interval=2 * _tick_interval(flow),
        skip_final_labels_portion=0.0,
        limits=limits,
    )
    figure.update_traces(showscale=False)
    return in_the_page(figure)


def _tick_interval(flow: HiddenFlow) -> int:
    """So that about ten layers are numbered."""
    return -(-int(flow.scores.shape[1]) // 10)


def scale_above(figure: go.Figure) -> None:
    """Lay a map's scale above it: beside it, it would take half of a phone's width."""
    place = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "ypad": 2}
    (heatmap,) = figure.data
    # There, the title has room for one line.
    title = {"side": "top", "text": str(heatmap.colorbar.title.text).replace("<br>", " ")}
    heatmap.update(colorbar={**place, "len": 0.6, "thickness": 10, "title": title})
    figure.update_layout(height=figure.layout.height + 30)


def in_the_page(figure: go.Figure) -> go.Figure:
    """The figure, not in the way of a finger that scrolls the page."""
    figure.update_xaxes(fixedrange=True)
    figure.update_yaxes(fixedrange=True, ticklabelstandoff=5)
    return figure
