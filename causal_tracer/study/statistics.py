"""Averages of effects over facts by token role, with intervals.

1. The indirect effect of a cell is its score minus the fact's low score. In direction "corrupt", which patches the
   clean run, it is the score minus the high score.
2. A fact's effect at a role and layer is the mean over its tokens of that role.
3. The average indirect effect (AIE) is the mean over the facts that have such tokens. The average total effect (ATE) is
   the mean of the facts' total effects.
4. Facts of one relation are not independent, so intervals come from a bootstrap that draws whole relations. Each draw
   gives the mean over all facts of the drawn relations. The interval is from the 2.5th to the 97.5th percentile.

1 to 3 are as in Meng et al. 2022 (arXiv 2202.05262), section 2.2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from causal_tracer.errors import StudyError
from causal_tracer.metrics.descriptions import METRIC_DESCRIPTIONS, MetricDescription
from causal_tracer.request.sites import SITES, SPANS
from causal_tracer.study.records import ROLES, FactRecord, MapResult
from causal_tracer.study.settings import StudySettings, derived_seed

Doubles = NDArray[np.float64]

DRAWS = 2000
"""Number of bootstrap draws."""


@dataclass(frozen=True, eq=False)
class Mean:
    """A mean over facts with the ends of its 95 % interval, as arrays of one shape; NaN where no fact has a value."""

    mean: Doubles
    low: Doubles
    high: Doubles


@dataclass(frozen=True, eq=False)
class StudyEffects:
    """The effects of a study's traced facts.

    Attributes:
        settings: The study's settings.
        facts: The ids of the traced facts.
        relations: The relation of each fact.
        high: The metric in each fact's clean run [facts].
        low: The metric in each fact's corrupted run, as the mean over samples [facts].
        maps: The effects of each map by name [facts, roles, layers], as means over a fact's tokens of each role in
            `ROLES`; NaN where a fact has no such token. Maps of spans have [facts, spans, layers], as in `SPANS`.
    """

    settings: StudySettings
    facts: tuple[str, ...]
    relations: tuple[str, ...]
    high: Doubles
    low: Doubles
    maps: dict[str, Doubles]

    @property
    def metric(self) -> MetricDescription:
        """The metric of `high` and `low`, and of the differences in `maps`."""
        return METRIC_DESCRIPTIONS[str(self.settings.request.metric)]

    @property
    def seed(self) -> int:
        """The seed of `selection_half` and of the bootstrap."""
        return self.settings.request.seed

    @property
    def label(self) -> str:
        """The metric's label for axes and tables."""
        return self.metric.labelled("answer")

    @property
    def total_effect(self) -> Doubles:
        """The total effect (TE) of each fact [facts]."""
        return self.high - self.low

    def has_role_rows(self, name: str) -> bool:
        """Return whether the rows of a map's effects are token roles, rather than spans."""
        return SITES[self.settings.maps[name].kind].rows == "tokens"

    def at(self, name: str, role: str) -> Doubles:
        """Return the effects of a map at the tokens of a role [facts, layers]."""
        return self.maps[name][:, ROLES.index(role)]

    def percent_of_clean(self, name: str) -> Doubles:
        """Return a map's effects relative to each fact's clean run, in per cent [facts, roles or spans, layers]."""
        return 100 * self.maps[name] / self.high[:, None, None]

    def minus_placebo(self, name: str) -> Doubles | None:
        """Return a map's effects minus those of its placebo [facts, roles, layers]; None without a placebo."""
        placebo = self.maps.get(f"{name}, placebo")
        return None if placebo is None else self.maps[name] - placebo

    def strength(self, values: Doubles) -> Doubles:
        """Return effects with the sign with which strong effects are positive, for any metric and direction."""
        return values if self.metric.higher_is_better == (self.settings.request.direction == "restore") else -values

    def mean(self, values: Doubles, among: NDArray[np.bool_] | None = None) -> Mean:
        """Return the mean of values [facts, ...] over facts, with its interval.

        Args:
            values: The values to average.
            among: The facts to average over [facts]; None takes all.
        """
        chosen = np.ones(len(self.facts), dtype=bool) if among is None else among
        return clustered_mean(values[chosen], list(compress(self.relations, chosen)), self.seed)


