"""Short forms of results for `repr` (a few lines) and for notebooks (the figure)."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from causal_tracer.request.sites import SITES
from causal_tracer.results.labels import runs_line

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from causal_tracer.results.flow import HiddenFlow
    from causal_tracer.results.lens import LogitLens
    from causal_tracer.results.patched import PatchedRun

_LONGEST_TEXT = 200
_MOST_PAIRS = 8


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
    """Return a map's figure as HTML for a notebook; None if Plotly is not installed."""
    if find_spec("plotly") is None:
        return None
    from causal_tracer.plots.heatmap import plot_hidden_flow_heatmap

    return _framed(plot_hidden_flow_heatmap(flow, show=False), "map")


def lens_lines(lens: LogitLens) -> str:
    """Return a lens's prompt, answer and the last token's top tokens in a few lines."""
    tokens, layers = lens.entropies.shape
    lines = [
        f"LogitLens: {lens.run}, {lens.model} ({lens.dtype})",
        f"  prompt {_short(lens.prompt)}, answer {_short(lens.answer)}",
        f"  {tokens} tokens x {layers} layers",
        f"  after {lens.input_tokens[-1]!r}:",
    ]
    # A layer with the same top token as the one before is left out.
    before = None
    for layer in range(layers):
        best = lens.top(-1, layer)[0]
        if best.token_id != before:
            lines.append(f"    from layer {layer}: {best.text!r}, P = {best.probability:.4g}")
        before = best.token_id
    last = float(lens.answer_probabilities[-1, -1]), int(lens.answer_ranks[-1, -1])
    lines.append(f"    in the last layer: P({lens.answer!r}) = {last[0]:.4g}, rank {last[1]}")
    return "\n".join(lines)


def lens_figure(lens: LogitLens) -> str | None:
    """Return a lens's figure as HTML for a notebook; None if Plotly is not installed."""
    if find_spec("plotly") is None:
        return None
    from causal_tracer.plots.lens import plot_lens

    return _framed(plot_lens(lens, show=False), "logit lens")


def patched_lines(run: PatchedRun) -> str:
    """Return a patched run's prompts, pairs and answers in a few lines."""
    lines = [
        f"PatchedRun: {run.lens.run}, {run.lens.model} ({run.lens.dtype})",
        f"  source {_short(run.source_prompt)}",
        f"  base {_short(run.base_prompt)}",
    ]
    for source, base in run.pairs[:_MOST_PAIRS]:
        lines.append(f"  {_cell(run.source_tokens, source)} into {_cell(run.base_tokens, base)}")
    if (more := len(run.pairs) - _MOST_PAIRS) > 0:
        lines.append(f"  and {more} more pairs")
    lines += [
        f"  P({answer.text!r}): source {answer.source:.4g}, base {answer.base:.4g}, patched {answer.patched:.4g}"
        for answer in run.answers
    ]
    said = ", ".join(f"{token.text!r} {token.probability:.4g}" for token in run.top_tokens)
    return "\n".join([*lines, f"  patched: {said}"])


def _cell(tokens: Sequence[str], place: Sequence[int]) -> str:
    head = f", head {place[2]}" if len(place) > 2 else ""
    return f"{tokens[place[0]]!r} (token {place[0]}), layer {place[1]}{head}"


def _framed(figure: go.Figure, title: str) -> str:
    """Return a figure as an iframe for a notebook."""
    from causal_tracer.plots.pages import figure_html, standalone_page

    # A whole page in an iframe needs no network and nothing else of the notebook.
    fill = "<style>body { margin: 0; padding: 0; max-width: none; }</style>"
    page = html.escape(standalone_page("Causal tracing", fill + figure_html(figure)))
    height = int(figure.layout.height or 450) + 20
    return f'<iframe srcdoc="{page}" style="width: 100%; height: {height}px; border: 0" title="{title}"></iframe>'


def _samples(flow: HiddenFlow) -> str:
    count = len(flow.low_sample_scores)
    return f"{count} sample" if count == 1 else f"{count} samples"


def _short(text: str) -> str:
    """Return the `repr` of a text, without the middle if the text is long."""
    if len(text) <= _LONGEST_TEXT:
        return repr(text)
    half = _LONGEST_TEXT // 2
    return repr(f"{text[:half]} … {text[-half:]}")
