"""Results equal causal-tracer 1.1.0's, on both models that come with pip (`make_golden.py` wrote the values)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from causal_tracer import CausalTracer, HiddenFlow
from tests.support.real_models import GEMMA, SMOLLM, real_tracer

pytestmark = pytest.mark.model


@pytest.fixture(autouse=True, scope="module")
def its_share_of_the_cores() -> Iterator[None]:
    """Limit the number of threads: more threads than cores take several times as long."""
    threads = torch.get_num_threads()
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    yield
    torch.set_num_threads(threads)


GOLDEN = {GEMMA: "gemma3.json", SMOLLM: "smollm2.json"}


@cache
def golden(model: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "golden" / GOLDEN[model]).read_text(encoding="utf-8"))


@cache
def tracer(model: str) -> CausalTracer:
    return CausalTracer(real_tracer(model).model, real_tracer(model).tokenizer, noise=golden(model)["noise"])


def cases() -> list[Any]:
    return [
        pytest.param(model, case, id=f"{model}-{case['kind']}-window{case['window']}-seed{case['seed']}")
        for model in GOLDEN
        for case in golden(model)["cases"]
    ]


@cache
def traced(model: str, kind: Any, window: int, seed: int, engine: str) -> HiddenFlow:
    asked = golden(model)
    return tracer(model).calculate_hidden_flow(
        asked["prompt"],
        asked["subject"],
        kind=kind,
        window=window,
        patch_seed=seed,
        samples=asked["samples"],
        engine=engine,
    )


def check(model: str, case: dict[str, Any], engine: str, tolerance: float) -> None:
    flow = traced(model, case["kind"], case["window"], case["seed"], engine)
    assert flow.answer == case["answer"]
    assert list(flow.subject_range) == case["subject_range"]
    assert flow.high_score == pytest.approx(case["high_score"], abs=tolerance)
    assert flow.low_score == pytest.approx(case["low_score"], abs=tolerance)
    torch.testing.assert_close(flow.scores, torch.tensor(case["scores"]), atol=tolerance, rtol=0)


@pytest.mark.parametrize("model", GOLDEN)
def test_golden_values_would_catch_a_sweep_that_restores_nothing(model: str) -> None:
    for case in golden(model)["cases"]:
        effects = torch.tensor(case["scores"]) - case["low_score"]
        assert effects.abs().max() > 0.02


@pytest.mark.parametrize(("model", "case"), cases())
def test_scores_equal_causal_tracer_1_1_0(model: str, case: dict[str, Any]) -> None:
    check(model, case, engine="auto", tolerance=2e-5)


@pytest.mark.nightly
@pytest.mark.parametrize(("model", "case"), cases()[::5])
def test_full_sweep_equals_causal_tracer_1_1_0(model: str, case: dict[str, Any]) -> None:
    check(model, case, engine="full", tolerance=2e-5)


def test_automatic_noise_level_equals_causal_tracer_1_1_0_where_the_embedding_is_not_scaled() -> None:
    model = SMOLLM
    assert tracer(model).noise == pytest.approx(golden(model)["automatic_noise"], rel=1e-5)


def test_space_needle_map_shows_the_two_sites_of_the_paper() -> None:
    """Peaks are at the last subject token in early layers and at the last token in late ones (ROME, Figure 1)."""
    flow = tracer(GEMMA).calculate_hidden_flow("The Space Needle is located in the city of", "The Space Needle")
    early, late = flow.scores[flow.subject_range[1] - 1, :9], flow.scores[-1, 9:]
    assert flow.answer == " Seattle"
    assert flow.high_score > 0.45
    assert flow.low_score < 0.01
    assert early.max() > 0.4
    assert late.max() > 0.4
    # No peak at the subject's end in late layers, nor at the last token in early layers.
    assert flow.scores[flow.subject_range[1] - 1, 13:].max() < 0.02
    assert flow.scores[-1, :9].max() < 0.02
