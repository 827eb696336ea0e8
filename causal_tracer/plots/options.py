"""Checks of the arguments of `plot_hidden_flow_heatmap`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from causal_tracer.arguments import as_list, flag, instance, optional, quoted, real_number, text, whole_number
from causal_tracer.errors import SettingsError
from causal_tracer.metrics.descriptions import MetricDescription
from causal_tracer.plots.scale import ColorLimits
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.labels import metric_of


def check_plot_options(
    result: HiddenFlow,
    *,
    texts: dict[str, str | None],
    color: str | Sequence[str] | None,
    tick_interval: int,
    unlabelled_share: float,
    height: int | None,
    limits: ColorLimits | tuple[float, float] | None,
    write_top_tokens: bool,
) -> None:
    """Check the arguments of `plot_hidden_flow_heatmap`.

    Raises:
        SettingsError: An argument has the wrong type, is out of range, or is not a colour scale.
    """
    instance("result", result, HiddenFlow)
    for name, value in texts.items():
        optional(text)(name, value)
    flag("write_top_tokens", write_top_tokens)
    whole_number("tick_interval", tick_interval)
    if not 0 <= real_number("skip_final_labels_portion", unlabelled_share) <= 1:
        raise SettingsError(f"skip_final_labels_portion must be from 0 to 1 (given: {unlabelled_share}).")
    if height is not None:
        whole_number("height", height, least=10)
    if limits is not None and not isinstance(limits, ColorLimits):
        _check_ends(limits, metric_of(result))
    if color is not None:
        _check_color(color)


def _check_ends(limits: Any, metric: MetricDescription) -> None:
    ends = [real_number("limits", value) for value in as_list("limits", limits)]
    places = [metric.axis_position(end) for end in ends]
    if len(ends) != 2 or not math.isfinite(places[0] - places[1]) or places[0] == places[1]:
        above = " above 0, since the scale is logarithmic" if metric.logarithmic else ""
        raise SettingsError(f"limits must be two different numbers{above} (given: {quoted(limits)}).")


def _check_color(color: Any) -> None:
    import plotly.graph_objects as go

    try:
        go.Heatmap(colorscale=color if isinstance(color, str) else list(color))
    except (TypeError, ValueError, RuntimeError) as error:
        raise SettingsError(
            f"color must be a Plotly colour scale, by name or as a list of colours (given: {quoted(color)})."
        ) from error
