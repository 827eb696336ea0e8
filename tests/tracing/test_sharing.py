"""Prompts in shared passes: each result equals that of the prompt traced alone, on every architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from causal_tracer import HiddenFlow, MapSpec, OtherPrompt, RunOptions, TraceRequest
from causal_tracer.errors import SubjectError, TraceCancelled
from causal_tracer.sweep import shared
from causal_tracer.sweep.plan import SweepChunk
from causal_tracer.tracing import loop
from tests.support.tiny_models import EVERY_ARCHITECTURE, OTHER_PROMPT, OTHER_SUBJECT, PROMPT, SUBJECT, tiny_tracer

pytestmark = pytest.mark.slow

QUERIES = (
    (PROMPT, SUBJECT),
    (PROMPT.replace("city", "land"), "Space Needle"),
    (OTHER_PROMPT, OTHER_SUBJECT),
    (PROMPT, "Needle is"),
)
# Each of its parts has more tokens than in the other prompts, so that all their tokens have partners.
LONG = OtherPrompt(
    "Look: in truth, the the Space Needle Steve Jobs is in the city of the city of", "Space Needle Steve Jobs"
)
HIDDEN = {"map": MapSpec()}
Flows = list[dict[str, HiddenFlow]]


@pytest.fixture(autouse=True)
def sharing_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share passes, as on a GPU."""
    monkeypatch.setattr(loop, "sharing_pays", lambda _context: True)


