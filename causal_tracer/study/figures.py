"""Plotly figures of a study: Figures 2, 3 and 7 of Meng et al. 2022, histograms of best layers, and comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from causal_tracer.errors import StudyError
from causal_tracer.plots.scale import color_stops, scale_ends
from causal_tracer.request.sites import SITES, SPANS
from causal_tracer.study.records import PEAK_ROLES, ROLES
from causal_tracer.study.statistics import Mean, StudyEffects, fact_peaks

# Okabe and Ito's colours, which most colour-blind people can tell apart. Each has its own dash, too.
LINE_STYLES = (
    ("#56B4E9", "dot"),
    ("#E69F00", "dash"),
    ("#D55E00", "solid"),
    ("#009E73", "dashdot"),
    ("#999999", "longdash"),
    ("#0072B2", "solid"),
)
_SPAN_STYLES = (LINE_STYLES[3], LINE_STYLES[1], LINE_STYLES[5])
_PATCHING = {
    "restore": ("restoring", "restored"),
    "corrupt": ("corrupting", "corrupted"),
    "block": ("blocking", "blocked"),
}
_LABELS = {name: "attention" if site.blocks else site.label for name, site in SITES.items()}
_WORDS = {
    "map": (
        "Map by token role: {of}",
        "Average indirect effect of {doing} {of}, by token role and layer (the paper's Figure 2).",
    ),
    "lines": (
        "Layers with intervals: {of}",
        "Average indirect effect of {doing} {of}, with 95 % intervals (the paper's Figure 7).",
    ),
    "corrected": (
        "Minus the placebo: {of}",
        "Average indirect effect, that of the placebo (which restores another fact's activations), and their "
        "difference.",
    ),
    "spans": (
        "Attention knockout by span: {of}",
        "Average change from the clean run when the last token's {of} to a span of the prompt is blocked, with 95 % "
        "intervals (Geva et al. 2023, Figure 2).",
    ),
    "severed": (
        "Severed paths",
        "Hidden states {done} while the MLP's or attention's outputs at that token stay corrupted (Figure 3).",
    ),
    "best layers": (
        "Best layers of single facts: {of} token",
        "Number of facts by their own best layer at the {of} token.",
    ),
    "compared": (
        "Studies compared: {of} token",
        "Average indirect effect ({of} token) over the relative depth of the layer, with 95 % intervals.",
    ),
}


def study_figures(effects: StudyEffects) -> dict[str, go.Figure]:
    """Draw all figures that a study has the maps for.

    Returns:
        The figures by name: "map KIND", "lines KIND", "corrected KIND", "spans KIND", "severed", "best layers ROLE".
    """
    figures: dict[str, go.Figure] = {}
    kinds = [kind for kind in SITES if kind in effects.maps and effects.has_role_rows(kind)]
    for kind in effects.maps:
        if not effects.has_role_rows(kind):
            figures[f"spans {kind}"] = _span_lines(effects, kind)
    for kind in kinds:
        figures[f"map {kind}"] = _role_map(effects, kind)
        figures[f"lines {kind}"] = _role_lines(effects, kind)
        if (corrected := effects.minus_placebo(kind)) is not None:
            figures[f"corrected {kind}"] = _placebo_lines(effects, kind, corrected)
    if any(effects.settings.maps[name].severed for name in effects.maps):
        figures["severed"] = _severed_bars(effects, "last subject")
    for role in PEAK_ROLES if kinds else ():
        figures[f"best layers {role}"] = _best_layer_histogram(effects, kinds, role)
    return figures


def comparison_figures(studies: Mapping[str, StudyEffects]) -> dict[str, go.Figure]:
    """Draw the AIE of several studies in one figure for each kind and role that at least two of them have.

    Layers are drawn at their relative depth, since models have different numbers of layers.

    Args:
        studies: The effects of each study, by the name in the legend.

    Returns:
        The figures by name: "compared KIND, ROLE".

    Raises:
        StudyError: The studies differ in metric or direction.
    """
    labels = sorted({effects.label for effects in studies.values()})
    directions = sorted({effects.settings.request.direction for effects in studies.values()})
    for what, found in (("metric", labels), ("direction", directions)):
        if len(found) > 1:
            raise StudyError(f"The studies have different {what}s: {', '.join(found)}. Compare studies of one {what}.")
    figures: dict[str, go.Figure] = {}
    for kind in SITES:
        having = {name: each for name, each in studies.items() if kind in each.maps and each.has_role_rows(kind)}
        if len(having) < 2:
            continue
        for role in PEAK_ROLES:
            figure = go.Figure()
            for number, (name, effects) in enumerate(having.items()):
                aie = effects.mean(effects.at(kind, role))
                # The most different colours come first.
                style = LINE_STYLES[(2, 5, 3, 1, 0, 4)[number % 6]][0], LINE_STYLES[number % 6][1]
                _add_line(figure, name, aie, *style, x=np.linspace(0, 1, len(aie.mean)).tolist())
            depths = f"depth of the layer, from first to last ({SITES[kind].label})"
            figures[f"compared {kind}, {role}"] = _styled(figure, depths, f"AIE at the {role} token, {labels[0]}")
    return figures


def title_and_caption(name: str, direction: str = "restore") -> tuple[str, str]:
    """Return the title and the caption of a figure.

    Args:
        name: The figure's name in `study_figures` or `comparison_figures`.
        direction: The study's direction.
    """
    start = next(start for start in _WORDS if name.startswith(start))
    about = name.removeprefix(start).strip().split(", ")
    site = SITES.get(about[0])
    doing, done = _PATCHING["block" if site is not None and site.blocks else direction]
    of = ", ".join(_LABELS.get(part, part) for part in about)
    title, caption = (words.format(of=of, doing=doing, done=done) for words in _WORDS[start])
    return title, caption


def _role_map(effects: StudyEffects, kind: str) -> go.Figure:
    """Draw the AIE of a kind by token role and layer (the paper's Figure 2)."""
    aie = effects.mean(effects.maps[kind]).mean
    ends = scale_ends(effects.strength(aie[~np.isnan(aie)]).tolist(), 0.0)
    weakest, strongest = effects.strength(np.array(ends)).tolist()
    figure = go.Figure(
        go.Heatmap(
            x=list(range(aie.shape[1])),
            z=aie.tolist(),
            y=["further tokens" if role == "further" else f"{role} token" for role in ROLES],
            colorscale=color_stops(SITES[effects.settings.maps[kind].kind].color_scale, weakest, 0.0, strongest),
            zmin=min(weakest, strongest),
            zmax=max(weakest, strongest),
            hovertemplate="%{y}, layer %{x}<br>AIE %{z:.4f}<extra></extra>",
            colorbar={"title": {"text": f"AIE, {effects.label}"}, "thickness": 14},
            xgap=1,
            ygap=1,
        )
    )
    figure.update_yaxes(autorange="reversed")
    return _styled(figure, _layer_title(effects, kind), "")


def _role_lines(effects: StudyEffects, kind: str) -> go.Figure:
    """Draw the AIE of a kind at each role over layers, with 95 % intervals (the paper's Figure 7)."""
    figure = go.Figure()
    for role, style in zip(ROLES, LINE_STYLES, strict=True):
        label = "further tokens" if role == "further" else f"{role} token"
        _add_line(figure, label, effects.mean(effects.at(kind, role)), *style)
    return _styled(figure, _layer_title(effects, kind), f"average indirect effect, {effects.label}")


def _span_lines(effects: StudyEffects, kind: str) -> go.Figure:
    """Draw the change by blocking attention to each span over layers (Geva et al. 2023, Figure 2).

    The change of a probability is relative to the clean run, in per cent, as in the paper.
    """
    values, title = effects.maps[kind], f"change of {effects.label}"
    if effects.metric.name == "probability":
        values, title = effects.percent_of_clean(kind), f"{title} (%)"
    figure = go.Figure()
    for number, (span, style) in enumerate(zip(SPANS, _SPAN_STYLES, strict=True)):
        _add_line(figure, span, effects.mean(values[:, number]), *style)
    return _styled(figure, _layer_title(effects, kind), title)


def _placebo_lines(effects: StudyEffects, kind: str, corrected: np.ndarray) -> go.Figure:
    """Draw the AIE, the placebo's AIE and their paired difference at the last subject token and at the last token."""
    figure = go.Figure()
    for role in PEAK_ROLES:
        number = ROLES.index(role)
        for name, values, dash in (
            ("AIE", effects.at(kind, role), "dot"),
            ("placebo", effects.at(f"{kind}, placebo", role), "dash"),
            ("AIE minus placebo", corrected[:, number], "solid"),
        ):
            _add_line(figure, f"{role} token: {name}", effects.mean(values), LINE_STYLES[number][0], dash)
    return _styled(figure, _layer_title(effects, kind), f"average indirect effect, {effects.label}")


def _severed_bars(effects: StudyEffects, role: str) -> go.Figure:
    """Draw the AIE of hidden states with the MLP's or attention's outputs held (the paper's Figure 3)."""
    figure = go.Figure()
    for name in effects.maps:
        spec = effects.settings.maps[name]
        held = spec.severed
        if spec.kind != "hidden" or spec.source == "placebo":
            continue
        aie = effects.mean(effects.at(name, role))
        high, low = (aie.high - aie.mean).tolist(), (aie.mean - aie.low).tolist()
        error = {"type": "data", "symmetric": False, "array": high, "arrayminus": low, "thickness": 1, "width": 0}
        label = "nothing severed" if held is None else f"{SITES[held].label} severed"
        _add_bars(figure, label, SITES[held or "hidden"].color, aie.mean.tolist(), "%{y:.4f}", error_y=error)
    return _styled(
        figure, f"layer at which the hidden state is {_done(effects)}", f"AIE at the {role} token, {effects.label}"
    )


def _best_layer_histogram(effects: StudyEffects, kinds: Sequence[str], role: str) -> go.Figure:
    """Draw a histogram of the facts' best layers for each kind."""
    figure = go.Figure()
    for kind in kinds:
        counts = np.bincount(fact_peaks(effects, kind, role)[0], minlength=effects.maps[kind].shape[2])
        _add_bars(figure, SITES[kind].label, SITES[kind].color, counts.tolist(), "%{y} facts")
    return _styled(figure, f"best layer at the {role} token", "facts")


def _add_bars(figure: go.Figure, name: str, color: str, y: list[float], hover: str, **options: Any) -> None:
    x, template = list(range(len(y))), f"layer %{{x}}: {hover}<extra>{name}</extra>"
    figure.add_bar(name=name, x=x, y=y, marker_color=color, hovertemplate=template, **options)


def _add_line(figure: go.Figure, name: str, row: Mean, color: str, dash: str, x: Sequence[float] | None = None) -> None:
    """Add a line, and its interval as a band of the same colour. Both are one entry of the legend."""
    if np.isnan(row.mean).all():
        return
    places = np.arange(len(row.mean)) if x is None else np.array(x)
    sure = ~np.isnan(row.low)
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    figure.add_scatter(
        x=[*places[sure].tolist(), *places[sure][::-1].tolist()],
        y=[*row.high[sure].tolist(), *row.low[sure][::-1].tolist()],
        mode="lines",
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.15)",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
    )
    figure.add_scatter(
        x=places.tolist(),
        y=row.mean.tolist(),
        name=name,
        mode="lines",
        line={"color": color, "dash": dash},
        legendgroup=name,
        customdata=[[f"{low:.4f}", f"{high:.4f}"] for low, high in zip(row.low, row.high, strict=True)],
        hovertemplate="%{x}: %{y:.4f} (%{customdata[0]} to %{customdata[1]})<extra>" + name + "</extra>",
    )


def _styled(figure: go.Figure, x_title: str, y_title: str) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        height=340,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        legend={"orientation": "h", "y": -0.25},
        barmode="group",
    )
    # The ticks of layers are integers, few enough for a phone. Relative depths, from 0 to 1, get Plotly's.
    last = max((max(trace.x, default=0) for trace in figure.data), default=0)
    figure.update_xaxes(title=x_title, tick0=0, dtick=max(1, round(last / 8)) if last > 1 else None)
    figure.update_yaxes(title=y_title, automargin=True)
    return figure


def _layer_title(effects: StudyEffects, kind: str) -> str:
    window = effects.settings.maps[kind].window
    done = "blocked" if SITES[effects.settings.maps[kind].kind].blocks else _done(effects)
    layers = "layer" if window == 1 else f"centre of {window} {done} layers"
    return f"{layers} ({SITES[kind].label})"


def _done(effects: StudyEffects) -> str:
    return _PATCHING[effects.settings.request.direction][1]
