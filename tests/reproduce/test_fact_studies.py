"""The reproductions over many facts: their settings are the papers', and their verdicts read the right averages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from causal_tracer.reproduce.dissecting_recall import KIND, recall_curves, recall_settings, recall_verdict
from causal_tracer.reproduce.published import PAPER_FACTS, PAPER_FACTS_DIGEST
from causal_tracer.reproduce.rome_averages import averages_settings, averages_verdict
from causal_tracer.request.sites import SPANS
from causal_tracer.study.facts import Fact
from causal_tracer.study.records import FactRecord, MapResult
from causal_tracer.study.stored import StoredStudy

LAYERS = 48
OWN = {"model": "gpt2-xl", "facts": "known_1000.json", "facts_digest": PAPER_FACTS_DIGEST}
MODEL = {"model": "gpt2-xl", "class": "GPT2LMHeadModel", "layers": LAYERS, "dtype": "float32"}
CLEAN, CORRUPTED = 0.27, 0.0847


def record(number, maps, *, low):
    """A fact with a first and a last subject token, and a last one."""
    results = tuple(MapResult(name, np.float32(scores), np.zeros_like(scores, np.float32)) for name, scores in maps)
    roles = ("first subject", "last subject", "last")
    fact = Fact(f"f{number:04}", "p", "s", "a", f"r{number % 5}")
    return FactRecord(fact, "traced", high=CLEAN, low=low, roles=roles, tokens=("t",) * 3, maps=results)


def study_of(records, settings, **model):
    study = StoredStudy(Path("nowhere"), {"model": {**MODEL, **model}}, settings)
    study.__dict__["records"] = tuple(records)
    return study


def averages_records(**changes):
    """Records whose averages are the published ones, or others."""
    at = {"hidden": 0.087, "mlp": 0.0655, "attention": 0.016, "attention, last": 0.0803, "own best": 0.1103} | changes
    records = []
    for number in range(PAPER_FACTS):
        maps = {kind: np.full((3, LAYERS), CORRUPTED) for kind in ("hidden", "mlp", "attention")}
        # Each fact has a best layer of its own, which the average hardly shows.
        maps["hidden"][1, 20 + number % 20] += at["own best"]
        maps["hidden"][1, 15] += at["hidden"]
        maps["mlp"][1, 17] += at["mlp"]
        maps["attention"][1, 8] += at["attention"]
        maps["attention"][2, 32] += at["attention, last"]
        records.append(record(number, maps.items(), low=CORRUPTED))
    return records


def recall_records(subject=-0.6, other=-0.4, subject_layer=30, other_layer=14):
    """Records whose curves have these lowest points; clean probabilities differ, so that only relative changes do."""
    records = []
    for number in range(PAPER_FACTS):
        scores = np.full((len(SPANS), LAYERS), CLEAN)
        scores[0, subject_layer] *= 1 + subject
        scores[1, other_layer] *= 1 + other
        scores[2, 3] *= 0.95
        scale = 1 if number % 2 else 2
        made = record(number, [(KIND, scores * scale)], low=CLEAN * scale)
        records.append(replace(made, high=CLEAN * scale))
    return records


def failed(verdict):
    return {check.quantity for check in verdict.checks if not check.passed}


# ROME's averages ------------------------------------------------------------------------------------------------------


def test_the_averages_are_made_as_in_the_paper():
    settings = averages_settings(**OWN)
    assert settings.request.noise == "subjects"
    assert settings.samples == 10
    assert settings.seed_rule == "one"
    assert {name: spec.window for name, spec in settings.maps.items()} == {"hidden": 1, "mlp": 10, "attention": 10}


def test_averages_as_published_pass():
    verdict = averages_verdict(study_of(averages_records(), averages_settings(**OWN)))
    assert verdict.state == "PASS"
    assert {check.quantity: check.measured for check in verdict.checks} == {
        "average total effect": "18.53 %",
        "mean P, clean run": "27.00 %",
        "mean P, corrupted run": "8.47 %",
        "AIE, hidden states, last subject token, layer 15": "8.70 %",
        "AIE, MLP, last subject token, best layer": "6.55 %",
        "AIE, attention, last subject token, best layer": "1.60 %",
        "mean P, hidden states, last subject token, each fact's best layer": "19.50 %",
        "mean P, MLP, last subject token, centre 17": "15.02 %",
        "mean P, attention, last token, centre 32": "16.50 %",
    }


@pytest.mark.parametrize(
    ("changes", "disagree"),
    [
        ({"hidden": 0.075}, {"AIE, hidden states, last subject token, layer 15"}),
        (
            {"mlp": 0.02},
            {"AIE, MLP, last subject token, best layer", "mean P, MLP, last subject token, centre 17"},
        ),
        ({"attention": 0.03}, {"AIE, attention, last subject token, best layer"}),
        ({"own best": 0.13}, {"mean P, hidden states, last subject token, each fact's best layer"}),
    ],
)
def test_averages_that_are_off_fail(changes, disagree):
    verdict = averages_verdict(study_of(averages_records(**changes), averages_settings(**OWN)))
    assert verdict.state == "FAIL"
    assert failed(verdict) == disagree


@pytest.mark.parametrize(
    ("kept", "settings", "model", "why"),
    [
        (PAPER_FACTS, {}, {"layers": 36}, "gpt2-xl is a GPT2LMHeadModel with 36 layers"),
        (PAPER_FACTS, {}, {"dtype": "bfloat16"}, "these weights are bfloat16"),
        (PAPER_FACTS, {"facts": "shipped", "facts_digest": "other"}, {}, "the facts are shipped"),
        (PAPER_FACTS, {"samples": 3}, {}, "each fact has 3 noise samples, and 10 in the paper"),
        (100, {}, {}, "100 of the 1209 facts are done"),
    ],
)
def test_another_study_has_no_verdict(kept, settings, model, why):
    records = averages_records()[:kept]
    verdict = averages_verdict(study_of(records, averages_settings(**{**OWN, **settings}), **model))
    assert verdict.state == "no verdict"
    assert why in verdict.line
    assert verdict.table()[0] == ("quantity", "source", "published", "measured")


def test_a_layer_that_a_model_lacks_is_not_measured():
    maps = {kind: np.full((3, 12), 0.2) for kind in ("hidden", "mlp", "attention")}
    study = study_of([record(0, maps.items(), low=0.1)], averages_settings(**OWN), layers=12)
    measured = {check.quantity: check.measured for check in averages_verdict(study).checks}
    assert measured["AIE, hidden states, last subject token, layer 15"] == "-"
    assert measured["AIE, MLP, last subject token, best layer"] == "10.00 %"


# Attention knockout ---------------------------------------------------------------------------------------------------


def test_the_curves_are_made_as_in_the_paper():
    settings = recall_settings(**OWN)
    assert (settings.request.direction, settings.request.corruption) == ("corrupt", "none")
    assert {name: spec.window for name, spec in settings.maps.items()} == {KIND: 9}


def test_curves_are_relative_to_each_facts_clean_run():
    study = study_of(recall_records(), recall_settings(**OWN))
    curves = recall_curves(study.effects)
    assert list(curves) == list(SPANS)
    assert curves["subject"].mean[30] == pytest.approx(-60, abs=1e-3)
    assert curves["subject"].mean[0] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "PASS"),
        ({"subject": -0.3}, "PASS"),
        ({"other_layer": 40}, "FAIL"),
        ({"other_layer": 30}, "FAIL"),
        ({"subject": 0.0, "other": 0.0}, "FAIL"),
    ],
)
def test_curves_pass_where_the_other_tokens_come_before_the_subject(changes, state):
    verdict = recall_verdict(study_of(recall_records(**changes), recall_settings(**OWN)))
    assert failed(verdict) == ({"other tokens lowest before subject, by"} if state == "FAIL" else set())
    assert verdict.state == state
