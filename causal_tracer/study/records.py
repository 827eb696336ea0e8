"""The record of each fact of a study, and its JSON form in journals."""

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
"""The token roles of Meng et al. 2022, Figure 2. Tokens before the subject are left out, because their effect is 0."""

PEAK_ROLES = ("last subject", "last")
"""The roles shown in tables and comparisons: those of the two peaks in Meng et al. 2022."""

_NUMBERS = {"high", "low", "scores", "standard_error"}


@dataclass(frozen=True, eq=False)
class MapResult:
    """One map of one fact.

    Attributes:
        name: The map's name in `StudySettings.maps`.
        scores: The metric, as the mean over samples [tokens, layers], float32; NaN in cells that were not computed.
        standard_error: The standard error of the effect [tokens, layers], float32.
    """

    name: str
    scores: Floats
    standard_error: Floats


@dataclass(frozen=True)
class AuditedCell:
    """A cell that was computed again by the full sweep.

    Attributes:
        map_name: The name of the map.
        kind: The map's kind.
        position: The cell's row.
        layer: The cell's layer.
        score: The score in the study's map.
        full_score: The score by the full sweep.
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
        status: "traced", "unknown" (the model's most probable next token is not the attribute's), or "failed".
        cause: The error of a failed fact, or the model's answer to an unknown one.
        high: The metric in the clean run; NaN unless traced.
        low: The metric in the corrupted run, as the mean over samples; NaN unless traced.
        roles: The role of each token.
        tokens: The text of each token.
        seed: The seed of the noise.
        engine: The sweep that computed the maps.
        batch_size: Rows of a forward pass.
        seconds: The time it took, in seconds.
        maps: The fact's maps.
        audit: The cells that were computed again.
        partner: The subject of the second prompt, in a study over pairs.
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
        """Return the record that `to_dict` wrote.

        Raises:
            StudyError: The data is not that of a record.
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
                f"A record of this study is damaged ({error!r}). Remove its file, and run the study again."
            ) from error


def latest_records(records: Sequence[FactRecord]) -> tuple[FactRecord, ...]:
    """Return one record for each fact, sorted by fact id: the first one that did not fail, else the first one."""
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
    """Return the map that `FactRecord.to_dict` wrote. NumPy reads None as NaN."""
    return MapResult(name, **{plane: np.array(values, dtype=np.float32) for plane, values in planes.items()})