@pytest.fixture
def samples_of_sweeps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of samples in each sweep."""
    found: list[int] = []
    unnoted: Callable[..., object] = shared.run_sweep

    def noted(*args: Any) -> object:
        found.append(args[1].base.samples)
        return unnoted(*args)

    monkeypatch.setattr(shared, "run_sweep", noted)
    return found


def requests(**changes: Any) -> list[TraceRequest]:
    return [TraceRequest(text, subject, **{"samples": 2, **changes}) for text, subject in QUERIES]


def assert_same(found: Flows, expected: Flows, least_effect: float = 1e-4) -> None:
    for one, other in ((a[name], b[name]) for a, b in zip(found, expected, strict=True) for name in b):
        torch.testing.assert_close(one.sample_scores, other.sample_scores, rtol=0, atol=1e-5, equal_nan=True)
        torch.testing.assert_close(one.low_sample_scores, other.low_sample_scores, rtol=0, atol=1e-6)
        assert one.high_score == pytest.approx(other.high_score, abs=1e-6)
        assert (one.prompt, one.subject, one.subject_range) == (other.prompt, other.subject, other.subject_range)
        assert (one.answer_id, one.input_tokens, one.request) == (other.answer_id, other.input_tokens, other.request)
        assert float(other.indirect_effect.nan_to_num().abs().max()) > least_effect


def shared_and_alone(
    name: str, asked: list[TraceRequest], specs: dict[str, MapSpec], options: RunOptions | None = None
) -> tuple[Flows, Flows]:
    tracer = tiny_tracer(name)
    return tracer.trace_maps(asked, specs, options), [tracer.trace_maps(each, specs, options) for each in asked]


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_each_map_is_that_of_the_prompt_alone(name: str) -> None:
    assert_same(*shared_and_alone(name, requests(), {"hidden": MapSpec(), "mlp": MapSpec("mlp", 2)}))


@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_batches_and_groups_of_any_size_give_the_same(batch_size: int) -> None:
    assert_same(*shared_and_alone("gemma3_text", requests(), HIDDEN, RunOptions(batch_size=batch_size)))


@pytest.mark.parametrize(
    ("changes", "spec"),
    [
        ({"direction": "corrupt"}, MapSpec("mlp", 2)),
        ({"read": 7}, MapSpec()),
        ({"metric": "KL from clean"}, MapSpec()),
        ({"answer": " city in", "metric": "log-probability"}, MapSpec()),
        ({"corruption": "mean", "samples": 1}, MapSpec("attention", 2)),
        ({}, MapSpec("mlp", 2, severed="attention")),
        ({}, MapSpec(positions=(5, 8), start_layer=1)),
        ({"placebo": LONG}, MapSpec("mlp", 2, source="placebo")),
    ],
    ids=str,
)
def test_whatever_is_asked_for_may_be_shared(
    changes: dict[str, Any], spec: MapSpec, samples_of_sweeps: list[int]
) -> None:
    asked = requests(**changes)
    found, expected = shared_and_alone("llama", asked, {"map": spec})
    assert_same(found, expected, least_effect=1e-6)
    assert max(samples_of_sweeps) > asked[0].samples  # type: ignore[operator]


@pytest.mark.parametrize("direction", ["restore", "corrupt"])
def test_second_prompts_of_one_length_share_passes(direction: Any, samples_of_sweeps: list[int]) -> None:
    seconds = [OtherPrompt(PROMPT.replace(SUBJECT, other), other) for other in ("Steve Jobs", "Rome Needle")]
    asked = [TraceRequest(PROMPT, SUBJECT, second=each, metric="logit", direction=direction) for each in seconds]
    assert_same(*shared_and_alone("llama", asked, {"map": MapSpec("mlp", 2)}))
    assert max(samples_of_sweeps) == 2


@pytest.mark.parametrize("spec", [MapSpec("mlp", 1, source="zero"), MapSpec("attention", 1, source="mean")], ids=str)
def test_ablations_share_passes(spec: MapSpec, samples_of_sweeps: list[int]) -> None:
    prompts = [(PROMPT, SUBJECT), (PROMPT.replace(SUBJECT, "Steve Jobs"), "Steve Jobs")]
    clean: dict[str, Any] = {"direction": "corrupt", "corruption": "none", "mean_over": (OTHER_PROMPT,)}
    assert_same(*shared_and_alone("llama", [TraceRequest(*each, **clean) for each in prompts], {"map": spec}))
    assert max(samples_of_sweeps) == 2


def test_cells_at_the_same_tokens_are_shared(samples_of_sweeps: list[int]) -> None:
    asked = [TraceRequest(PROMPT, SUBJECT, samples=2, seed=seed) for seed in (1, 2)]
    assert_same(*shared_and_alone("llama", asked, {"map": MapSpec(subject_tokens_only=True)}))
    assert max(samples_of_sweeps) == 4


def test_top_tokens_are_those_of_the_prompt_alone() -> None:
    found, expected = shared_and_alone("llama", requests(top_tokens=3), HIDDEN)
    for one, other in zip(found, expected, strict=True):
        mine, its = one["map"].top_tokens, other["map"].top_tokens
        assert mine is not None
        assert its is not None
        assert mine.restored.keys() == its.restored.keys()
        for place, tokens in mine.restored.items():
            assert [each.token_id for each in tokens] == [each.token_id for each in its.restored[place]]


def test_prompts_of_one_length_really_share_passes(samples_of_sweeps: list[int]) -> None:
    tiny_tracer("llama").trace_maps(requests(), HIDDEN)
    assert sum(samples_of_sweeps) == 2 * len(QUERIES)
    assert max(samples_of_sweeps) > 2


def test_a_model_that_looks_at_token_ids_elsewhere_takes_its_prompts_one_by_one(
    samples_of_sweeps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_ROUNDING", {torch.float32: -1.0})
    assert_same(*shared_and_alone("llama", requests(), HIDDEN))
    assert set(samples_of_sweeps) == {2}


def test_progress_reaches_its_end_and_cancelling_stops() -> None:
    seen: list[tuple[int, int]] = []
    tracer = tiny_tracer("llama")
    tracer.trace_maps(requests(), HIDDEN, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    with pytest.raises(TraceCancelled):
        tracer.trace_maps(requests(), HIDDEN, cancelled=lambda: True)


def test_every_prompt_is_checked_before_the_first_is_traced(samples_of_sweeps: list[int]) -> None:
    with pytest.raises(SubjectError):
        tiny_tracer("llama").trace_maps([*requests(), TraceRequest(PROMPT, "no part of it")], HIDDEN)
    assert not samples_of_sweeps


def test_only_the_prompt_whose_map_fails_its_audit_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = tiny_tracer("gpt2")
    asked = [requests()[0], requests()[3]]
    expected = [tracer.trace_maps(request, HIDDEN, RunOptions(engine="full")) for request in asked]
    real = shared.run_sweep

    def broken(engine_check: Any, sweep: Any, *rest: Any) -> Iterator[SweepChunk]:
        for chunk in real(engine_check, sweep, *rest):
            yield replace(chunk, scores=torch.where(chunk.samples < 2, chunk.scores + 0.1, chunk.scores))

    monkeypatch.setattr(shared, "run_sweep", broken)
    found = tracer.trace_maps(asked, HIDDEN)
    audits = [flows["map"].audit for flows in found]
    assert [audit is not None and audit.recomputed for audit in audits] == [True, False]
    assert [flows["map"].settings.engine for flows in found] == ["full", "resumed"]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one["map"].sample_scores, other["map"].sample_scores, rtol=0, atol=1e-5)
