"""The verdict of a reproduction over many facts, and the conditions under which there is one."""

from __future__ import annotations

from causal_tracer.reproduce.paper_model import model_mismatch
from causal_tracer.reproduce.published import PAPER_FACTS, PAPER_FACTS_DIGEST
from causal_tracer.reproduce.verdict import Check, Verdict
from causal_tracer.study.stored import StoredStudy


def study_verdict(study: StoredStudy, checks: tuple[Check, ...], samples: int | None = None) -> Verdict:
    """Return the verdict of a study; without the paper's model or all of the paper's facts there is no verdict.

    Args:
        study: The finished study.
        checks: The study's checks.
        samples: The paper's number of noise samples of each fact; None for an experiment without noise.
    """
    model, settings = study.manifest.get("model", {}), study.settings
    why = [
        *model_mismatch(
            study.model, str(model.get("class")), int(model.get("layers", 0)), str(model.get("dtype", "unknown"))
        )
    ]
    if settings.facts_digest != PAPER_FACTS_DIGEST:
        why.append(f"the facts are {settings.facts}, and the paper's are ROME's known_1000.json (--facts)")
    elif (asked := sum(record.status != "failed" for record in study.records)) != PAPER_FACTS:
        why.append(f"{asked} of the {PAPER_FACTS} facts are done, and the paper's numbers are over all of them")
    if samples is not None and settings.samples != samples:
        why.append(f"each fact has {settings.samples} noise samples, and {samples} in the paper")
    return Verdict(checks, tuple(why))
