"""What a study keeps of each fact, and its form in a journal's lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from causal_tracer.errors import StudyError
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.study.facts import Fact

Floats = NDArray[np.float32]
Status = Literal["traced", "unknown", "failed"]

ROLES = ("first subject", "middle subject", "last subject", "first after", "further", "last")
"""The token roles of the paper's Figure 2. Tokens before the subject have the role "before" and no effect at all."""


@dataclass(frozen=True)
class MapSettings:
    """One of the maps that a study makes of each fact.

    Attributes:
        name: What tables and figures call it.
        kind: Which activations are restored.
        window: Number of consecutive layers restored together.
        severed: Which outputs are held at their corrupted values at the restored token: "mlp", "attention" or None.
        placebo: Whether activations come from another fact's clean run.
        everywhere: Restore at every token; else at the last subject token and the last token only.
    """

    name: str
    kind: str
    window: int
    severed: str | None
    placebo: bool
    everywhere: bool


@dataclass(frozen=True, eq=False)
class MapResult:
    """One map of one fact.

    Attributes:
        settings: Which map.
        scores: Mean metric over samples [tokens, layers], float32; NaN where nothing was computed.
        standard_error: Standard error of the indirect effect [tokens, layers], float32.
    """

    settings: MapSettings
    scores: Floats
    standard_error: Floats

    @classmethod
    def of(cls, settings: MapSettings, flow: HiddenFlow) -> MapResult:
        """The part of a traced map that a study keeps."""
        return cls(settings, flow.scores.numpy(), flow.standard_error.numpy())


@dataclass(frozen=True)
class AuditedCell:
    """A cell that was computed once more by the full sweep.

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
    """What came of one fact.

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
        seconds: What it took.
        maps: Its maps.
        audit: Cells computed once more.
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
    audit: tuple[AuditedCell, ...] = field(default=())

    @property
    def total_effect(self) -> float:
        """TE: high - low."""
        return self.high - self.low

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON types; null stands for NaN."""
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        maps = [
            {
                "settings": asdict(result.settings),
                "scores": _lists(result.scores),
                "standard_error": _lists(result.standard_error),
            }
            for result in self.maps
        ]
        return data | {
            "fact": asdict(self.fact),
            "high": _number(self.high),
            "low": _number(self.low),
            "roles": list(self.roles),
            "tokens": list(self.tokens),
            "maps": maps,
            "audit": [asdict(cell) for cell in self.audit],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FactRecord:
        """The record that `to_dict` described.

        Raises:
            StudyError: It is not one.
        """
        try:
            if data["status"] not in get_args(Status):
                raise ValueError(f"status {data['status']!r}")
            maps = tuple(
                MapResult(MapSettings(**m["settings"]), _array(m["scores"]), _array(m["standard_error"]))
                for m in data["maps"]
            )
            plain = {name: data[name] for name in ("status", "cause", "seed", "engine", "batch_size", "seconds")}
            return cls(
                fact=Fact(**data["fact"]),
                high=_float(data["high"]),
                low=_float(data["low"]),
                roles=tuple(data["roles"]),
                tokens=tuple(data["tokens"]),
                maps=maps,
                audit=tuple(AuditedCell(**cell) for cell in data["audit"]),
                **plain,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StudyError(
                f"A record of this study is damaged ({error!r}). Remove its file and run again."
            ) from error


def latest_records(records: Sequence[FactRecord]) -> tuple[FactRecord, ...]:
    """One record a fact, in the facts' order: a traced one before one that failed, else the first."""
    best: dict[str, FactRecord] = {}
    for record in records:
        known = best.get(record.fact.fact_id)
        if known is None or (known.status == "failed" and record.status != "failed"):
            best[record.fact.fact_id] = record
    return tuple(best[name] for name in sorted(best))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _float(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _lists(values: Floats) -> list[list[float | None]]:
    return [[_number(value) for value in row] for row in values.tolist()]


def _array(rows: Sequence[Sequence[float | None]]) -> Floats:
    return np.array([[_float(value) for value in row] for row in rows], dtype=np.float32)
