"""The attention-knockout curves of Geva et al. 2023 (arXiv 2304.14767, Figure 2).

The last token's attention to the subject, to the other tokens, or to itself is blocked in windows of nine layers. A
curve is the mean change of the answer's probability relative to the clean run, in per cent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from causal_tracer.reproduce.fact_studies import study_verdict
from causal_tracer.reproduce.published import RECALL, Order
from causal_tracer.reproduce.verdict import Check, Verdict
from causal_tracer.request.records import TraceRequest, with_clean_run_defaults
from causal_tracer.request.sites import SPANS
from causal_tracer.study.settings import StudySettings, study_maps
from causal_tracer.study.statistics import Mean, StudyEffects
from causal_tracer.study.stored import StoredStudy

KIND = "span_knockout"


def recall_settings(**own: Any) -> StudySettings:
    """Return the settings of the study.

    Args:
        own: The fields `model`, `facts`, `facts_digest`, `revision` and `dtype` of `StudySettings`.
    """
    return StudySettings(
        request=TraceRequest("", **with_clean_run_defaults({})),
        maps=study_maps(kinds=[KIND], severed=False, placebo=False),
        **own,
    )


def recall_curves(effects: StudyEffects) -> dict[str, Mean]:
    """Return the curve of each span with its 95 % interval [layers], in per cent of the clean run."""
    changes = effects.percent_of_clean(KIND)
    return {span: effects.mean(changes[:, number]) for number, span in enumerate(SPANS)}


def recall_verdict(study: StoredStudy) -> Verdict:
    """Compare the order of a study's curves with the order that the paper reports.

    Raises:
        StudyError: No fact was traced.
    """
    curves = recall_curves(study.effects)
    return study_verdict(study, tuple(_check(entry, curves) for entry in RECALL))


def _check(entry: Order, curves: Mapping[str, Mean]) -> Check:
    first, second = curves[entry.first], curves[entry.second]
    layers = int(np.argmin(second.mean) - np.argmin(first.mean))
    words = f"{entry.first} lowest before {entry.second}, by", "1 layer or more"
    if not all(curve.high[np.argmin(curve.mean)] < 0 for curve in (first, second)):
        # If blocking does not lower the curve, rounding determines its lowest point.
        return Check(*words, "no fall", math.nan, 0.0, "layers", entry.source)
    # The difference is the number of layers by which the order is missed, 0 if it holds.
    return Check(*words, str(layers), float(max(0, 1 - layers)), 0.0, "layers", entry.source)
