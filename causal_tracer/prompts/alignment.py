"""Aligning the tokens of two prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from causal_tracer.errors import SettingsError
from causal_tracer.prompts.prompt import Prompt

AlignmentRule = Literal["auto", "tokens", "spans"]
"""The rule: "tokens" is token by token, "spans" by spans, "auto" is "tokens" for equal lengths and else "spans"."""

Partners = tuple[int | None, ...]
"""For each token of a prompt, the token of the other prompt aligned with it, or None."""


def align_prompts(
    prompt: Prompt, other: Prompt, rule: AlignmentRule = "auto", pairs: Sequence[tuple[int, int]] | None = None
) -> Partners:
    """Return, for each token of a prompt, the aligned token of another prompt. No two tokens have the same partner.

    The rule "spans" aligns the tokens before the subjects from the first token on. It aligns the subjects at their
    first and last tokens, and the tokens between these from the end backwards. The tokens after the subjects are
    aligned like the subjects.

    Args:
        prompt: The prompt.
        other: The other prompt.
        rule: How tokens are aligned.
        pairs: Pairs (token of the prompt, token of the other), instead of a rule. Negative numbers count from the end.

    Raises:
        SettingsError: The rule is "tokens", and the prompts differ in length; or a pair is out of range, or contains a
            token of another pair.
    """
    if pairs is not None:
        return _paired(len(prompt), len(other), pairs)
    if rule == "tokens" and len(prompt) != len(other):
        raise SettingsError(
            f"align='tokens' needs prompts of equal length, and they have {len(prompt)} and {len(other)} tokens. Give "
            "align='spans', or pairs=[(token, other token), ...]."
        )
    if rule == "tokens" or (rule == "auto" and len(prompt) == len(other)):
        return tuple(range(len(prompt)))
    (start, end), (other_start, other_end) = prompt.subject_range, other.subject_range
    found = dict(zip(range(start), range(other_start), strict=False))
    found |= _ends(range(start, end), range(other_start, other_end))
    found |= _ends(range(end, len(prompt)), range(other_end, len(other)))
    return tuple(found.get(token) for token in range(len(prompt)))


def _ends(tokens: range, others: range) -> dict[int, int]:
    """Align two spans at their first and last tokens, and the tokens between from the end backwards."""
    if not tokens or not others:
        return {}
    between = zip(reversed(tokens[1:-1]), reversed(others[1:-1]), strict=False)
    first = {tokens[0]: others[0]} if len(tokens) > 1 and len(others) > 1 else {}
    return {**first, **dict(between), tokens[-1]: others[-1]}


def _paired(n_tokens: int, n_others: int, pairs: Sequence[tuple[int, int]]) -> Partners:
    found: dict[int, int] = {}
    for token, other in pairs:
        if not (-n_tokens <= token < n_tokens and -n_others <= other < n_others):
            raise SettingsError(
                f"The pair ({token}, {other}) is out of range: the prompt has {n_tokens} tokens, and the other one "
                f"{n_others}. Count from 0, or from -1 at the end."
            )
        place, partner = token % n_tokens, other % n_others
        if place in found or partner in found.values():
            raise SettingsError(
                f"The pair ({token}, {other}) contains a token of another pair. Use each token in one pair at most."
            )
        found[place] = partner
    return tuple(found.get(token) for token in range(n_tokens))
