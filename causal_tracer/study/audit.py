"""The audit of a study: a summary of the cells computed again by the full sweep, and the check of their differences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from causal_tracer.errors import StudyError
from causal_tracer.study.records import FactRecord
from causal_tracer.study.settings import StudySettings


@dataclass(frozen=True)
class AuditSummary:
    """The audit of one map over all facts.

    Attributes:
        map_name: The name of the map.
        cells: Number of cells that were computed again.
        largest: The largest absolute difference of their scores.
        p99: The 99th percentile of the absolute differences.
    """

    map_name: str
    cells: int
    largest: float
    p99: float


def audit_summary(records: Sequence[FactRecord]) -> tuple[AuditSummary, ...]:
    """Return the audit of each map."""
    by_map: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for cell in record.audit:
            by_map[cell.map_name].append(cell.difference)
    return tuple(
        AuditSummary(name, len(found), max(found), float(np.quantile(found, 0.99))) for name, found in by_map.items()
    )


def check_audit(records: Sequence[FactRecord], settings: StudySettings, dtype: str | None = None) -> None:
    """Raise an error if an audited cell differs from the full sweep by more than the limit.

    Args:
        records: The records to check.
        settings: The study's settings.
        dtype: Dtype of the weights; None takes the one of the settings, or float32.

    Raises:
        StudyError: A cell differs by more than the limit, or is NaN.
    """
    limit = settings.audit_limit_for(dtype or settings.dtype or "float32")
    for record in records:
        for cell in record.audit:
            # Written with "not" because a NaN difference must fail, too.
            if not cell.difference <= limit:
                raise StudyError(
                    f"The study stopped because a cell differs from the full sweep by {cell.difference:.2g}, more than "
                    f"the limit of {limit:g}: {record.fact.prompt!r}, map {cell.map_name!r}, token {cell.position}, "
                    f"layer {cell.layer}: {cell.score:.6g} by the {record.engine} sweep, {cell.full_score:.6g} by the "
                    "full sweep. Report this with the model's name. If the weights have a coarse dtype, try a larger "
                    "--audit-limit."
                )
