"""ROME's Figure 1, panels e to g, with the published prompt, noise and windows, and the comparison with its numbers.

Noise: 0.1 * numpy.random.RandomState(1).randn(10, 4, d_model), as `corruption.GaussianNoise(0.1, 1)` draws it.
Window with centre c: layers c-5 to c+4, as `request.sites.window_layers` gives it for a window of 10.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from causal_tracer.compat import Progress
from causal_tracer.reproduce.paper_model import model_mismatch
from causal_tracer.reproduce.published import (
    FIGURE_1,
    FIGURE_1_ANSWER,
    FIGURE_1_NOISE,
    FIGURE_1_PROMPT,
    FIGURE_1_SAMPLES,
    FIGURE_1_SEED,
    FIGURE_1_SUBJECT,
    FIGURE_1_TOKENS,
    FIGURE_1_WINDOW,
    PAPER_LAYERS,
    AboveHalf,
    CellScore,
    Peak,
    RunScore,
)
from causal_tracer.reproduce.verdict import Check, Verdict, value_check
from causal_tracer.request.records import MapSpec, TraceRequest
from causal_tracer.request.sites import KINDS, SITES, LayerKind
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.tracer import CausalTracer

_HALF = 0.5


def figure_request(noise: float | str = FIGURE_1_NOISE) -> TraceRequest:
    """Return the figure's request. Models whose embeddings have another scale need another noise level."""
    return TraceRequest(
        FIGURE_1_PROMPT,
        FIGURE_1_SUBJECT,
        answer=FIGURE_1_ANSWER,
        answer_form="exact",
        corruption="gaussian",
        noise=noise,
        samples=FIGURE_1_SAMPLES,
        seed=FIGURE_1_SEED,
    )


def figure_maps() -> dict[str, MapSpec]:
    """Return the maps of panels e, f and g: single hidden states, and windows of MLP and attention outputs."""
    return {kind: MapSpec(kind, 1 if kind == "hidden" else FIGURE_1_WINDOW) for kind in KINDS}


def trace_figure(
    tracer: CausalTracer, noise: float | str = FIGURE_1_NOISE, progress: Progress | None = None
) -> dict[str, HiddenFlow]:
    """Trace the three maps on a model, and return them by kind."""
    return tracer.trace_maps(figure_request(noise), figure_maps(), progress=progress)


def figure_verdict(flows: Mapping[str, HiddenFlow], model_class: str) -> Verdict:
    """Compare three maps with the published ones.

    Args:
        flows: The maps by kind.
        model_class: The class of the model that they were traced on.

    Returns:
        The comparison, without a verdict if the model, dtype, noise level or tokens are not the figure's. If the
        tokens or the number of layers differ, it has no checks.
    """
    hidden = flows["hidden"]
    layers, settings = int(hidden.scores.shape[1]), hidden.settings
    why = list(model_mismatch(settings.model, model_class, layers, settings.dtype))
    same_tokens = tuple(hidden.input_tokens) == FIGURE_1_TOKENS
    if not (why or same_tokens):
        why.append(f"the prompt's tokens are {hidden.input_tokens}, and the figure's are {list(FIGURE_1_TOKENS)}")
    if settings.noise != FIGURE_1_NOISE:
        why.append(f"the noise level is {settings.noise:g}, and the figure's is {FIGURE_1_NOISE:g}")
    comparable = same_tokens and layers == PAPER_LAYERS
    return Verdict(tuple(_check(entry, flows) for entry in FIGURE_1) if comparable else (), tuple(why))


def _check(entry: RunScore | CellScore | AboveHalf | Peak, flows: Mapping[str, HiddenFlow]) -> Check:
    if isinstance(entry, RunScore):
        measured = flows["hidden"].high_score if entry.run == "clean" else flows["hidden"].low_score
        return value_check(f"{entry.run} run", entry.value, measured, entry.source, "probability")
    place, row = f"{SITES[entry.kind].label}, {FIGURE_1_TOKENS[entry.token].strip()!r}", flows[entry.kind].scores
    if isinstance(entry, CellScore):
        measured = float(row[entry.token, entry.layer])
        quantity = f"{place}, {_column(entry.kind)} {entry.layer}"
        return value_check(quantity, entry.value, measured, entry.source, "probability")
    if isinstance(entry, AboveHalf):
        found = tuple((row[entry.token] > _HALF).nonzero().flatten().tolist())
        wrong = float(len(set(found) ^ set(entry.layers)))
        written = (_ranges(entry.layers), _ranges(found))
        return Check(f"{place}, above {_HALF:g} at", *written, wrong, 0.0, "layers", entry.source)
    return _peak_check(entry, place, flows[entry.kind])


def _peak_check(entry: Peak, place: str, flow: HiddenFlow) -> Check:
    layers = int(flow.scores.shape[1])
    at = int((flow.scores if entry.of_map else flow.scores[entry.token]).nan_to_num(-math.inf).argmax())
    token, layer = divmod(at, layers) if entry.of_map else (entry.token, at)
    what = f"{place}, largest of the map at" if entry.of_map else f"{place}, largest at"
    # For a peak at another token, a distance in layers has no meaning.
    difference = float(abs(layer - entry.layer)) if token == entry.token else math.inf
    measured = str(layer) if token == entry.token else f"{layer} of {flow.input_tokens[token].strip()!r}"
    return Check(what, str(entry.layer), measured, difference, 0.0, "layers", entry.source)


def _column(kind: LayerKind) -> str:
    return "layer" if kind == "hidden" else "centre"


def _ranges(layers: tuple[int, ...]) -> str:
    """Return layers as ranges: "27-36, 38"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(start) if start == end else f"{start}-{end}" for start, end in runs) or "none"
