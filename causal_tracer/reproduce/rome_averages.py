"""ROME's averages over facts: total effect, indirect effects as in its Figures 2 and 7, and probabilities.

The study has noise of three standard deviations of the subjects' embeddings, the same noise for each fact, and windows
of 10 layers. It is the same as

    causal-tracer study --samples 10 --one-seed --noise subjects --no-severed --no-placebo
"""

from __future__ import annotations

import math
from typing import Any

from causal_tracer.reproduce.fact_studies import study_verdict
from causal_tracer.reproduce.published import AVERAGES, AVERAGES_SAMPLES, Average
from causal_tracer.reproduce.verdict import Check, Verdict, value_check
from causal_tracer.request.records import TraceRequest
from causal_tracer.request.sites import SITES
from causal_tracer.study.settings import StudySettings, study_maps
from causal_tracer.study.statistics import StudyEffects, fact_peaks
from causal_tracer.study.stored import StoredStudy


def averages_settings(samples: int = AVERAGES_SAMPLES, **own: Any) -> StudySettings:
    """Return the settings of the study.

    Args:
        samples: Number of noise samples of each fact; 10 in the paper.
        own: The fields `model`, `facts`, `facts_digest`, `revision` and `dtype` of `StudySettings`.
    """
    return StudySettings(
        request=TraceRequest("", noise="subjects", samples=samples),
        maps=study_maps(severed=False, placebo=False),
        seed_rule="one",
        **own,
    )


def averages_verdict(study: StoredStudy) -> Verdict:
    """Compare a study's averages with the paper's.

    Raises:
        StudyError: No fact was traced.
    """
    return study_verdict(study, tuple(_check(entry, study.effects) for entry in AVERAGES), AVERAGES_SAMPLES)


def _check(entry: Average, effects: StudyEffects) -> Check:
    return value_check(_quantity(entry), entry.value, _percent(entry, effects), entry.source, "points")


def _percent(entry: Average, effects: StudyEffects) -> float:
    """Return a study's value of a published average, in per cent; NaN for a layer that the model does not have."""
    if entry.quantity == "ATE":
        return 100 * float(effects.total_effect.mean())
    if entry.quantity in ("clean", "corrupted"):
        return 100 * float((effects.high if entry.quantity == "clean" else effects.low).mean())
    low = 0.0 if entry.quantity == "AIE" else float(effects.low.mean())
    if entry.quantity == "P, own best":
        return 100 * (low + float(fact_peaks(effects, entry.kind, entry.role)[1].mean()))
    aie = effects.mean(effects.at(entry.kind, entry.role)).mean
    layer = int(aie.argmax()) if entry.layer is None else entry.layer
    return 100 * (low + float(aie[layer])) if layer < len(aie) else math.nan


def _quantity(entry: Average) -> str:
    if entry.quantity == "ATE":
        return "average total effect"
    if entry.quantity in ("clean", "corrupted"):
        return f"mean P, {entry.quantity} run"
    where = f"{SITES[entry.kind].label}, {entry.role} token"
    if entry.quantity == "P, own best":
        return f"mean P, {where}, each fact's best layer"
    what = "AIE" if entry.quantity == "AIE" else "mean P"
    at = "best layer" if entry.layer is None else f"{'layer' if entry.kind == 'hidden' else 'centre'} {entry.layer}"
    return f"{what}, {where}, {at}"
