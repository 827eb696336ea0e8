"""The audit of a study: cells drawn by the seed, computed again by the full sweep."""

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
    """The audit of one map's cells.

    Attributes:
        map_name: Which map.
        cells: How many cells were computed twice.
        largest: Largest |difference| of their scores.
        p99: 99th percentile of it.
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
    """Stop a study whose sweep is wrong.

    Args:
        records: The records to check.
        settings: The study's settings.
        dtype: Dtype of the weights; None takes what the settings ask for, or float32.

    Raises:
        StudyError: A cell differs by more than the limit, or is NaN in one sweep only.
    """
    limit = settings.limit_of(dtype or settings.dtype or "float32")
    for record in records:
        for cell in record.audit:
            # Also where one of them is NaN.
            if not cell.difference <= limit:
                raise StudyError(
                    f"The audit found a cell that differs from the full sweep by {cell.difference:.2g}, more than "
                    f"{limit:g}: {record.fact.prompt!r}, map {cell.map_name!r}, token {cell.position}, layer "
                    f"{cell.layer}: {cell.score:.6g} by {record.engine!r}, {cell.full_score:.6g} in full. The study is "
                    "stopped. Report this, with the model's name; a coarser dtype may need a larger --audit-limit."
                )
