"""Proposed subjects really can stand in the subject's place."""

from __future__ import annotations

import pytest

from causal_tracer import TraceRequest
from causal_tracer.corruption import CounterfactualSubjects
from causal_tracer.errors import SettingsError
from causal_tracer.prompts.prompt import make_prompt
from causal_tracer.study.counterfactuals import equal_length_subjects
from causal_tracer.study.facts import load_facts
from tests.support.tiny_models import PROMPT, SUBJECT, tiny_tokenizer, tiny_tracer

CANDIDATES = ["Paris", "Steve Jobs", SUBJECT, "city of", "Steve Jobs", "Space", "", "Rome Italy", "the Space Needle"]


def test_only_subjects_of_as_many_tokens_are_proposed_and_each_once() -> None:
    tokenizer = tiny_tokenizer()
    prompt = make_prompt(tokenizer, PROMPT, SUBJECT)
    found = equal_length_subjects(tokenizer, prompt, CANDIDATES)
    assert found == ("Steve Jobs", "city of", "Rome Italy")
    for other in found:
        ids = tokenizer(PROMPT.replace(SUBJECT, other)).input_ids
        assert len(ids) == len(prompt.input_ids)
    assert equal_length_subjects(tokenizer, prompt, CANDIDATES, count=2) == found[:2]
    assert equal_length_subjects(tokenizer, prompt, ["Paris"]) == ()


def test_what_is_proposed_can_be_traced() -> None:
    tracer = tiny_tracer("llama")
    prompt = make_prompt(tracer.tokenizer, PROMPT, SUBJECT)
    others = equal_length_subjects(tracer.tokenizer, prompt, CANDIDATES)
    request = TraceRequest(PROMPT, SUBJECT, corruption=CounterfactualSubjects(others))
    flow = tracer.trace(request)
    assert flow.sample_scores.shape[0] == len(others)


def test_without_candidates_the_facts_of_the_same_relation_come_first() -> None:
    facts = load_facts()
    fact = next(fact for fact in facts if sum(other.relation == fact.relation for other in facts) > 8)
    same = {other.subject for other in facts if other.relation == fact.relation} - {fact.subject}
    tokenizer = tiny_tokenizer()
    text = f"In truth, {fact.subject} is"
    prompt = make_prompt(tokenizer, text, fact.subject)
    found = equal_length_subjects(tokenizer, prompt, count=1000)
    of_relation = [subject for subject in found if subject in same]
    assert of_relation
    assert set(found) - same
    assert list(found[: len(of_relation)]) == of_relation


def test_a_count_of_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="count=0"):
        equal_length_subjects(tiny_tokenizer(), make_prompt(tiny_tokenizer(), PROMPT, SUBJECT), [], count=0)
