"""Averages over facts by token role, and how sure they are.

1. The indirect effect of a cell is its score less the fact's low score.
2. A fact's effect at a role and layer is the mean over its tokens of that role.
3. The average indirect effect (AIE) is the mean over the facts that have such tokens; ATE is that of total effects.
4. Facts of one relation are not independent, so intervals come from a bootstrap that draws whole relations: the 2.5th
   and 97.5th percentile over draws of the mean over all facts of the relations drawn.

The definitions are those of Meng et al. 2022 (arXiv 2202.05262), section 2.2, with intervals of our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from causal_tracer.errors import StudyError
from causal_tracer.metrics.descriptions import METRIC_DESCRIPTIONS, MetricDescription
from causal_tracer.study.records import ROLES, FactRecord, MapSettings
from causal_tracer.study.settings import derived_seed

Doubles = NDArray[np.float64]

DRAWS = 2000
"""Bootstrap draws."""


@dataclass(frozen=True, eq=False)
class Mean:
    """A mean over facts with its 95 % interval; arrays of one shape, NaN where no fact has a value."""

    mean: Doubles
    low: Doubles
    high: Doubles


@dataclass(frozen=True, eq=False)
class RoleEffects:
    """The indirect effects of one map, averaged over each fact's tokens of a role.

    Attributes:
        settings: Which map.
        effects: Indirect effects [facts, roles, layers], roles as in `ROLES`; NaN where a fact has no such token.
    """

    settings: MapSettings
    effects: Doubles


@dataclass(frozen=True, eq=False)
class StudyEffects:
    """What the traced facts of a study show, as numbers that averages are taken of.

    Attributes:
        facts: The facts' ids.
        relations: Their relations.
        high: The metric in each clean run [facts].
        low: Its mean in the corrupted runs [facts].
        maps: For each map's name, its effects.
        metric: What high, low and effects are values and differences of.
    """

    facts: tuple[str, ...]
    relations: tuple[str, ...]
    high: Doubles
    low: Doubles
    maps: dict[str, RoleEffects]
    metric: MetricDescription = METRIC_DESCRIPTIONS["probability"]

    @property
    def label(self) -> str:
        """What the values are, in axes and tables."""
        return self.metric.labelled("answer")

    def strength(self, values: Doubles) -> Doubles:
        """Effects with the sign that makes the better direction positive, as choosing the best layer needs it."""
        return values if self.metric.higher_is_better else -values

    @property
    def total_effect(self) -> Doubles:
        """TE of each fact [facts]."""
        return self.high - self.low

    def mean(self, values: Doubles, seed: int = 0) -> Mean:
        """The mean over facts of values [facts, ...], with its interval."""
        return clustered_mean(values, self.relations, seed)

    def corrected(self, name: str) -> Doubles | None:
        """A map's effects less those of its placebo, fact by fact [facts, roles, layers]; None without a placebo."""
        placebo = self.maps.get(f"{name}, placebo")
        return None if placebo is None else self.maps[name].effects - placebo.effects


def study_effects(records: Sequence[FactRecord], metric: str = "probability") -> StudyEffects:
    """The effects of a study's traced facts.

    Args:
        records: The study's records.
        metric: The study's metric (`StudySettings.metric`).

    Raises:
        StudyError: No fact was traced.
    """
    traced = [record for record in records if record.status == "traced"]
    if not traced:
        raise StudyError("No fact of this study was traced, so that there is nothing to average.")
    asked = {result.settings.name: result.settings for record in traced for result in record.maps}
    maps = {}
    for name, settings in asked.items():
        layers = max(r.scores.shape[1] for record in traced for r in record.maps if r.settings.name == name)
        effects = np.full((len(traced), len(ROLES), layers), np.nan)
        for number, record in enumerate(traced):
            for result in record.maps:
                if result.settings.name == name:
                    effects[number] = _by_role(result.scores.astype(np.float64) - record.low, record.roles)
        maps[name] = RoleEffects(settings, effects)
    return StudyEffects(
        facts=tuple(record.fact.fact_id for record in traced),
        relations=tuple(record.fact.relation for record in traced),
        high=np.array([record.high for record in traced]),
        low=np.array([record.low for record in traced]),
        maps=maps,
        metric=METRIC_DESCRIPTIONS[metric],
    )


def _by_role(effects: Doubles, roles: Sequence[str]) -> Doubles:
    """From [tokens, layers] to [roles, layers]: means over the tokens of each role."""
    means = np.full((len(ROLES), effects.shape[1]), np.nan)
    for number, role in enumerate(ROLES):
        chosen = effects[[token for token, its_role in enumerate(roles) if its_role == role]]
        known = ~np.isnan(chosen)
        counts = known.sum(axis=0)
        sums = np.where(known, chosen, 0.0).sum(axis=0)
        means[number] = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return means


