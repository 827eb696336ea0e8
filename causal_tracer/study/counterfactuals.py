"""Other subjects in a subject's place, for `corruption.CounterfactualSubjects` and for second prompts."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from causal_tracer.corruption.counterfactual import counterfactual_ids
from causal_tracer.errors import SettingsError, StudyError, SubjectError
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.prompts.subject import Occurrence
from causal_tracer.request.records import OtherPrompt
from causal_tracer.study.facts import Fact, load_facts
from causal_tracer.study.settings import derived_seed


def equal_length_subjects(
    tokenizer: Any, prompt: Prompt, candidates: Iterable[str] | None = None, count: int = 10
) -> tuple[str, ...]:
    """Return candidates with as many tokens as the prompt's subject that leave all other tokens unchanged.

    Args:
        tokenizer: The tokenizer of the prompt.
        prompt: The prompt, such as from `prompt_for(tracer.context, text, subject)` or `chat_prompt`.
        candidates: The subjects to choose from, the preferred ones first. None takes those of the package's facts. If
            the prompt's subject is one of them, the subjects of its relation come first.
        count: The largest number of subjects to return.

    Returns:
        Up to `count` different subjects in the candidates' order, without the prompt's own subject.

    Raises:
        SettingsError: `count` is below 1.
    """
    if count < 1:
        raise SettingsError(f"count={count} is too small. Give 1 or more.")
    others = dict.fromkeys(_shipped_subjects(prompt.subject) if candidates is None else candidates)
    fitting = (other for other in others if other != prompt.subject and _fits(tokenizer, prompt, other))
    return tuple(islice(fitting, count))


def second_prompt(prompt: Prompt, other: str, occurrence: Occurrence) -> OtherPrompt:
    """Return a second prompt: the prompt with another subject in the subject's place."""
    end = prompt.subject_start + len(prompt.subject)
    text = prompt.text[: prompt.subject_start] + other + prompt.text[end:]
    return OtherPrompt(text, other, occurrence)


def partner_for(tokenizer: Any, seed: int, prompt: Prompt, fact: Fact, facts: Iterable[Fact]) -> Fact:
    """Draw the fact whose subject makes the second prompt. It has the same relation and another attribute.

    A fact whose subject has as many tokens is preferred.

    Args:
        tokenizer: The tokenizer of the prompt.
        seed: The study's seed.
        prompt: The fact's prompt.
        fact: The fact.
        facts: The facts to draw from.

    Raises:
        StudyError: No other fact of its relation has another attribute.
    """
    others = [other for other in facts if other.relation == fact.relation and other.attribute != fact.attribute]
    drawn = sorted(others, key=lambda other: derived_seed(seed, fact.fact_id, "partner", other.fact_id))
    if not drawn:
        raise StudyError(
            f"No fact of the relation {fact.relation!r} has another attribute than {fact.attribute!r}. "
            "Add one, or leave this relation out."
        )
    return next((other for other in drawn if _fits(tokenizer, prompt, other.subject)), drawn[0])


def _fits(tokenizer: Any, prompt: Prompt, other: str) -> bool:
    try:
        counterfactual_ids(tokenizer, prompt, other)
    except SubjectError:
        return False
    return True


def _shipped_subjects(subject: str) -> list[str]:
    facts = load_facts()
    relations = {fact.relation for fact in facts if fact.subject == subject}
    return [fact.subject for fact in sorted(facts, key=lambda fact: fact.relation not in relations)]
