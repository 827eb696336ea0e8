"""What Python and notebooks show of a result or a tracer: a few lines, or the figure."""

from __future__ import annotations

import html
from importlib.util import find_spec
from typing import TYPE_CHECKING

from causal_tracer.request.sites import SITES
from causal_tracer.results.words import runs_line

if TYPE_CHECKING:
    from causal_tracer.results.flow import HiddenFlow

_LONGEST_TEXT = 200


def flow_lines(flow: HiddenFlow) -> str:
    """Return a map's prompt, answer, scores and peaks in a few lines."""
    settings = flow.settings
    at = "".join(f" at {flow.input_tokens[token]!r} (token {token})" for token in settings.at_tokens)
    computed, cells = int((~flow.scores.isnan()).sum()), flow.scores.numel()
    lines = [
        f"HiddenFlow: {flow.kind}{at}, window {settings.window}, {settings.model} ({settings.dtype})",
        f"  prompt {_short(flow.prompt)}, subject {_short(flow.subject)}",
        f"  {settings.metric} of {_short(flow.answer)}: {runs_line(flow, '{:.4g}'.format)}, {_samples(flow)}",
        f"  {flow.scores.shape[0]} {SITES[flow.kind].rows} x {flow.scores.shape[1]} layers"
        + ("" if computed == cells else f", {computed} of {cells} cells computed"),
    ]
    peaks = [f"{peak.score:.4g} at {peak.row_name}, layer {peak.layer}" for peak in flow.peaks()]
    if peaks:
        lines.append(f"  peaks: {'; '.join(peaks)}")
    return "\n".join(lines)


def flow_figure(flow: HiddenFlow) -> str | None:
    """Return a map's figure as HTML for a notebook; None without Plotly, where a notebook shows the text."""
    if find_spec("plotly") is None:
        return None
    from causal_tracer.plots.heatmap import plot_hidden_flow_heatmap
    from causal_tracer.plots.pages import figure_html, standalone_page

    figure = plot_hidden_flow_heatmap(flow, show=False)
    # A page of its own in a frame: it needs no network, and nothing else on the notebook's page.
    fill = "<style>body { margin: 0; padding: 0; max-width: none; }</style>"
    page = html.escape(standalone_page("Causal tracing", fill + figure_html(figure)))
    height = int(figure.layout.height or 450) + 20
    return f'<iframe srcdoc="{page}" style="width: 100%; height: {height}px; border: 0" title="map"></iframe>'


def _samples(flow: HiddenFlow) -> str:
    count = len(flow.low_sample_scores)
    return f"{count} sample" if count == 1 else f"{count} samples"


def _short(text: str) -> str:
    """Return a text as Python writes it, its middle left out where it is long."""
    if len(text) <= _LONGEST_TEXT:
        return repr(text)
    half = _LONGEST_TEXT // 2
    return repr(f"{text[:half]} … {text[-half:]}")
