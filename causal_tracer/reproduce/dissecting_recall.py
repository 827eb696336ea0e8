"""The attention-knockout curves of Geva et al. 2023 (arXiv 2304.14767, Figure 2).

In windows of nine layers the last token may not attend to the subject, to the other tokens, or to itself. A curve is
the mean change of the answer's probability relative to the clean run, in per cent.
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
        own: The study's model, facts with their digest, revision and dtype, as in `StudySettings`.
    """
    return StudySettings(
        request=TraceRequest("", **with_clean_run_defaults({})),
        maps=study_maps(kinds=[KIND], severed=False, placebo=False),
        **own,
    )


def recall_curves(effects: StudyEffects) -> dict[str, Mean]:
    """Return the curve of each span with its interval [layers], in per cent of the clean run."""
    changes = effects.percent_of_clean(KIND)
    return {span: effects.mean(changes[:, number]) for number, span in enumerate(SPANS)}


def recall_verdict(study: StoredStudy) -> Verdict:
    """Compare a study's curves with what the paper says of its own.

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
        # Where blocking takes nothing away, the lowest point is that of rounding.
        return Check(*words, "no fall", math.nan, 0.0, "layers", entry.source)
    # An order has no size: what counts is by how much it is missed.
    return Check(*words, str(layers), float(max(0, 1 - layers)), 0.0, "layers", entry.source)
