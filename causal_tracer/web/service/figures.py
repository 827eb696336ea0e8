"""Maps as the page and the API draw them: without a title, narrow enough for a phone."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from causal_tracer.plots.heatmap import plot_hidden_flow_heatmap, shared_limits
from causal_tracer.plots.scale import ColorLimits
from causal_tracer.request.sites import SITES, SiteName
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.labels import patched_word

Flows = Mapping[SiteName, HiddenFlow]
"""Maps of one prompt, by kind."""

SHARED_SCALE = SITES["hidden"].color_scale
"""The colours of maps that share a scale."""


def app_figure(flow: HiddenFlow, *, limits: ColorLimits | None = None, write_top_tokens: bool = False) -> go.Figure:
    """Draw a map for the app.

    Args:
        flow: The map.
        limits: The colour scale shared with the maps beside it; None gives the map its own scale, and draws it.
        write_top_tokens: Write into each cell the most probable token of the restored run.
    """
    alone = limits is None
    # About ten layers are numbered, five where maps are side by side.
    interval = -(-int(flow.scores.shape[1]) // 10)
    figure = plot_hidden_flow_heatmap(
        flow,
        title="",
        xlabel=None if alone else f"{patched_word(flow)} layer",
        show=False,
        color=None if alone else SHARED_SCALE,
        tick_interval=interval if alone else 2 * interval,
        skip_final_labels_portion=0.0,
        limits=limits,
        write_top_tokens=write_top_tokens,
    )
    if alone:
        scale_above(figure)
    else:
        figure.update_traces(showscale=False)
    return in_the_page(figure)


def app_figures(flows: Flows, *, write_top_tokens: bool = False) -> tuple[go.Figure, ...]:
    """Draw the maps of a tab: one map with its own colour scale, or several maps with a common one."""
    maps = tuple(flows.values())
    limits = shared_limits(maps) if len(maps) > 1 else None
    return tuple(app_figure(flow, limits=limits, write_top_tokens=write_top_tokens) for flow in maps)


def scale_above(figure: go.Figure) -> None:
    """Put a map's colour scale above it: beside the map, it would take half of a phone's width."""
    place = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "ypad": 2}
    (heatmap,) = figure.data
    # Above the map, the scale's title has room for one line only.
    title = {"side": "top", "text": str(heatmap.colorbar.title.text).replace("<br>", " ")}
    heatmap.update(colorbar={**place, "len": 0.6, "thickness": 10, "title": title})
    figure.update_layout(height=figure.layout.height + 30)


def in_the_page(figure: go.Figure) -> go.Figure:
    """Fix the axes, so that a finger that moves over the figure scrolls the page; return the figure."""
    figure.update_xaxes(fixedrange=True)
    figure.update_yaxes(fixedrange=True, ticklabelstandoff=5)
    return figure
