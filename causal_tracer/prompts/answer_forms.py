"""Answers given as text: finding the tokens that follow a prompt, with or without a space before the answer.

"Seattle" follows "in the city of" with a space. "Paris" follows an opening bracket without one, and 巴黎 follows a
Chinese sentence without one. If the tokenizer allows both forms, the more probable one is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from causal_tracer.arguments import quoted
from causal_tracer.errors import PromptError
from causal_tracer.metrics.metric import log_probabilities
from causal_tracer.prompts.encoding import check_text, encode, encode_with_spans
from causal_tracer.prompts.prompt import Prompt

AnswerForm = Literal["auto", "exact"]
"""The form of an answer after the prompt: "exact" as written; "auto" with a space if that is more probable."""

LogitsAfter = Callable[[tuple[int, ...]], Tensor]
"""A function from the tokens put after a prompt to the clean run's logits before and after each of them
[tokens + 1, vocabulary]."""

# An answer with a space gets a note if the form without the space is at least this share as probable.
_NOTED_SHARE = 0.1


@dataclass(frozen=True)
class Continuation:
    """A text that can follow a prompt.

    Attributes:
        text: The text, including the space if there is one before it.
        ids: The text's token ids.
        note: The reason for this form if it is not obvious, else "".
    """

    text: str
    ids: tuple[int, ...]
    note: str = ""

    @property
    def starts_with_space(self) -> bool:
        """Whether the text begins with a space."""
        return self.text[:1].isspace()


def continuations(
    tokenizer: Any,
    prompt: Prompt,
    text: str,
    form: AnswerForm = "auto",
    *,
    read: int | None = None,
    name: str = "answer",
) -> tuple[Continuation, ...]:
    """Return the forms in which a text can follow a prompt without changing the prompt's tokens.

    Args:
        tokenizer: The tokenizer that made the prompt.
        prompt: The prompt.
        text: The text. A space at its start is kept.
        form: "exact" for the text as written; "auto" to try it also with a space before it, if neither the text nor the
            prompt has one there.
        read: The token of the prompt after which the text comes; None means the last token.
        name: The text's name in messages.

    Returns:
        One or two forms, the one as written first.

    Raises:
        PromptError: The text is empty or not a text, both forms change the prompt's tokens, or the text has characters
            that the tokenizer does not know.
    """
    check_text(name, text)
    if not text.strip():
        raise PromptError(f"The {name} is empty (given: {text!r}). Give a text, or None for the model's own answer.")
    before, ids = prompt.text, prompt.input_ids
    if read is not None and read != len(prompt) - 1:
        spans = encode_with_spans(tokenizer, prompt.text, prompt.special_tokens)[1]
        before, ids = prompt.text[: spans[read][1]], ids[: read + 1]
    both = form == "auto" and not before[-1:].isspace() and not text[0].isspace()
    found: list[Continuation] = []
    unknown = False
    for candidate in (text, f" {text}") if both else (text,):
        whole = encode(tokenizer, before + candidate, prompt.special_tokens).ids
        after = whole[len(ids) :]
        if whole[: len(ids)] != ids or not after or any(known.ids == after for known in found):
            continue
        if _has_unknown(tokenizer, candidate, after):
            unknown = True
            continue
        found.append(Continuation(candidate, after))
        if candidate == text and _is_special(tokenizer, after[0]):
            break
    if not found:
        raise PromptError(_unknown_message(tokenizer, text, name) if unknown else _merged_message(before, text, name))
    if both and len(found) == 1 and found[0].starts_with_space and not before[-1:].isalnum():
        note = (
            f"The {name} is read with a space before it, because without a space the tokenizer changes the prompt's "
            "tokens."
        )
        return (replace(found[0], note=note),)
    return tuple(found)


def choose_form(forms: Sequence[Continuation], logits_after: LogitsAfter) -> Continuation:
    """Return the more probable form of an answer, by the joint probability of its tokens after the prompt.

    Args:
        forms: One form, or two of which one has a space before it (`continuations`).
        logits_after: Returns the clean run's logits. It is called for the form with fewer tokens. It is called for the
            other form only if that form's first token does not decide which form is more probable.
    """
    if len(forms) == 1:
        return forms[0]
    shorter, longer = sorted(forms, key=lambda form: len(form.ids))
    logits = logits_after(shorter.ids[:-1])
    one = log_probability(logits, shorter.ids)
    # An answer is at most as probable as its first token.
    other, exact = log_probability(logits[:1], longer.ids[:1]), len(longer.ids) == 1
    if other > one and not exact:
        other, exact = log_probability(logits_after(longer.ids[:-1]), longer.ids), True
    if other > one:
        return _with_note(longer, other, shorter, one, exact=True)
    return _with_note(shorter, one, longer, other, exact=exact)


def choose_matching_form(forms: Sequence[Continuation], answer: Continuation) -> Continuation:
    """Return the form with a space if the answer has one, else the form without; or the only form.

    So a foil differs from its answer in the words, not in the space.
    """
    return next((form for form in forms if form.starts_with_space == answer.starts_with_space), forms[0])


def log_probability(logits: Tensor, ids: tuple[int, ...]) -> float:
    """Return the log of the probability of consecutive tokens, from the logits before each [tokens, vocabulary]."""
    return float(log_probabilities(logits[None].float(), ids).sum())


def _with_note(
    chosen: Continuation, log_chosen: float, other: Continuation, log_other: float, *, exact: bool
) -> Continuation:
    """Return the chosen form, with a note unless it has a space and is by far the more probable."""
    if chosen.starts_with_space and log_other < log_chosen + math.log(_NOTED_SHARE):
        return chosen
    form = "with" if chosen.starts_with_space else "without"
    note = (
        f"The answer is read {form} a space before it, as the model finds more "
        f"probable: P({chosen.text!r}) = {math.exp(log_chosen):.2g}, P({other.text!r}) {'=' if exact else '<='} "
        f"{math.exp(log_other):.2g} in the clean run."
    )
    return replace(chosen, note=note)


def _is_special(tokenizer: Any, token_id: int) -> bool:
    known = tokenizer.added_tokens_decoder.get(token_id)
    return known is not None and bool(known.special)


def _has_unknown(tokenizer: Any, text: str, ids: Sequence[int]) -> bool:
    """Check whether a text's tokens include the unknown token, which the text itself does not contain."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    return unknown is not None and unknown in ids and str(tokenizer.unk_token) not in text


def _unknown_message(tokenizer: Any, text: str, name: str) -> str:
    return (
        f"The {name} {quoted(text)} has characters that the tokenizer does not know and replaces by "
        f"{tokenizer.unk_token}. Give another text."
    )


def _merged_message(before: str, text: str, name: str) -> str:
    advice = "End the prompt before its last space" if before[-1:].isspace() else "End the prompt elsewhere"
    return (
        f"The {name} {quoted(text)} cannot follow the prompt {quoted(before)}: the tokenizer merges the two, which "
        f"changes the prompt's tokens. {advice}, or give a token id (answer_id)."
    )