def study_effects(records: Sequence[FactRecord], settings: StudySettings) -> StudyEffects:
    """Return the effects of a study's traced facts.

    Raises:
        StudyError: No fact was traced.
    """
    traced = [record for record in records if record.status == "traced"]
    if not traced:
        raise StudyError(
            "This study has no traced facts to average. Run it on facts that the model knows, or run it to its end."
        )
    by_map: dict[str, dict[int, MapResult]] = defaultdict(dict)
    for number, record in enumerate(traced):
        for result in record.maps:
            by_map[result.name][number] = result
    maps = {}
    for name, results in by_map.items():
        first, spans = next(iter(results.values())), SITES[settings.maps[name].kind].rows == "spans"
        effects = np.full((len(traced), len(SPANS if spans else ROLES), first.scores.shape[1]), np.nan)
        for number, result in results.items():
            record = traced[number]
            base = record.high if settings.request.direction == "corrupt" else record.low
            changes = result.scores.astype(np.float64) - base
            # A stored map has as many rows as its prompt has tokens.
            effects[number] = changes[: len(SPANS)] if spans else _by_role(changes, record.roles)
        maps[name] = effects
    return StudyEffects(
        settings=settings,
        facts=tuple(record.fact.fact_id for record in traced),
        relations=tuple(record.fact.relation for record in traced),
        high=np.array([record.high for record in traced]),
        low=np.array([record.low for record in traced]),
        maps=maps,
    )


def _by_role(effects: Doubles, roles: Sequence[str]) -> Doubles:
    """Average effects [tokens, layers] over the tokens of each role: [roles, layers]."""
    known = ~np.isnan(effects)
    member = np.array([[its == role for its in roles] for role in ROLES], dtype=np.float64)
    return _ratio(member @ np.where(known, effects, 0.0), member @ known.astype(np.float64))


def clustered_mean(values: Doubles, clusters: Sequence[str], seed: int = 0, draws: int = DRAWS) -> Mean:
    """Return the mean over facts and its 95 % interval, by a bootstrap that draws whole clusters.

    Args:
        values: [facts, ...]; NaN is left out.
        clusters: The cluster of each fact, here its relation.
        seed: Seed of the draws.
        draws: Number of draws.

    Returns:
        Mean and interval [...]. The interval is NaN where fewer than two clusters have a value.
    """
    if not len(values):
        return Mean(*(np.full(values.shape[1:], np.nan) for _ in range(3)))
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


def selection_half(effects: StudyEffects) -> NDArray[np.bool_]:
    """Return a mask of the facts that layers are chosen on: one half of the facts of each relation [facts].

    The seed orders the facts within each relation, and every other fact of the whole order is chosen, so that both
    halves have equally many facts, up to one.
    """
    order = sorted(
        range(len(effects.facts)),
        key=lambda fact: (effects.relations[fact], derived_seed(effects.seed, effects.facts[fact], "half")),
    )
    chosen = np.zeros(len(order), dtype=bool)
    chosen[order[::2]] = True
    return chosen


def best_layer(effects: StudyEffects, name: str, role: str, chosen_by: str | None = None) -> tuple[int, Mean] | None:
    """Choose the layer with the strongest AIE at a role on one half of the facts, and return its AIE on the other half.

    Args:
        effects: The study's effects.
        name: The map whose AIE is measured.
        role: The token role.
        chosen_by: The map whose AIE chooses the layer; None takes `name`. A severed map is read where the plain map is
            strongest.

    Returns:
        The layer and its AIE; None if one of the halves has no such token.
    """
    half = selection_half(effects)
    strength = effects.strength(effects.mean(effects.at(chosen_by or name, role), half).mean)
    if np.isnan(strength).all():
        return None
    layer = int(np.nanargmax(strength))
    effect = effects.mean(effects.at(name, role)[:, layer], ~half)
    return None if np.isnan(effect.mean) else (layer, effect)


def fact_peaks(effects: StudyEffects, name: str, role: str) -> tuple[NDArray[np.int64], Doubles]:
    """Return the best layer of each fact that has a token of the role, and the indirect effect at this layer.

    The mean of these effects is at least as strong as the AIE of any single layer, because each fact has its own layer.
    """
    values = effects.at(name, role)
    values = values[~np.isnan(values).all(axis=1)]
    layers = np.nanargmax(effects.strength(values), axis=1)
    return layers, values[np.arange(len(values)), layers]
