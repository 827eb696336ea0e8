"""The records that a study keeps of each fact, and their form as JSON in a journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from causal_tracer.errors import StudyError
from causal_tracer.study.facts import Fact

Floats = NDArray[np.float32]
Status = Literal["traced", "unknown", "failed"]

ROLES = ("first subject", "middle subject", "last subject", "first after", "further", "last")
"""The token roles of the paper's Figure 2. Tokens before the subject have the role "before" and no effect at all."""

READ_ROLES = ("last subject", "last")
"""The roles at which the paper finds the two peaks: tables and comparisons read these."""

_NUMBERS = {"high", "low", "scores", "standard_error"}


@dataclass(frozen=True, eq=False)
class MapResult:
    """One map of one fact.

    Attributes:
        name: The map's name in `StudySettings.maps`.
        scores: Mean metric over samples [tokens, layers], float32; NaN where nothing was computed.
        standard_error: Standard error of the indirect effect [tokens, layers], float32.
    """

    name: str
    scores: Floats
    standard_error: Floats


@dataclass(frozen=True)
class AuditedCell:
    """A cell that was computed again by the full sweep.

    Attributes:
        map_name: Which map.
        kind: Its kind.
        position: The token restored.
        layer: The layer restored.
        score: What the study's sweep gave.
        full_score: What the full sweep gave.
    """

    map_name: str
    kind: str
    position: int
    layer: int
    score: float
    full_score: float

    @property
    def difference(self) -> float:
        """|score - full_score|."""
        return abs(self.score - self.full_score)


@dataclass(frozen=True, eq=False)
class FactRecord:
    """The record of one fact.

    Attributes:
        fact: The fact.
        status: "traced", "unknown" (the model's top answer is not the attribute), or "failed".
        cause: Why it failed, or what the model answered instead.
        high: The metric in the clean run; NaN unless traced.
        low: Mean metric in the corrupted runs; NaN unless traced.
        roles: The role of each token.
        tokens: The tokens' texts.
        seed: Seed of its noise.
        engine: Which sweep computed it.
        batch_size: Rows that went through the model together.
        seconds: Time that it took.
        maps: Its maps.
        audit: Cells computed again.
        partner: The subject of its second prompt, in a study over pairs.
    """

    fact: Fact
    status: Status
    cause: str = ""
    high: float = float("nan")
    low: float = float("nan")
    roles: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    seed: int = 0
    engine: str = ""
    batch_size: int = 0
    seconds: float = 0.0
    maps: tuple[MapResult, ...] = ()
    audit: tuple[AuditedCell, ...] = ()
    partner: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON types; null stands for NaN."""
        data = asdict(self)
        for values in (data, *data["maps"]):
            values.update({name: without_nan(values[name]) for name in _NUMBERS & values.keys()})
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FactRecord:
        """Return the record that `to_dict` described.

        Raises:
            StudyError: It is not one.
        """
        try:
            if data["status"] not in get_args(Status):
                raise ValueError(f"status {data['status']!r}")
            parts = {
                "fact": Fact(**data["fact"]),
                "high": float(np.array(data["high"], dtype=np.float64)),
                "low": float(np.array(data["low"], dtype=np.float64)),
                "roles": tuple(data["roles"]),
                "tokens": tuple(data["tokens"]),
                "maps": tuple(_map_result(**its) for its in data["maps"]),
                "audit": tuple(AuditedCell(**cell) for cell in data["audit"]),
            }
            return cls(**{**data, **parts})
        except (KeyError, TypeError, ValueError) as error:
            raise StudyError(
                f"A record of this study is damaged ({error!r}). Remove its file and run again."
            ) from error


def latest_records(records: Sequence[FactRecord]) -> tuple[FactRecord, ...]:
    """Return one record for each fact, in the facts' order: a traced one rather than a failed one, else the first."""
    best: dict[str, FactRecord] = {}
    for record in records:
        known = best.get(record.fact.fact_id)
        if known is None or (known.status == "failed" and record.status != "failed"):
            best[record.fact.fact_id] = record
    return tuple(best[name] for name in sorted(best))


def without_nan(values: float | Floats) -> Any:
    """Return a number or an array as JSON types, with None for NaN."""
    plain = np.array(values, dtype=object)
    plain[np.isnan(values)] = None
    return plain.tolist()


def _map_result(name: str, **planes: Any) -> MapResult:
    """Return the map that `FactRecord.to_dict` described; NumPy reads None as NaN."""
    return MapResult(name, **{plane: np.array(values, dtype=np.float32) for plane, values in planes.items()})
