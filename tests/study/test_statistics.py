"""The averages of a study against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from causal_tracer.errors import StudyError
from causal_tracer.request.records import TraceRequest
from causal_tracer.study.facts import Fact
from causal_tracer.study.records import ROLES, FactRecord, MapResult
from causal_tracer.study.settings import StudySettings, derived_seed
from causal_tracer.study.statistics import best_layer, clustered_mean, fact_peaks, selection_half, study_effects

SETTINGS = StudySettings("m", "f", "d", TraceRequest("", seed=0))
NAN = math.nan
FIRST, MIDDLE, LAST_SUBJECT, AFTER, FURTHER, LAST = range(6)


def seeded(seed):
    """The settings of a study with this seed."""
    return replace(SETTINGS, request=TraceRequest("", seed=seed))


def record(name, relation, scores, roles, *, high=0.9, low=0.1, placebo=None):
    """A traced fact with a hidden map [tokens, layers], and a placebo map where one is given."""

    def of(kind, values):
        array = np.array(values, dtype=np.float32)
        return MapResult(kind, array, np.zeros_like(array))

    maps = [of("hidden", scores)] + ([of("hidden, placebo", placebo)] if placebo is not None else [])
    fact = Fact(name, "p", "s", "a", relation)
    return FactRecord(
        fact, "traced", high=high, low=low, roles=tuple(roles), tokens=("t",) * len(roles), maps=tuple(maps)
    )


ROLES_OF_FIVE = ("before", "first subject", "middle subject", "middle subject", "last subject", "last")


def test_tokens_of_a_role_are_averaged_within_a_fact_before_facts_are():
    # Pooled over tokens, the middle would be (0.3 + 0.3 + 0.9 - 3 * 0.1) / 3 = 0.4; by facts it is (0.2 + 0.8) / 2.
    two = record("a", "r", [[0.1], [0.2], [0.3], [0.3], [0.5], [0.6]], ROLES_OF_FIVE)
    one = record("b", "q", [[0.1], [0.9], [0.5], [0.6]], ("first subject", "middle subject", "last subject", "last"))
    effects = study_effects([two, one], SETTINGS)
    aie = effects.mean(effects.maps["hidden"]).mean[:, 0]
    assert aie[MIDDLE] == pytest.approx((0.2 + 0.8) / 2, abs=1e-6)
    assert aie[FIRST] == pytest.approx((0.1 + 0.0) / 2, abs=1e-6)
    assert aie[LAST_SUBJECT] == pytest.approx(0.4, abs=1e-6)
    assert aie[LAST] == pytest.approx(0.5, abs=1e-6)


def test_a_role_that_a_fact_lacks_is_no_effect_of_zero():
    short = record("a", "r", [[0.5], [0.7]], ("last subject", "last"))
    long = record("b", "q", [[0.3], [0.5], [0.7]], ("first subject", "last subject", "last"))
    effects = study_effects([short, long], SETTINGS)
    values = effects.maps["hidden"]
    assert np.isnan(values[0, FIRST]).all()
    assert effects.mean(values).mean[FIRST, 0] == pytest.approx(0.2, abs=1e-6)
    assert np.isnan(effects.mean(values).mean[FURTHER, 0])


def test_cells_that_were_not_computed_are_left_out():
    partly = record("a", "r", [[0.3, NAN], [NAN, NAN], [0.2, 0.4]], ("middle subject", "middle subject", "last"))
    effects = study_effects([partly], SETTINGS).maps["hidden"][0]
    assert effects[MIDDLE, 0] == pytest.approx(0.2, abs=1e-6)
    assert np.isnan(effects[MIDDLE, 1])


def test_the_average_total_effect_is_the_mean_of_high_less_low():
    records = [
        record("a", "r", [[0.5]], ("last",), high=0.9, low=0.1),
        record("b", "r", [[0.5]], ("last",), high=0.4, low=0.2),
        FactRecord(Fact("c", "p", "s", "a", "r"), "unknown"),
        FactRecord(Fact("d", "p", "s", "a", "r"), "failed", cause="NaN"),
    ]
    effects = study_effects(records, SETTINGS)
    assert effects.facts == ("a", "b")
    assert float(effects.mean(effects.total_effect).mean) == pytest.approx((0.8 + 0.2) / 2)


def test_the_placebo_is_taken_off_fact_by_fact():
    records = [
        record("a", "r", [[0.5], [0.6]], ("last subject", "last"), placebo=[[0.2], [NAN]]),
        record("b", "q", [[0.4], [0.6]], ("last subject", "last"), placebo=[[0.3], [0.1]]),
    ]
    corrected = study_effects(records, SETTINGS).minus_placebo("hidden")
    assert corrected is not None
    assert corrected[:, LAST_SUBJECT, 0] == pytest.approx([0.3, 0.1], abs=1e-6)
    assert np.isnan(corrected[0, LAST, 0])
    assert study_effects([record("c", "r", [[0.5]], ("last",))], SETTINGS).minus_placebo("hidden") is None


class TestBootstrap:
    def test_whole_relations_are_drawn(self):
        # Two relations of equal size with means 0 and 1: a draw's mean is 0, 1/2 or 1, with chances 1/4, 1/2, 1/4.
        values = np.array([0.0] * 50 + [1.0] * 50)
        found = clustered_mean(values, ["a"] * 50 + ["b"] * 50)
        assert (float(found.mean), float(found.low), float(found.high)) == (0.5, 0.0, 1.0)

    def test_facts_that_are_relations_of_their_own_give_the_usual_interval(self):
        values = np.random.default_rng(3).normal(size=400)
        found = clustered_mean(values, [str(number) for number in range(400)], draws=20_000)
        half = 1.96 * values.std(ddof=1) / 20
        assert float(found.mean) == pytest.approx(values.mean())
        assert float(found.high - found.mean) == pytest.approx(half, rel=0.05)
        assert float(found.mean - found.low) == pytest.approx(half, rel=0.05)

    def test_a_large_relation_weighs_by_its_facts(self):
        # Draws: (a, a) 0, (b, b) 1, one of each 3/4: the mean over facts of both, not over relations.
        found = clustered_mean(np.array([0.0, 1.0, 1.0, 1.0]), ["a", "b", "b", "b"], draws=4000)
        assert (float(found.mean), float(found.low), float(found.high)) == (0.75, 0.0, 1.0)

    def test_one_relation_gives_no_interval(self):
        found = clustered_mean(np.array([[0.0, NAN], [1.0, NAN]]), ["a", "a"])
        assert found.mean[0] == 0.5
        assert np.isnan([found.low[0], found.high[0], found.mean[1], found.low[1]]).all()

    def test_no_fact_has_no_mean(self):
        found = clustered_mean(np.empty((0, 2)), [])
        assert found.mean.shape == found.low.shape == found.high.shape == (2,)
        assert np.isnan([found.mean, found.low, found.high]).all()

    def test_the_seed_fixes_the_draws(self):
        values, clusters = np.random.default_rng(0).normal(size=(30, 2)), [str(n % 7) for n in range(30)]
        first, again, other = (clustered_mean(values, clusters, seed) for seed in (1, 1, 2))
        assert np.array_equal(first.low, again.low)
        assert not np.array_equal(first.low, other.low)


class TestBestLayer:
    def test_the_layer_is_chosen_on_one_half_and_read_on_the_other(self):
        # In each fact of the choosing half layer 1 is best, in the other half layer 0: the report must show the loss.
        def build(scores_of):
            records = [record(f"f{n}", f"r{n % 3}", [scores_of(n)], ("last subject",), low=0.0) for n in range(12)]
            return study_effects(records, seeded(5))

        chosen = selection_half(build(lambda n: [0.5, 0.5]))
        assert chosen.sum() == 6
        effects = build(lambda n: [0.1, 0.8] if chosen[n] else [0.6, 0.2])
        assert effects.at("hidden", "last subject")[chosen, 1].mean() == pytest.approx(0.8)
        found = best_layer(effects, "hidden", "last subject")
        assert found is not None
        layer, effect = found
        assert layer == 1
        assert effect.mean == pytest.approx(0.2)

    def test_halves_are_equal_and_share_every_relation(self):
        effects = study_effects([record(f"f{n}", f"r{n % 4}", [[0.5]], ("last",)) for n in range(40)], seeded(1))
        chosen = selection_half(effects)
        assert chosen.sum() == 20
        for relation in set(effects.relations):
            inside = [c for c, r in zip(chosen, effects.relations, strict=True) if r == relation]
            assert sum(inside) == 5
        assert not np.array_equal(chosen, selection_half(replace(effects, settings=seeded(2))))

    def test_a_role_that_no_fact_has_has_none(self):
        effects = study_effects([record(f"f{n}", "r", [[0.5]], ("last",)) for n in range(4)], SETTINGS)
        assert best_layer(effects, "hidden", "last subject") is None

    def test_each_fact_has_its_own(self):
        scores = {"a": [0.2, 0.9], "b": [0.7, 0.3]}
        records = [record(name, "r", [its], ("last subject",)) for name, its in scores.items()]
        records.append(record("c", "r", [[0.4, 0.5]], ("last",)))
        layers, own = fact_peaks(study_effects(records, SETTINGS), "hidden", "last subject")
        assert layers.tolist() == [1, 0]
        assert own == pytest.approx([0.8, 0.6], abs=1e-6)


def test_a_study_with_nothing_traced_has_no_averages():
    with pytest.raises(StudyError, match="no traced facts"):
        study_effects([FactRecord(Fact("c", "p", "s", "a", "r"), "unknown")], SETTINGS)


def test_roles_are_the_papers_six_in_order():
    assert ROLES == ("first subject", "middle subject", "last subject", "first after", "further", "last")


class TestSeeds:
    def test_each_fact_has_its_own_noise_that_follows_from_seed_and_fact(self):
        settings = seeded(4)
        assert settings.seed_of("a") == derived_seed(4, "a") == settings.seed_of("a")
        assert len({settings.seed_of("a"), settings.seed_of("b"), seeded(5).seed_of("a")}) == 3
        assert 0 <= settings.seed_of("a") < 2**32

    def test_romes_way_gives_all_facts_the_same(self):
        settings = replace(seeded(4), seed_rule="one")
        assert settings.seed_of("a") == settings.seed_of("b") == 4
