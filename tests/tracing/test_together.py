"""Prompts that share passes: each result is that of the prompt alone, on every architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from causal_tracer import HiddenFlow, MapSpec, RunOptions, TraceRequest
from causal_tracer.errors import TraceCancelled
from causal_tracer.experiment.base_run import Watched
from causal_tracer.sweep.plan import SweepChunk
from causal_tracer.tracing import batched as together
from causal_tracer.tracing.batched import can_share_passes, trace_together
from tests.support.tiny_models import ARCHITECTURES, OTHER_PROMPT, OTHER_SUBJECT, PROMPT, SUBJECT, tiny_tracer

QUERIES = (
    (PROMPT, SUBJECT),
    (PROMPT.replace("city", "land"), "Space Needle"),
    (OTHER_PROMPT, OTHER_SUBJECT),
    (PROMPT, "Needle is"),
)


HIDDEN, OPTIONS = MapSpec(), RunOptions()


def requests() -> list[TraceRequest]:
    return [TraceRequest(text, subject, samples=2) for text, subject in QUERIES]


def nothing(_done: int, _total: int) -> None:
    pass


def together_and_alone(
    name: str, spec: MapSpec = HIDDEN, options: RunOptions = OPTIONS
) -> tuple[list[HiddenFlow], list[HiddenFlow]]:
    tracer = tiny_tracer(name)
    flows = trace_together(tracer.context, requests(), spec, options, nothing, lambda: False)
    return flows, [tracer.trace(request, spec=spec, options=options) for request in requests()]


def assert_same(found: list[HiddenFlow], expected: list[HiddenFlow]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.sample_scores, other.sample_scores, rtol=0, atol=1e-5, equal_nan=True)
        torch.testing.assert_close(one.low_sample_scores, other.low_sample_scores, rtol=0, atol=1e-5)
        assert one.high_score == pytest.approx(other.high_score, abs=1e-6)
        assert (one.prompt, one.subject, one.subject_range) == (other.prompt, other.subject, other.subject_range)
        assert (one.answer_id, one.input_tokens) == (other.answer_id, other.input_tokens)
        assert float(other.indirect_effect.nan_to_num().abs().max()) > 1e-4


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("kind", "window"), [("hidden", 1), ("mlp", 2)])
def test_each_map_is_that_of_the_prompt_alone(name: str, kind: Any, window: int) -> None:
    assert_same(*together_and_alone(name, MapSpec(kind, window)))


@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_batches_and_groups_of_any_size_give_the_same(batch_size: int) -> None:
    assert_same(*together_and_alone("gemma3_text", options=RunOptions(batch_size=batch_size)))


def test_prompts_of_one_length_really_share_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    sweep: Callable[..., object] = together.sweep

    def noted(*args: object) -> object:
        sizes.append(args[1].base.samples)  # type: ignore[attr-defined]
        return sweep(*args)

    monkeypatch.setattr(together, "sweep", noted)
    trace_together(tiny_tracer("llama").context, requests(), HIDDEN, OPTIONS, nothing, lambda: False)
    assert sum(sizes) == 2 * len(QUERIES)
    assert max(sizes) > 2


def test_a_model_that_looks_at_token_ids_elsewhere_takes_its_prompts_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    sweep: Callable[..., object] = together.sweep

    def noted(*args: object) -> object:
        sizes.append(args[1].base.samples)  # type: ignore[attr-defined]
        return sweep(*args)

    tracer = tiny_tracer("llama")
    expected = [tracer.trace(request) for request in requests()]
    monkeypatch.setattr(together, "sweep", noted)
    monkeypatch.setattr(together, "_ROUNDING", {torch.float32: -1.0})
    assert_same(trace_together(tracer.context, requests(), HIDDEN, OPTIONS, nothing, lambda: False), expected)
    assert set(sizes) == {2}


def test_progress_reaches_its_end_and_cancelling_stops() -> None:
    seen: list[tuple[int, int]] = []
    context = tiny_tracer("llama").context
    trace_together(context, requests(), HIDDEN, OPTIONS, lambda done, total: seen.append((done, total)), lambda: False)
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    with pytest.raises(TraceCancelled):
        trace_together(context, requests(), HIDDEN, OPTIONS, nothing, lambda: True)


@pytest.mark.parametrize(
    ("change", "can"),
    [
        ({}, True),
        ({"direction": "corrupt"}, False),
        ({"read": 7}, False),
        ({"answer": " city"}, False),
        ({"top_tokens": 3}, False),
        ({"elsewhere": 6}, False),
    ],
)
def test_only_plain_requests_share_passes(change: dict[str, object], can: bool) -> None:
    assert can_share_passes(replace(requests()[0], **change), HIDDEN) is can


@pytest.mark.parametrize("spec", [MapSpec(positions=(5,)), MapSpec(subject_tokens_only=True), MapSpec(severed="mlp")])
def test_only_plain_maps_share_passes(spec: MapSpec) -> None:
    assert not can_share_passes(requests()[0], spec)


def test_a_map_that_fails_its_audit_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = tiny_tracer("gpt2")
    asked = requests()[:2]
    expected = [tracer.trace(request, engine="full") for request in asked]
    real = together.sweep

    def broken(*arguments: Any) -> Iterator[SweepChunk]:
        *before, watch, halved = arguments

        def shifted(seen: Watched) -> None:
            watch(replace(seen, logits=seen.logits * 1.5))

        yield from real(*before, shifted, halved)

    monkeypatch.setattr(together, "sweep", broken)
    found = trace_together(tracer.context, asked, HIDDEN, OPTIONS, nothing, lambda: False)
    for one, other in zip(found, expected, strict=True):
        assert one.audit is not None
        assert one.audit.recomputed
        assert one.settings.engine == "full"
        torch.testing.assert_close(one.sample_scores, other.sample_scores, rtol=0, atol=1e-6)
