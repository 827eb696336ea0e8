"""A prompt is run once for its answers, however often the page inspects it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from causal_tracer.web.service.inspection import Inspection
from causal_tracer.web.service.tracing import TraceService
from tests.support.tiny_models import OTHER_PROMPT, PROMPT, SUBJECT
from tests.support.web_tiny import app_fields, tiny_service


@pytest.fixture
def service() -> TraceService:
    service = tiny_service()
    service.start_loading()
    assert service._slot("tiny").wait(60)
    return service


@pytest.fixture
def runs(service: TraceService) -> Iterator[list[None]]:
    """One item for each run of the model."""
    seen: list[None] = []
    model = service._slot("tiny").loaded().tracer.context.traced.model

    hook = model.register_forward_pre_hook(lambda *_: seen.append(None))
    yield seen
    hook.remove()


def inspected(service: TraceService, *given: Any, **settings: Any) -> Inspection:
    found = service.inspect(app_fields(*given, **settings))
    assert found.answers
    return found


def test_typing_a_guessed_subject_and_run_cost_one_run(service: TraceService, runs: list[None]) -> None:
    typed = inspected(service, PROMPT)
    guessed = inspected(service, PROMPT, SUBJECT)
    pressed = inspected(service, PROMPT, SUBJECT, samples=3, noise=0.1)
    assert len(runs) == 1
    assert typed.answers == guessed.answers == pressed.answers
    assert typed.answer == guessed.answer == pressed.answer


@pytest.mark.parametrize(
    "settings", [{"answer": " Rome"}, {"answer": "Rome", "answer_form": "exact"}, {"answer_id": 7}], ids=str
)
def test_another_answer_is_read_anew(service: TraceService, runs: list[None], settings: Any) -> None:
    before = inspected(service, PROMPT)
    ran = len(runs)
    found = inspected(service, PROMPT, **settings)
    assert len(runs) > ran
    assert found.answer != before.answer
    assert [each.token_id for each in found.answers] == [each.token_id for each in before.answers]


def test_another_prompt_is_run(service: TraceService, runs: list[None]) -> None:
    assert inspected(service, PROMPT).answers != inspected(service, OTHER_PROMPT).answers
    assert len(runs) == 2
