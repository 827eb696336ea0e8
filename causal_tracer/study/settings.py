"""What a study is asked to do: the part of it that must not change once it has begun."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from causal_tracer.errors import SettingsError, StudyError
from causal_tracer.metrics.metric import METRICS
from causal_tracer.request.records import MapSpec
from causal_tracer.request.sites import DEFAULT_WINDOWS, KINDS, LayerKind
from causal_tracer.study.records import MapSettings

SeedRule = Literal["per fact", "one"]


@dataclass(frozen=True)
class StudySettings:
    """How each fact of a study is traced. Two runs that differ in any of these are different studies.

    Attributes:
        model: The model, as `load_model` takes it.
        facts: Where the facts came from.
        facts_digest: Their hash.
        revision: A hub model's branch, tag or commit.
        dtype: Dtype of the weights; None takes `load_model`'s.
        noise: Standard deviation of the noise; or a multiple of the embedding output's over the vocabulary, such as
            "2 sigma", None being three of them; or "subjects", which is three times that of the facts' subjects'
            embeddings, as in ROME's code.
        samples: Noise samples of each fact.
        seed: Seed of the study.
        seed_rule: "per fact" derives each fact's noise from seed and fact; "one" gives all facts the same, as ROME's
            code does.
        metric: What is read off the logits.
        kinds: The kinds of which each fact gets a map.
        windows: The window of each kind.
        severed: Also restore hidden states with the MLP's, and with attention's, outputs held (ROME, Figure 3).
        placebo: Also restore each kind to another fact's activations.
        controls_everywhere: Make severed and placebo maps at all tokens; else at the last subject token and the last
            token only.
        batch_size: Rows that go through the model together; None takes what model and machine allow.
        audit_share: Share of the cells that is computed once more by the full sweep.
        audit_limit: The difference at which the study stops; None takes what the dtype allows.
    """

    model: str
    facts: str
    facts_digest: str
    revision: str | None = None
    dtype: str | None = None
    noise: float | str | None = None
    samples: int = 10
    seed: int = 1
    seed_rule: SeedRule = "per fact"
    metric: str = "probability"
    kinds: tuple[LayerKind, ...] = KINDS
    windows: tuple[int, ...] = tuple(DEFAULT_WINDOWS[kind] for kind in KINDS)
    severed: bool = True
    placebo: bool = True
    controls_everywhere: bool = False
    batch_size: int | None = None
    audit_share: float = 0.005
    audit_limit: float | None = None

    def __post_init__(self) -> None:
        if not self.kinds or len(self.kinds) != len(self.windows):
            raise SettingsError(f"kinds={self.kinds} and windows={self.windows} do not fit. Give one window a kind.")
        if self.seed_rule not in get_args(SeedRule):
            raise SettingsError(f'seed_rule={self.seed_rule!r} is not known. Choose "per fact" or "one".')
        if self.metric not in METRICS:
            raise SettingsError(f"metric={self.metric!r} is not known. Choose one of {', '.join(METRICS)}.")
        if self.metric == "logit difference":
            raise SettingsError("metric='logit difference' needs a foil, and a study's facts have none. Give another.")
        if not 0 <= self.audit_share <= 1:
            raise SettingsError(f"audit_share={self.audit_share} is not a share. Give a number from 0 to 1.")
        if self.samples < 1 or not 0 <= self.seed < 2**32:
            raise SettingsError(
                f"samples={self.samples}, seed={self.seed}: give 1 sample or more, and a seed from 0 to 2**32 - 1."
            )
        self.maps()

    def maps(self) -> tuple[MapSettings, ...]:
        """The maps that each fact gets."""
        windows = dict(zip(self.kinds, self.windows, strict=True))
        maps = [MapSettings(kind, kind, window, None, False, True) for kind, window in windows.items()]
        everywhere = self.controls_everywhere
        if self.severed and "hidden" in windows:
            maps += [
                MapSettings(f"hidden, {held} severed", "hidden", windows["hidden"], held, False, everywhere)
                for held in ("mlp", "attention")
            ]
        if self.placebo:
            maps += [
                MapSettings(f"{kind}, placebo", kind, window, None, True, everywhere)
                for kind, window in windows.items()
            ]
        for asked in maps:
            map_spec(asked)
        return tuple(maps)

    def seed_of(self, fact_id: str) -> int:
        """The seed of a fact's noise."""
        return self.seed if self.seed_rule == "one" else derived_seed(self.seed, fact_id)

    def limit_of(self, dtype: str) -> float:
        """The audit's limit for weights of this dtype: rounding is far below it, a wrong cell above."""
        if self.audit_limit is not None:
            return self.audit_limit
        return 1e-4 if dtype in ("float32", "float64") else 0.05

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON types."""
        return asdict(self) | {"kinds": list(self.kinds), "windows": list(self.windows)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StudySettings:
        """The settings that `to_dict` described.

        Raises:
            StudyError: They are not settings of this version.
        """
        try:
            lists = {name: tuple(data[name]) for name in ("kinds", "windows")}
            return cls(**{**data, **lists})
        except (KeyError, TypeError, SettingsError) as error:
            raise StudyError(f"The manifest's settings are not those of this version ({error}).") from error

    def changes(self, other: StudySettings) -> list[str]:
        """What differs in another's settings, in words."""
        return [
            f"{item.name} was {getattr(self, item.name)!r} and is {getattr(other, item.name)!r}"
            for item in fields(self)
            if getattr(self, item.name) != getattr(other, item.name)
        ]


def map_spec(asked: MapSettings) -> MapSpec:
    """A map of a study as the engine takes it."""
    kinds: dict[str | None, LayerKind] = {kind: kind for kind in KINDS}
    return MapSpec(
        kinds[asked.kind],
        asked.window,
        severed=kinds.get(asked.severed),
        source="placebo" if asked.placebo else "clean",
    )


def derived_seed(seed: int, *names: str) -> int:
    """A seed below 2**32 that follows from another and from names, the same on every machine."""
    text = "\n".join([str(seed), *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
