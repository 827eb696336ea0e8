"""Plotly figures of a study: the paper's Figures 2, 3 and 7, where the best layers lie, and two studies together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from causal_tracer.errors import StudyError
from causal_tracer.results.words import KIND_NAMES
from causal_tracer.study.records import ROLES
from causal_tracer.study.statistics import Mean, StudyEffects, fact_peaks

if TYPE_CHECKING:
    import plotly.graph_objects as go

KIND_SCALES = {"hidden": "Purples", "mlp": "Greens", "attention": "Reds"}
# Okabe and Ito's colours, which most colour-blind people can tell apart; one dash each as well.
ROLE_COLORS = ("#56B4E9", "#E69F00", "#D55E00", "#009E73", "#999999", "#0072B2")
ROLE_DASHES = ("dot", "dash", "solid", "dashdot", "longdash", "solid")
BAR_COLORS = {"hidden": "#7F6BB0", "hidden, mlp severed": "#009E73", "hidden, attention severed": "#D55E00"}
BAR_NAMES = {
    "hidden": "nothing severed",
    "hidden, mlp severed": "MLP severed",
    "hidden, attention severed": "attention severed",
}
_HEIGHT = 340
_TITLES = {
    "map": "Map by token role: {of}",
    "lines": "Layers with intervals: {of}",
    "corrected": "Less the placebo: {of}",
    "severed": "Severed paths",
    "best layers": "Best layers of single facts: {of} token",
    "compared": "Studies beside each other: {of} token",
}
_CAPTIONS = {
    "map": "Average indirect effect of restoring {of}, by token role and layer (the paper's Figure 2).",
    "lines": "Average indirect effect of restoring {of}, with 95 % intervals (the paper's Figure 7).",
    "corrected": "Beside it the placebo, which restores another fact's activations, and the difference of the two.",
    "severed": "Hidden states restored while the MLP's or attention's outputs at that token stay corrupted (Figure 3).",
    "best layers": "Each fact's own best layer at the {of} token: how far facts agree with the average.",
    "compared": "Average indirect effect ({of} token), over the relative depth of the layer, with 95 % intervals.",
}


def study_figures(effects: StudyEffects, seed: int = 0) -> dict[str, go.Figure]:
    """All figures of a study, by name: those for which it has the maps.

    Names: "map KIND", "lines KIND", "corrected KIND", "severed", "best layers ROLE".
    """
    figures: dict[str, go.Figure] = {}
    kinds = [kind for kind in KIND_NAMES if kind in effects.maps]
    for kind in kinds:
        figures[f"map {kind}"] = role_map(effects, kind, seed)
        figures[f"lines {kind}"] = role_lines(effects, kind, seed)
        if (corrected := effects.corrected(kind)) is not None:
            figures[f"corrected {kind}"] = placebo_lines(effects, kind, corrected, seed)
    if any(name in effects.maps for name in ("hidden, mlp severed", "hidden, attention severed")):
        figures["severed"] = severed_bars(effects, "last subject", seed)
    for role in ("last subject", "last"):
        figures[f"best layers {role}"] = best_layer_histogram(effects, kinds, role)
    return figures


def figure_title(name: str) -> str:
    """What a figure of `study_figures` or `comparison_figures` is called."""
    return _said(_TITLES, name)


def figure_caption(name: str) -> str:
    """What a figure of `study_figures` or `comparison_figures` shows."""
    return _said(_CAPTIONS, name)


def role_map(effects: StudyEffects, kind: str, seed: int = 0) -> go.Figure:
    """The AIE of a kind by token role and layer (the paper's Figure 2)."""
    import plotly.graph_objects as go

    from causal_tracer.plots.scale import color_stops, scale_ends

    aie = effects.mean(effects.maps[kind].effects, seed)
    ends = scale_ends(effects.strength(aie.mean[~np.isnan(aie.mean)]).tolist(), 0.0)
    weakest, strongest = effects.strength(np.array(ends)).tolist()
    figure = go.Figure(
        go.Heatmap(
            x=list(range(aie.mean.shape[1])),
            z=_gaps(aie.mean),
            y=_role_labels(),
            colorscale=color_stops(KIND_SCALES[kind], weakest, 0.0, strongest),
            zmin=min(weakest, strongest),
            zmax=max(weakest, strongest),
            hovertemplate="%{y}, layer %{x}<br>AIE %{z:.4f}<extra></extra>",
            colorbar={"title": {"text": f"AIE, {effects.label}"}, "thickness": 14},
            xgap=1,
            ygap=1,
        )
    )
    return _styled(figure, _layer_title(effects, kind), "", reverse=True)


def role_lines(effects: StudyEffects, kind: str, seed: int = 0) -> go.Figure:
    """The AIE of a kind at each role over layers, with 95 % intervals (the paper's Figure 7)."""
    aie = effects.mean(effects.maps[kind].effects, seed)
    figure = _lines({role: _row(aie, number) for number, role in enumerate(_role_labels())})
    return _styled(figure, _layer_title(effects, kind), f"average indirect effect, {effects.label}")


def placebo_lines(effects: StudyEffects, kind: str, corrected: np.ndarray, seed: int = 0) -> go.Figure:
    """At the last subject token and the last: AIE, that of the placebo, and their paired difference."""
    import plotly.graph_objects as go

    figure = go.Figure()
    parts = {"AIE": effects.maps[kind].effects, "placebo": effects.maps[f"{kind}, placebo"].effects}
    for role, color in (("last subject", "#D55E00"), ("last", "#0072B2")):
        number = ROLES.index(role)
        for name, values, dash in (
            ("AIE", parts["AIE"], "dot"),
            ("placebo", parts["placebo"], "dash"),
            ("AIE less placebo", corrected, "solid"),
        ):
            _add_line(figure, f"{_label(role)}: {name}", _row(effects.mean(values, seed), number), color, dash)
    return _styled(figure, _layer_title(effects, kind), f"average indirect effect, {effects.label}")


def severed_bars(effects: StudyEffects, role: str, seed: int = 0) -> go.Figure:
    """The AIE of hidden states with the MLP's or attention's outputs held (the paper's Figure 3)."""
    import plotly.graph_objects as go

    figure = go.Figure()
    number = ROLES.index(role)
    for name in ("hidden", "hidden, mlp severed", "hidden, attention severed"):
        if name not in effects.maps:
            continue
        aie = _row(effects.mean(effects.maps[name].effects, seed), number)
        figure.add_bar(
            name=BAR_NAMES[name],
            x=list(range(len(aie.mean))),
            y=_list(aie.mean),
            marker_color=BAR_COLORS[name],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": _list(aie.high - aie.mean),
                "arrayminus": _list(aie.mean - aie.low),
                "thickness": 1,
                "width": 0,
            },
            hovertemplate="layer %{x}: %{y:.4f}<extra>" + BAR_NAMES[name] + "</extra>",
        )
    figure.update_layout(barmode="group")
    return _styled(figure, "layer at which the hidden state is restored", f"AIE at the {_label(role)}, {effects.label}")