def clustered_mean(values: Doubles, clusters: Sequence[str], seed: int = 0, draws: int = DRAWS) -> Mean:
    """The mean over facts and its 95 % interval by a bootstrap that draws whole clusters.

    Args:
        values: [facts, ...]; NaN is left out.
        clusters: The cluster of each fact.
        seed: Seed of the draws.
        draws: Number of draws.

    Returns:
        Mean and interval [...]; the interval is NaN where fewer than two clusters have a value, since one relation
        says nothing about others.
    """
    names = sorted(set(clusters))
    member = np.array([[cluster == name for cluster in clusters] for name in names], dtype=np.float64)
    known = ~np.isnan(values)
    flat = np.where(known, values, 0.0).reshape(len(values), -1)
    sums = member @ flat
    counts = member @ known.reshape(len(values), -1).astype(np.float64)
    mean = _ratio(sums.sum(axis=0), counts.sum(axis=0))
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws).astype(np.float64)
    drawn = _ratio(weights @ sums, weights @ counts)
    bounds = np.full((2, flat.shape[1]), np.nan)
    enough = (counts > 0).sum(axis=0) > 1
    if enough.any():
        # A draw in which no cluster has a value is left out.
        bounds[:, enough] = np.nanpercentile(drawn[:, enough], [2.5, 97.5], axis=0)
    shape = values.shape[1:]
    return Mean(mean.reshape(shape), bounds[0].reshape(shape), bounds[1].reshape(shape))


def _ratio(sums: Doubles, counts: Doubles) -> Doubles:
    ratio: Doubles = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return ratio


@dataclass(frozen=True)
class BestLayer:
    """The layer with the strongest AIE at a role, chosen on one half of the facts and measured on the other.

    Attributes:
        map_name: Which map.
        role: Which tokens.
        layer: The layer chosen.
        chosen_mean: AIE there, of the map that chose it, on the half that it was chosen on: too strong, since it is the
            strongest of many.
        mean: AIE there on the other half.
        low: Lower end of its 95 % interval.
        high: Upper end.
        facts: Facts in the other half that have such a token.
    """

    map_name: str
    role: str
    layer: int
    chosen_mean: float
    mean: float
    low: float
    high: float
    facts: int


def halves(effects: StudyEffects, seed: int = 0) -> NDArray[np.bool_]:
    """Whether each fact is in the half that layers are chosen on: every other one of each relation, in a drawn order.

    The turns go on from one relation to the next, so that the halves are as equal as can be.
    """
    chosen = np.zeros(len(effects.facts), dtype=bool)
    turn = 0
    for relation in sorted(set(effects.relations)):
        members = [number for number, its in enumerate(effects.relations) if its == relation]
        members.sort(key=lambda number: derived_seed(seed, effects.facts[number], "half"))
        for number in members:
            chosen[number] = turn % 2 == 0
            turn += 1
    return chosen


def on_other_half(effects: StudyEffects, values: Doubles, seed: int = 0) -> Mean:
    """The mean of values [facts, ...] over the half of the facts that layers are not chosen on."""
    return _over(effects, values, ~halves(effects, seed), seed)


def best_layer(
    effects: StudyEffects, name: str, role: str, seed: int = 0, chosen_by: str | None = None
) -> BestLayer | None:
    """The best layer of a map at a role, or None where either half has no such token.

    Args:
        effects: The study's effects.
        name: The map whose AIE is measured.
        role: Which tokens.
        seed: Seed of the halves and the bootstrap.
        chosen_by: The map whose AIE chooses the layer; by default the same. A severed map is read where the whole one
            is strongest.
    """
    row = ROLES.index(role)
    choosing = _over(effects, effects.maps[chosen_by or name].effects[:, row], halves(effects, seed), seed)
    if np.isnan(choosing.mean).all():
        return None
    layer = int(np.nanargmax(effects.strength(choosing.mean)))
    values = effects.maps[name].effects[:, row, layer]
    reported = on_other_half(effects, values, seed)
    if np.isnan(reported.mean):
        return None
    return BestLayer(
        map_name=name,
        role=role,
        layer=layer,
        chosen_mean=float(choosing.mean[layer]),
        mean=float(reported.mean),
        low=float(reported.low),
        high=float(reported.high),
        facts=int((~np.isnan(values[~halves(effects, seed)])).sum()),
    )


def _over(effects: StudyEffects, values: Doubles, facts: NDArray[np.bool_], seed: int) -> Mean:
    relations = [relation for relation, inside in zip(effects.relations, facts, strict=True) if inside]
    return clustered_mean(values[facts], relations, seed)


def fact_peaks(effects: StudyEffects, name: str, role: str) -> tuple[NDArray[np.int64], Doubles]:
    """For each fact that has such a token, its best layer and the indirect effect there.

    The mean of the latter is stronger than the AIE of any one layer: each fact picks its own.
    """
    values = effects.maps[name].effects[:, ROLES.index(role)]
    values = values[~np.isnan(values).all(axis=1)]
    if not len(values):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    layers = np.nanargmax(effects.strength(values), axis=1)
    return layers, values[np.arange(len(values)), layers]
