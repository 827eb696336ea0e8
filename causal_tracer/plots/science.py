"""Plotly figures of noise calibrations and of severed maps."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from causal_tracer.errors import SettingsError
from causal_tracer.metrics.descriptions import METRIC_DESCRIPTIONS
from causal_tracer.plots.heatmap import escape_markup
from causal_tracer.request.sites import SITES
from causal_tracer.results.analysis import effects
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.intervals import margin
from causal_tracer.results.labels import (
    display_token,
    effect_label,
    map_title,
    metric_label,
    patched_word,
    require_same_metric,
)
from causal_tracer.results.noise_calibration import NoiseCalibration


def plot_noise_calibration(calibration: NoiseCalibration, show: bool = True) -> go.Figure:
    """Draw P* over the noise level in sigmas, with the clean run's P and the recommended level as lines.

    Error bars are 95 % intervals of the mean over facts.
    """
    half = margin(calibration.standard_error, len(calibration.corrupted)).nan_to_num(0.0)
    figure = go.Figure(
        go.Scatter(
            x=calibration.multipliers,
            y=calibration.mean_corrupted.tolist(),
            mode="lines+markers",
            name="corrupted run",
            line={"color": "#6c3bab"},
            error_y={"array": half.tolist(), "color": "#9e75de"},
        )
    )
    figure.add_hline(y=calibration.mean_clean, line_dash="dot", annotation_text="clean run")
    figure.add_vline(
        x=calibration.recommended_multiplier,
        line_dash="dash",
        annotation_text=f"recommended: {calibration.recommended_multiplier:g} σ = {calibration.recommended_level:.4g}",
    )
    figure.update_layout(
        title=f"Noise and the answer, mean over {len(calibration.clean)} facts",
        xaxis_title="Noise, in standard deviations of the embedding's output",
        yaxis_title=METRIC_DESCRIPTIONS["probability"].labelled("the answer"),
        template="plotly_white",
        showlegend=False,
    )
    figure.update_yaxes(rangemode="tozero")
    return _shown(figure, show)


def plot_severed_bars(
    flows: Mapping[str, HiddenFlow], token: int | None = None, title: str | None = None, show: bool = True
) -> go.Figure:
    """Draw three bars for each layer: a state restored, the same with the MLP severed, and with attention severed.

    As in ROME's Figure 3 (Meng et al. 2022), with 95 % intervals over noise samples. If the first two bars are equal,
    no path from the state to the answer goes through the MLPs at its token.

    Args:
        flows: Maps of hidden states of one prompt, by any names: one plain, and severed ones (`MapSpec.severed`).
        token: The position to draw; None takes the subject's last token.
        title: The title; None takes one that names the token.
        show: Open the figure.

    Raises:
        SettingsError: The maps have no plain map of hidden states, or differ in prompt, metric or direction.
    """
    by_severed = {flow.settings.severed or "": flow for flow in flows.values() if flow.kind == "hidden"}
    if "" not in by_severed or len({flow.prompt for flow in by_severed.values()}) > 1:
        raise SettingsError(
            "Severed bars need a plain map of hidden states and severed maps of the same prompt (given: "
            f"{', '.join(flows) or 'no maps'}). Trace them together with trace_maps."
        )
    plain = by_severed[""]
    require_same_metric(*by_severed.values())
    done = patched_word(plain)
    position = plain.subject_range[1] - 1 if token is None else token
    figure = go.Figure()
    for severed in ("", "mlp", "attention"):
        if severed in by_severed:
            flow = by_severed[severed]
            half = margin(flow.standard_error[position], len(flow.sample_scores)).nan_to_num(0.0)
            figure.add_bar(
                x=list(range(flow.scores.shape[1])),
                y=effects(flow)[position].tolist(),
                error_y={"array": half.tolist(), "thickness": 1},
                name=f"with {SITES[severed].label} severed" if severed else f"single state {done}",
                marker_color=SITES[severed or "hidden"].color,
            )
    if title is None:
        title = f"{map_title(plain)}, with paths severed, at {display_token(plain.input_tokens[position])!r}"
    figure.update_layout(
        title=escape_markup(title) or None,
        xaxis_title=f"layer at which the state is {done}",
        yaxis_title=escape_markup(f"{effect_label(plain)} ({metric_label(plain)})"),
        barmode="group",
        template="plotly_white",
    )
    return _shown(figure, show)


def _shown(figure: go.Figure, show: bool) -> go.Figure:
    if show:
        figure.show()
    return figure
