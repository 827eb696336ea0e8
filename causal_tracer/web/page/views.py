"""The parts of a tab of maps that a run changes, as values of Gradio components."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Any

import gradio as gr
import plotly.graph_objects as go

from causal_tracer.plots.heatmap import shared_limits
from causal_tracer.plots.scale import color_stops
from causal_tracer.request.sites import SiteName
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.labels import metric_label, metric_of
from causal_tracer.web.page.cells import table_html
from causal_tracer.web.page.detail import NO_CELL
from causal_tracer.web.page.summary import details_html, numbers_html, warnings_html
from causal_tracer.web.service.figures import SHARED_SCALE, Flows, app_figures


@dataclass(frozen=True)
class TabView:
    """New values for the parts of a tab of maps; None leaves a part as it is.

    Attributes:
        message: Problems beside the fields, as HTML.
        status: The line beside the Run button, as HTML.
        numbers: The numbers above the maps, as HTML.
        warnings: Warnings and notes about the maps, as HTML.
        figures: The maps.
        tables: The maps as tables, as HTML.
        cell: One cell in detail, as HTML.
        details: How the maps were made, as HTML.
        flows: The maps, which the app keeps for the page. The page then also notes that it shows a result.
        link: The link that reproduces the maps.
        lens: The logit lens shown instead of the maps, as HTML; empty shows the maps.
        finished: The maps of a run when it is done; empty when a run begins.
        running: Whether Run is disabled and Stop enabled.
    """

    message: str | None = None
    status: str | None = None
    numbers: str | None = None
    warnings: str | None = None
    figures: tuple[go.Figure, ...] = ()
    tables: tuple[str, ...] = ()
    cell: str | None = None
    details: str | None = None
    flows: Flows | None = field(default=None, repr=False)
    link: str | None = None
    lens: str | None = None
    finished: Flows | None = field(default=None, repr=False)
    running: bool | None = None

    def outputs(self, maps: int) -> tuple[Any, ...]:
        """Return the values of a tab's components in the order of `map_tab`; `maps` is the tab's number of maps."""
        has_result = None if self.flows is None else True
        run, stop = (None, None) if self.running is None else (not self.running, self.running)
        parts = (
            *(self.message, self.status, self.numbers, self.warnings, self.cell, self.details),
            *(self.flows, has_result, self.link, self.lens, self.finished),
            *(self.figures or (None,) * maps),
            *(self.tables or (None,) * maps),
            *(None if on is None else gr.Button(interactive=on) for on in (run, stop)),
        )
        return tuple(gr.skip() if part is None else part for part in parts)


def map_id(tab: str, kind: SiteName) -> str:
    """Return the element id of a map of a tab."""
    return f"ct-map-{kind}" if tab == kind else f"ct-map-{tab}-{kind}"


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
    """Return all parts of a result, partial or complete, so that everything that the page shows is of one prompt."""
    return TabView(
        status=status,
        numbers=numbers(flows, filling=filling),
        warnings=warnings_html(*flows.values()),
        figures=app_figures(flows, write_top_tokens=write_top_tokens),
        tables=tuple(table_html(flow, map_id(tab, kind)) for kind, flow in flows.items()),
        cell=NO_CELL,
        details=details_html(next(iter(flows.values())), origin=origin),
        flows=flows,
        link=link,
        lens="",
        running=filling,
    )


def numbers(flows: Flows, *, filling: bool = False) -> str:
    """Return the numbers above the maps, and the colour scale of those that share one."""
    legend = legend_html(tuple(flows.values())) if len(flows) > 1 else ""
    return numbers_html(*flows.values(), filling=filling) + legend


def legend_html(maps: tuple[HiddenFlow, ...]) -> str:
    """Return the colour scale that maps of one metric and direction share."""
    metric, limits = metric_of(maps[0]), shared_limits(maps)
    labels = {metric_label(flow) for flow in maps}
    label = labels.pop() if len(labels) == 1 else metric.labelled("answer")
    low, high = (metric.format_value(end) for end in limits.ends)
    colors = ", ".join(f"{color} {at:.1%}" for at, color in color_stops(SHARED_SCALE, *limits.places(metric)))
    return (
        f'<div class="ct-legend"><span>{escape(label)}</span> <span>{low}</span>'
        f'<i style="background:linear-gradient(90deg, {colors})"></i><span>{high}</span></div>'
    )
