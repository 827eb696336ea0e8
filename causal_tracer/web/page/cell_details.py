"""One cell of a map in detail, from what the result has stored: no model is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from causal_tracer.errors import SettingsError
from causal_tracer.metrics.descriptions import MetricDescription
from causal_tracer.results.analysis import effects, share
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.top_tokens import TokenProbability
from causal_tracer.results.words import effect_label, metric_label, metric_of, patched_layers, patched_word


@dataclass(frozen=True)
class CellDetails:
    """A cell of a map.

    Attributes:
        position: The restored token's place in the prompt.
        token: Its label.
        layer: The layer.
        restored_layers: The first and the last layer that were restored.
        samples: The metric in each patched run; empty where the cell was not computed.
        low_samples: The same in the corrupted runs, with the same noise.
        score: The mean of `samples`; None where the cell was not computed.
        low_score: The mean in the corrupted runs.
        high_score: The metric in the clean run.
        indirect_effect: score - low_score; None where the cell was not computed.
        effect: What the patch changes, as `Peak.effect`; None where the cell was not computed.
        interval: Its 95 % interval over noise samples; None with a single sample.
        share: The effect as a share of the total effect; None where there is none.
        restored: The most probable next tokens of the patched runs; empty where they were not kept.
        clean: Those of the clean run.
        corrupted: Those of the corrupted runs.
        metric: How the metric's values are presented.
        metric_label: What the values are, such as "P(Seattle)".
        effect_label: What the effect is called.
        patched: What was done to the layers: "restored" or "corrupted".
    """

    position: int
    token: str
    layer: int
    restored_layers: tuple[int, int]
    samples: tuple[float, ...]
    low_samples: tuple[float, ...]
    score: float | None
    low_score: float
    high_score: float
    indirect_effect: float | None
    effect: float | None
    interval: tuple[float, float] | None
    share: float | None
    restored: tuple[TokenProbability, ...]
    clean: tuple[TokenProbability, ...]
    corrupted: tuple[TokenProbability, ...]
    metric: MetricDescription
    metric_label: str
    effect_label: str
    patched: str


def cell_details(flow: HiddenFlow, position: int, layer: int) -> CellDetails:
    """A cell in detail.

    Raises:
        SettingsError: The map has no such cell.
    """
    tokens, layers = flow.scores.shape
    if not (0 <= position < tokens and 0 <= layer < layers):
        raise SettingsError(
            f"The map has no cell at token {position}, layer {layer}: it has {tokens} tokens and {layers} layers."
        )
    score, effect = float(flow.scores[position, layer]), float(effects(flow)[position, layer])
    known = not math.isnan(score)
    low, high = (float(bound[position, layer]) for bound in flow.interval())
    part = share(flow, effect)
    tops = flow.top_tokens
    return CellDetails(
        position=position,
        token=flow.input_tokens[position],
        layer=layer,
        restored_layers=patched_layers(flow, layer),
        samples=tuple(flow.sample_scores[:, position, layer].tolist()) if known else (),
        low_samples=tuple(flow.low_sample_scores.tolist()),
        score=score if known else None,
        low_score=flow.low_score,
        high_score=flow.high_score,
        indirect_effect=float(flow.indirect_effect[position, layer]) if known else None,
        effect=effect if known else None,
        interval=(low, high) if known and math.isfinite(low) and math.isfinite(high) else None,
        share=None if math.isnan(part) else part,
        restored=tops.cells(position, layer) if tops is not None else (),
        clean=tops.clean if tops is not None else (),
        corrupted=tops.corrupted if tops is not None else (),
        metric=metric_of(flow),
        metric_label=metric_label(flow),
        effect_label=effect_label(flow),
        patched=patched_word(flow),
    )
