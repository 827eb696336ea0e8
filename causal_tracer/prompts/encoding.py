"""Tokenizing a text with any Hugging Face tokenizer: token ids, and the characters that each token covers."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from causal_tracer.arguments import quoted
from causal_tracer.errors import PromptError, TokenizerError

Span = tuple[int, int]
"""A range of characters of a text: the first, and one past the last."""


@dataclass(frozen=True)
class EncodedText:
    """The tokens of a text.

    Attributes:
        ids: Token ids, including the special tokens that the tokenizer adds before the text but not those after it.
        added: The special tokens that the tokenizer adds before the text, such as a BOS.
        appended: The special tokens that it adds after the text, such as an EOS. They are not given to the model.
    """

    ids: tuple[int, ...]
    added: tuple[int, ...] = ()
    appended: tuple[int, ...] = ()


def check_text(name: str, value: Any, error: type[PromptError] = PromptError) -> str:
    """Return the value if it is a text that a tokenizer can encode.

    Args:
        name: The value's name in messages.
        value: The value.
        error: The class of the exception.

    Raises:
        PromptError: The value is not a text, or holds a lone surrogate.
    """
    if not isinstance(value, str):
        raise error(f"The {name} must be a text (given: {quoted(value)}).")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise error(
            f"The {name} contains half a character, a lone surrogate (given: {quoted(value)}). Type or paste it again."
        )
    return value


def encode(tokenizer: Any, text: str, special_tokens: bool = True) -> EncodedText:
    """Tokenize a text.

    Args:
        tokenizer: A Hugging Face tokenizer; it is not changed.
        text: The text.
        special_tokens: Whether the tokenizer adds its special tokens.

    Raises:
        TokenizerError: `tokenizer` is not a tokenizer.
    """
    return _encode(tokenizer, text, special_tokens)[0]


def encode_with_spans(tokenizer: Any, text: str, special_tokens: bool = True) -> tuple[EncodedText, tuple[Span, ...]]:
    """Tokenize a text, and find the characters that each token of `EncodedText.ids` covers.

    Raises:
        PromptError: The text has no tokens.
        TokenizerError: `tokenizer` is not a tokenizer, or its tokens cannot be aligned with the text.
    """
    encoded, offsets = _encode(tokenizer, text, special_tokens)
    if not encoded.ids:
        raise PromptError(f"The tokenizer makes no tokens of {quoted(text)}. Give a text that the model can continue.")
    if offsets is None:
        spans = _spans_by_decoding(tokenizer, encoded.ids, text, special_tokens)
    else:
        spans = tuple((int(a), int(b)) for a, b in offsets[: len(encoded.ids)])
    if any(a < 0 or b < a or b > len(text) for a, b in spans):
        raise TokenizerError(
            f"{type(tokenizer).__name__} gave character offsets outside the prompt {quoted(text)}, so the subject's "
            "tokens cannot be found. Use the model's own fast tokenizer (use_fast=True)."
        )
    return encoded, spans


def _encode(tokenizer: Any, text: str, special_tokens: bool) -> tuple[EncodedText, Sequence[Span] | None]:
    """Return the tokens, and the character offsets of all tokens, or None if the tokenizer does not give offsets."""
    if not callable(tokenizer):
        raise TokenizerError(
            f"The tokenizer must be a Hugging Face tokenizer (given: {quoted(tokenizer)}). Give the one that belongs "
            "to the model, such as AutoTokenizer.from_pretrained loads."
        )
    if getattr(tokenizer, "is_fast", False):
        output = tokenizer(
            text,
            add_special_tokens=special_tokens,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        ids = tuple(int(i) for i in output["input_ids"])
        # The mask is 0 for all tokens that come from the text, even special ones.
        own = [place for place, special in enumerate(output["special_tokens_mask"]) if not special]
        start, end = (own[0], own[-1] + 1) if own else (len(ids), len(ids))
        return EncodedText(ids[:end], ids[:start], ids[end:]), output["offset_mapping"]
    ids = _plain_ids(tokenizer, text, special_tokens)
    if not special_tokens:
        return EncodedText(ids), None
    own_ids = _plain_ids(tokenizer, text, False)
    spare = len(ids) - len(own_ids)
    start = next((n for n in range(spare, -1, -1) if ids[n : n + len(own_ids)] == own_ids), spare)
    end = start + len(own_ids)
    return EncodedText(ids[:end], ids[:start], ids[end:]), None


def _plain_ids(tokenizer: Any, text: str, special_tokens: bool) -> tuple[int, ...]:
    return tuple(int(i) for i in tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"])


def _spans_by_decoding(tokenizer: Any, ids: Sequence[int], text: str, special_added: bool) -> tuple[Span, ...]:
    """Find each token's span for a tokenizer without offsets, by decoding one token more at a time."""
    special = set(tokenizer.all_special_ids) if special_added else set()

    def decoded(count: int) -> str:
        plain: str = tokenizer.decode(
            list(ids[:count]), skip_special_tokens=special_added, clean_up_tokenization_spaces=False
        )
        return plain

    whole = decoded(len(ids))
    shift = len(whole) - len(text)
    if not whole.endswith(text) or whole[:shift].strip():
        raise TokenizerError(_decoding_mismatch(tokenizer, whole, text))
    spans: list[Span] = []
    complete = 0
    for i, token_id in enumerate(ids):
        reached = decoded(i + 1)
        start, complete = complete, max(complete, _common_prefix_length(reached, whole) - shift)
        # An incomplete character decodes to a replacement character. All tokens of the character cover it.
        end = complete if whole.startswith(reached) else min(len(text), complete + 1)
        spans.append((0, 0) if token_id in special else (start, end))
    return tuple(spans)


def _decoding_mismatch(tokenizer: Any, whole: str, text: str) -> str:
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        if whole.strip() == unicodedata.normalize(form, text).strip():
            return (
                f"{type(tokenizer).__name__} has no character offsets and changes the text {quoted(text)} to the "
                f"Unicode normal form {form}. Give the prompt in {form} (unicodedata.normalize({form!r}, prompt)), or "
                "use the fast tokenizer (use_fast=True)."
            )
    return (
        f"{type(tokenizer).__name__} has no character offsets, and decoding its tokens gives {quoted(whole)} for "
        f"{quoted(text)}, so the subject's tokens cannot be found. Use the fast tokenizer (use_fast=True)."
    )


def _common_prefix_length(one: str, other: str) -> int:
    """Return how many characters two texts have in common at their start."""
    differing = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))
