"""Alignment of two prompts: partners counted by hand, for subjects of different lengths and places."""

from __future__ import annotations

import itertools

import pytest

from causal_tracer.errors import SettingsError
from causal_tracer.prompts.alignment import align_prompts
from causal_tracer.prompts.prompt import Prompt


def prompt(before: int, subject: int, after: int) -> Prompt:
    tokens = before + subject + after
    return Prompt("", tuple(range(tokens)), ("",) * tokens, "", (before, before + subject), False, 1)


NONE = None
CASES = [
    # Prompts of equal length, with subjects at any place.
    ((1, 2, 3), (1, 2, 3), "auto", (0, 1, 2, 3, 4, 5)),
    ((1, 2, 3), (2, 1, 3), "auto", (0, 1, 2, 3, 4, 5)),
    ((1, 2, 3), (2, 1, 3), "tokens", (0, 1, 2, 3, 4, 5)),
    # By spans: the first subject token has no partner in a subject of one token.
    ((1, 2, 3), (2, 1, 3), "spans", (0, NONE, 2, 3, 4, 5)),
    ((1, 1, 2), (1, 3, 2), "auto", (0, 3, 4, 5)),
    ((1, 3, 2), (1, 1, 2), "auto", (0, NONE, NONE, 1, 2, 3)),
    ((1, 4, 2), (1, 3, 2), "auto", (0, 1, NONE, 2, 3, 4, 5)),
    ((1, 3, 2), (1, 4, 2), "auto", (0, 1, 3, 4, 5, 6)),
    # The tokens after the subject are aligned at both ends.
    ((0, 1, 4), (0, 1, 3), "auto", (0, 1, NONE, 2, 3)),
    ((0, 1, 3), (0, 1, 4), "auto", (0, 1, 3, 4)),
    ((0, 1, 3), (0, 1, 1), "auto", (0, NONE, NONE, 1)),
    ((0, 1, 1), (0, 1, 3), "auto", (0, 3)),
    # No text after the subject in one or both prompts.
    ((1, 2, 0), (1, 2, 2), "auto", (0, 1, 2)),
    ((1, 2, 2), (1, 2, 0), "auto", (0, 1, 2, NONE, NONE)),
    # The tokens before the subject are aligned from the start.
    ((3, 1, 1), (2, 1, 1), "auto", (0, 1, NONE, 2, 3)),
    ((2, 1, 1), (3, 1, 1), "auto", (0, 1, 3, 4)),
]


@pytest.mark.parametrize(("own", "other", "rule", "partners"), CASES)
def test_partners(own: tuple[int, int, int], other: tuple[int, int, int], rule: str, partners: tuple[int, ...]) -> None:
    assert align_prompts(prompt(*own), prompt(*other), rule) == partners  # type: ignore[arg-type]


def test_spans_keep_parts_and_order() -> None:
    shapes = list(itertools.product(range(3), range(1, 5), range(4)))
    for own, other in itertools.product(shapes, shapes):
        first, second = prompt(*own), prompt(*other)
        partners = align_prompts(first, second, "spans")
        found = [(token, partner) for token, partner in enumerate(partners) if partner is not None]
        assert [partner for _, partner in found] == sorted({partner for _, partner in found})
        assert all(_part(first, token) == _part(second, partner) for token, partner in found)
        # Last subject tokens are always partners. So are last tokens if text follows both subjects.
        assert partners[first.subject_range[1] - 1] == second.subject_range[1] - 1
        if own[2] and other[2]:
            assert partners[-1] == len(second) - 1
        assert len(found) == sum(map(min, own, other))


def _part(each: Prompt, token: int) -> int:
    start, end = each.subject_range
    return (token >= start) + (token >= end)


def test_pairs_count_from_either_end() -> None:
    assert align_prompts(prompt(1, 1, 1), prompt(1, 2, 3), pairs=[(0, 1), (-1, -1)]) == (1, None, 5)


@pytest.mark.parametrize(
    "pairs", [[(3, 0)], [(-4, 0)], [(0, 6)], [(0, 0), (0, 1)], [(0, 1), (1, 1)], [(0, 1), (-3, 2)]]
)
def test_pairs_that_do_not_fit_are_refused(pairs: list[tuple[int, int]]) -> None:
    with pytest.raises(SettingsError, match="pair"):
        align_prompts(prompt(1, 1, 1), prompt(1, 2, 3), pairs=pairs)


def test_the_rule_tokens_needs_equal_lengths() -> None:
    with pytest.raises(SettingsError, match="equal length"):
        align_prompts(prompt(1, 1, 1), prompt(1, 2, 3), "tokens")