def best_layer_histogram(effects: StudyEffects, kinds: Sequence[str], role: str) -> go.Figure:
    """How many facts have their best layer where, for each kind: what an average hides."""
    import plotly.graph_objects as go

    figure = go.Figure()
    colors = {"hidden": "#7F6BB0", "mlp": "#009E73", "attention": "#D55E00"}
    for kind in kinds:
        layers, _ = fact_peaks(effects, kind, role)
        counts = np.bincount(layers, minlength=effects.maps[kind].effects.shape[2])
        figure.add_bar(
            name=KIND_NAMES[kind],
            x=list(range(len(counts))),
            y=counts.tolist(),
            marker_color=colors[kind],
            hovertemplate="layer %{x}: %{y} facts<extra>" + KIND_NAMES[kind] + "</extra>",
        )
    figure.update_layout(barmode="group")
    return _styled(figure, f"best layer at the {_label(role)}", "facts")


def comparison_figures(studies: Mapping[str, StudyEffects], seed: int = 0) -> dict[str, go.Figure]:
    """The AIE of several studies in one figure for each kind and role that they share.

    Layers are put at their relative depth, since models differ in how many they have.

    Raises:
        StudyError: The studies differ in metric.
    """
    import plotly.graph_objects as go

    labels = {effects.label for effects in studies.values()}
    if len(labels) > 1:
        raise StudyError(
            f"These studies have several metrics: {', '.join(sorted(labels))}. Compare studies of one metric."
        )
    figures: dict[str, go.Figure] = {}
    for kind in KIND_NAMES:
        having = {name: effects for name, effects in studies.items() if kind in effects.maps}
        if len(having) < 2:
            continue
        for role in ("last subject", "last"):
            figure = go.Figure()
            for number, (name, effects) in enumerate(having.items()):
                aie = _row(effects.mean(effects.maps[kind].effects, seed), ROLES.index(role))
                depth = np.linspace(0, 1, len(aie.mean)).tolist()
                color, dash = ROLE_COLORS[(2, 5, 3, 1, 0, 4)[number % 6]], ROLE_DASHES[number % 6]
                _add_line(figure, name, aie, color, dash, x=depth)
            depths = f"depth of the layer, from first to last ({KIND_NAMES[kind]})"
            figures[f"compared {kind}, {role}"] = _styled(
                figure, depths, f"AIE at the {_label(role)}, {', '.join(labels)}"
            )
    return figures


