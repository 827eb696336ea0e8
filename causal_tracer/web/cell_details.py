"""One cell of a map in detail, from what the result has stored: no model is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from causal_tracer.errors import SettingsError
from causal_tracer.flow import HiddenFlow
from causal_tracer.top_tokens import TokenProbability


@dataclass(frozen=True)
class CellDetails:
    """A cell of a map.

    Attributes:
        position: The restored token's place in the prompt.
        token: Its label.
        layer: The layer.
        restored_layers: The first and the last layer that were restored.
        samples: The answer's probability in each restored run; empty where the cell was not computed.
        low_samples: The same in the corrupted runs, with the same noise.
        score: The mean of `samples`; None where the cell was not computed.
        low_score: The mean in the corrupted runs.
        high_score: The answer's probability in the clean run.
        indirect_effect: score - low_score; None where the cell was not computed.
        interval: Its 95 % interval over noise samples; None with a single sample.
        share: The indirect effect as a share of the total effect; None where there is none.
        restored: The most probable next tokens of the restored runs; empty where they were not kept.
        clean: Those of the clean run.
        corrupted: Those of the corrupted runs.
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
    interval: tuple[float, float] | None
    share: float | None
    restored: tuple[TokenProbability, ...]
    clean: tuple[TokenProbability, ...]
    corrupted: tuple[TokenProbability, ...]


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
    window = flow.settings.window
    # As ROME's code does: layer - floor(w / 2) to layer + ceil(w / 2) - 1.
    restored = max(0, layer - window // 2), min(layers, layer - (-window // 2)) - 1
    score = float(flow.scores[position, layer])
    known = math.isfinite(score)
    effect = score - flow.low_score
    low, high = (float(bound[position, layer]) for bound in flow.interval())
    total = flow.total_effect
    tops = flow.top_tokens
    return CellDetails(
        position=position,
        token=flow.input_tokens[position],
        layer=layer,
        restored_layers=restored,
        samples=tuple(flow.sample_scores[:, position, layer].tolist()) if known else (),
        low_samples=tuple(flow.low_sample_scores.tolist()),
        score=score if known else None,
        low_score=flow.low_score,
        high_score=flow.high_score,
        indirect_effect=effect if known else None,
        interval=(low, high) if known and math.isfinite(low) and math.isfinite(high) else None,
        share=effect / total if known and total else None,
        restored=tops.cells(position, layer) if tops is not None else (),
        clean=tops.clean if tops is not None else (),
        corrupted=tops.corrupted if tops is not None else (),
    )
