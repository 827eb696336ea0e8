"""What the reproductions over many facts share: who may have a verdict, and the study behind it."""

from __future__ import annotations

from causal_tracer.reproduce.paper_model import why_other_model
from causal_tracer.reproduce.published import PAPER_FACTS, PAPER_FACTS_DIGEST
from causal_tracer.reproduce.verdict import Check, Verdict
from causal_tracer.study.stored import StoredStudy


def study_verdict(study: StoredStudy, checks: tuple[Check, ...], samples: int | None = None) -> Verdict:
    """Return the verdict of a study: none unless it traced the paper's model on all of the paper's facts.

    Args:
        study: The study, brought to an end.
        checks: Its comparisons.
        samples: The paper's noise samples of each fact; None where there is no noise.
    """
    model, settings = study.manifest.get("model", {}), study.settings
    why = [
        *why_other_model(
            study.model, str(model.get("class")), int(model.get("layers", 0)), str(model.get("dtype", "unknown"))
        )
    ]
    if settings.facts_digest != PAPER_FACTS_DIGEST:
        why.append(f"the facts are {settings.facts}, and the papers' are ROME's known_1000.json (--facts)")
    elif (asked := sum(record.status != "failed" for record in study.records)) != PAPER_FACTS:
        why.append(f"{asked} of the {PAPER_FACTS} facts are done")
    if samples is not None and settings.samples != samples:
        why.append(f"each fact had {settings.samples} noise samples, and {samples} in the paper")
    return Verdict(checks, tuple(why))