def _said(words: Mapping[str, str], name: str) -> str:
    start = next(start for start in words if name.startswith(start))
    about = name.removeprefix(start).strip().split(", ")
    return words[start].replace("{of}", ", ".join(KIND_NAMES.get(part, part) for part in about))


def _lines(rows: Mapping[str, Mean]) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    for number, (name, row) in enumerate(rows.items()):
        _add_line(figure, name, row, ROLE_COLORS[number], ROLE_DASHES[number])
    return figure


def _add_line(figure: go.Figure, name: str, row: Mean, color: str, dash: str, x: Sequence[float] | None = None) -> None:
    """A line with its interval as a band of the same colour, which the legend switches together."""
    known = ~np.isnan(row.mean)
    if not known.any():
        return
    places = list(range(len(row.mean))) if x is None else list(x)
    sure = ~np.isnan(row.low)
    band = [place for place, inside in zip(places, sure, strict=True) if inside]
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    figure.add_scatter(
        x=[*band, *reversed(band)],
        y=[*row.high[sure].tolist(), *reversed(row.low[sure].tolist())],
        mode="lines",
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.15)",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
    )
    figure.add_scatter(
        x=places,
        y=_list(row.mean),
        name=name,
        mode="lines",
        line={"color": color, "dash": dash},
        legendgroup=name,
        customdata=[[f"{low:.4f}", f"{high:.4f}"] for low, high in zip(row.low, row.high, strict=True)],
        hovertemplate="%{x}: %{y:.4f} (%{customdata[0]} to %{customdata[1]})<extra>" + name + "</extra>",
    )


def _row(mean: Mean, number: int) -> Mean:
    return Mean(mean.mean[number], mean.low[number], mean.high[number])


def _styled(figure: go.Figure, x_title: str, y_title: str, *, reverse: bool = False) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        height=_HEIGHT,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        legend={"orientation": "h", "y": -0.25},
    )
    # Layers are numbered in whole steps; depths, which go from 0 to 1, as they come.
    last = max((max(trace.x, default=0) for trace in figure.data if trace.x is not None), default=0)
    figure.update_xaxes(title=x_title, tick0=0, dtick=max(1, round(last / 12)) if last > 1 else None)
    figure.update_yaxes(title=y_title, automargin=True, autorange="reversed" if reverse else None)
    return figure


def _layer_title(effects: StudyEffects, kind: str) -> str:
    window = effects.maps[kind].settings.window
    if window == 1:
        return f"layer ({KIND_NAMES[kind]})"
    return f"centre of {window} restored layers ({KIND_NAMES[kind]})"


def _label(role: str) -> str:
    return f"{role} token"


def _role_labels() -> list[str]:
    return [_label(role) if role != "further" else "further tokens" for role in ROLES]


def _list(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _gaps(values: np.ndarray) -> list[list[float | None]]:
    return [_list(row) for row in values]
