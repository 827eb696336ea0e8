"""Comparison of runs: the difference of two, or up to four side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go

from causal_tracer.errors import SettingsError
from causal_tracer.plots.difference import plot_difference_heatmap
from causal_tracer.plots.heatmap import shared_limits
from causal_tracer.request.sites import SITES
from causal_tracer.results.analysis import base_score
from causal_tracer.results.comparison import FlowDifference, compare_flows
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.labels import display_token, effect_label, map_title, metric_of, patched_word, runs_line
from causal_tracer.results.settings_line import settings_line
from causal_tracer.web.page.cells import difference_table_html
from causal_tracer.web.page.views import legend_html
from causal_tracer.web.service.figures import app_figure, in_the_page, scale_above
from causal_tracer.web.service.registry import model_title

MOST_FIGURES = 4
"""Figures of one comparison."""

Run = Mapping[str, HiddenFlow]
"""The maps of one run, by site."""

_LETTERS = "ABCD"
# Largest distance of the patched runs' scores, as a share of the scale. Beyond it, cells without effect get a colour.
_LIKE_BASES = 0.1


@dataclass(frozen=True)
class Comparison:
    """The content of the Compare tab.

    Attributes:
        words: A description of the comparison, as HTML.
        details: How each run was made, as HTML.
        figures: The figures, each with its heading as HTML.
        tables: The differences as tables, as HTML.
    """

    words: str
    details: str = ""
    figures: tuple[tuple[str, go.Figure], ...] = ()
    tables: str = ""


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Return the difference of two runs, one for each site that both have, or more runs side by side.

    Raises:
        SettingsError: There are not 2 to 4 runs, or the two cannot be compared.
    """
    if not 2 <= len(runs) <= MOST_FIGURES:
        raise SettingsError(f"Two to {MOST_FIGURES} runs can be compared (given: {len(runs)}). Choose that many cards.")
    return _difference(*runs) if len(runs) == 2 else _side_by_side(runs)


def difference_figure(difference: FlowDifference) -> go.Figure:
    """Draw a difference for the app."""
    figure = plot_difference_heatmap(difference, title="", show=False)
    scale_above(figure)
    # On a phone, more numbers would be rotated and overlap the map.
    figure.update_traces(colorbar={"nticks": 4, "tickangle": 0})
    return in_the_page(figure)


def difference_html(difference: FlowDifference) -> str:
    """Return a description of a difference and its colours, as HTML. User's text is escaped."""
    how = (
        "Token by token: the prompts are of equal length and have the subject at the same place."
        if difference.aligned_by == "tokens"
        else "By token role, the mean over a role's tokens: the prompts differ in length or in where the subject is."
        if difference.aligned_by == "roles"
        else ""
    )
    first = difference.first
    doing = patched_word(first).removesuffix("ed") + "ing"
    does = f"{doing} {'takes away' if first.settings.direction == 'corrupt' else 'brings back'}"
    return (
        f"<p>Difference of the {effect_label(first)}s, B − A, {escape(difference.label)}: "
        f"<b>blue</b> where {does} more in B, <b>orange</b> where it does so in A. {how}</p>"
    )


def _difference(first: Run, second: Run) -> Comparison:
    common = [kind for kind in first if kind in second]
    pairs = [(first[kind], second[kind]) for kind in common]
    if not pairs:
        pairs = [(next(iter(first.values())), next(iter(second.values())))]
    made = [compare_flows(*pair) for pair in pairs[:MOST_FIGURES]]
    headings = [f"<h3>{SITES[each.first.kind].title}</h3>" if len(made) > 1 else "" for each in made]
    return Comparison(
        difference_html(made[0]),
        "".join(_made_of(pair) for pair in pairs),
        tuple((heading, difference_figure(each)) for heading, each in zip(headings, made, strict=True)),
        "".join(difference_table_html(each) for each in made),
    )


def _side_by_side(runs: Sequence[Run]) -> Comparison:
    common = [kind for kind in runs[0] if all(kind in run for run in runs)]
    flows = tuple(run[common[0]] if common else next(iter(run.values())) for run in runs)
    shown = f"the map of {SITES[flows[0].kind].label}" if common else "the first map"
    words = f"Of each run, {shown} is shown. " if max(map(len, runs)) > 1 else ""
    if reason := _unlike(flows):
        scale = f"{words}Each map has its own colour scale, so colours cannot be compared: {escape(reason)}"
        figures = tuple(app_figure(flow) for flow in flows)
    else:
        scale = f"{words}One scale for all maps."
        limits = shared_limits(flows)
        figures = tuple(app_figure(flow, limits=limits) for flow in flows)
    legend = "" if reason else legend_html(flows)
    headings = (
        f'<h3>{letter}: {SITES[flow.kind].title}</h3><p class="ct-prompt" dir="auto">{escape(_fact(flow))}</p>'
        for letter, flow in zip(_LETTERS, flows, strict=False)
    )
    return Comparison(f"<p>{scale}</p>{legend}", _made_of(flows), tuple(zip(headings, figures, strict=True)))


def _unlike(flows: Sequence[HiddenFlow]) -> str:
    """Return the reason why maps must not share a scale; empty if they may."""
    measured = {(metric_of(flow), flow.settings.direction) for flow in flows}
    if len(measured) > 1:
        return "the runs differ in metric or direction."
    if len({SITES[flow.kind].rows for flow in flows}) > 1:
        return "the rows are tokens in some maps, and heads or spans in others."
    if len({SITES[flow.kind].blocks for flow in flows}) > 1:
        return "some maps restore activations, and others block attention."
    position, limits = metric_of(flows[0]).axis_position, shared_limits(flows)
    bases = [position(base_score(flow)) for flow in flows]
    low, high = map(position, limits.ends)
    if max(bases) - min(bases) > _LIKE_BASES * (high - low):
        return "the runs that were patched differ in their scores, so one colour would not mean the same effect."
    return ""


def _made_of(flows: Sequence[HiddenFlow]) -> str:
    return "".join(
        f'<p class="ct-prompt" dir="auto"><b>{name}</b> {escape(_title(flow))}</p>'
        f'<p class="ct-made">{escape(runs_line(flow, metric_of(flow).format_value))} · '
        f"{escape(settings_line(flow, model_title(flow.settings.model)))}</p>"
        for name, flow in zip(_LETTERS, flows, strict=False)
    )


def _title(flow: HiddenFlow) -> str:
    return f"{map_title(flow)} · {flow.settings.metric} · {_fact(flow)}"


def _fact(flow: HiddenFlow) -> str:
    return f"{flow.prompt} → {display_token(flow.answer)}"
