"""Alignment of two prompts: which token of another prompt stands for which token of this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from causal_tracer.errors import SettingsError
from causal_tracer.prompts.prompt import Prompt

AlignmentRule = Literal["auto", "tokens", "spans"]
"""Token by token; by spans; or "auto": token by token where both prompts have as many tokens, else by spans."""

Partners = tuple[int | None, ...]
"""For each token of a prompt, the token of the other prompt that stands for it; None where there is none."""


def aligned(
    prompt: Prompt, other: Prompt, rule: AlignmentRule = "auto", pairs: Sequence[tuple[int, int]] | None = None
) -> Partners:
    """Return the partner of each token of a prompt in another one. No token is the partner of two.

    By spans, the tokens before the subjects are aligned at their first token. Subjects are aligned at their first and
    their last token, and the tokens after them likewise; the tokens between those are aligned at their ends.

    Args:
        prompt: The prompt.
        other: The other prompt.
        rule: How tokens are aligned.
        pairs: (token of the prompt, token of the other), instead of a rule. Negative numbers count from the end.

    Raises:
        SettingsError: Token by token is asked for, and the prompts differ in length; or a pair is out of range, or has
            a token of another pair.
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
    """Align two spans at their first tokens, at their last, and what is between at the end of it."""
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
                f"The pair ({token}, {other}) has a token of another pair. Give each token one partner at most."
            )
        found[place] = partner
    return tuple(found.get(token) for token in range(n_tokens))
