"""Prompts: tokenizing a text and locating its subject's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from causal_tracer.arguments import quoted
from causal_tracer.errors import PromptError, SubjectError, TokenizerError
from causal_tracer.prompts.decoding import decode_together, token_labels
from causal_tracer.prompts.encoding import EncodedText, Span, check_text, encode_with_spans
from causal_tracer.prompts.subject import (
    Occurrence,
    chosen_occurrence,
    guess_subject,
    occurrences,
    subject_not_found_message,
)


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt with its subject located.

    Attributes:
        text: The prompt as given.
        input_ids: The token ids. Special tokens before the text are included, those after it are not.
        tokens: One label per token (`token_labels`).
        subject: The subject as it is written in the text.
        subject_range: The subject's first token, and one past its last.
        subject_guessed: Whether the subject was guessed, not given.
        subject_count: How often the subject occurs in the prompt.
        subject_start: The index in the text of the subject's first character.
        special_tokens: Whether the tokenizer added its special tokens. False if the text contains them already.
        notes: Notes for readers of the results, such as that the prompt has two BOS tokens.
    """

    text: str
    input_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    subject: str
    subject_range: tuple[int, int]
    subject_guessed: bool
    subject_count: int
    subject_start: int = 0
    special_tokens: bool = True
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.input_ids)


def make_prompt(
    tokenizer: Any,
    text: str,
    subject: str | None = None,
    *,
    occurrence: Occurrence = "last",
    context_length: int | None = None,
    vocab_size: int | None = None,
) -> Prompt:
    """Tokenize a prompt and locate its subject by character offsets.

    Args:
        tokenizer: A Hugging Face tokenizer; it is not changed.
        text: The prompt.
        subject: A part of the prompt. None guesses it (`guess_subject`).
        occurrence: Which occurrence is used if the subject occurs more than once. ROME's code uses the first,
            causal-tracer 1.1.0 the last.
        context_length: The longest prompt that the model takes, in tokens.
        vocab_size: The size of the model's vocabulary.

    Raises:
        PromptError: The prompt is empty, not a text, or longer than `context_length`, or has ids of `vocab_size` or
            more.
        SubjectError: The subject is empty, not a text or not in the prompt, or none could be guessed.
        TokenizerError: Tokens cannot be aligned with the prompt's characters.
    """
    if not isinstance(text, str) or not text.strip():
        raise PromptError(f"The prompt is empty (given: {quoted(text)}). Give a text that the model can continue.")
    check_text("prompt", text)
    guessed = subject is None
    subject = guess_subject(text) if subject is None else check_text("subject", subject, SubjectError).strip()
    if not subject:
        raise SubjectError("The subject is empty. Give a part of the prompt, or None to guess the subject.")
    places = occurrences(text, subject)
    if not places:
        raise SubjectError(subject_not_found_message(text, subject))
    return make_prompt_at(
        tokenizer,
        text,
        chosen_occurrence(places, occurrence),
        subject_guessed=guessed,
        subject_count=len(places),
        context_length=context_length,
        vocab_size=vocab_size,
    )


def make_prompt_at(
    tokenizer: Any,
    text: str,
    place: Span,
    *,
    subject_guessed: bool,
    subject_count: int,
    context_length: int | None,
    vocab_size: int | None,
    special_tokens: bool = True,
    notes: tuple[str, ...] = (),
) -> Prompt:
    """Tokenize a text whose subject is at a known place.

    Args:
        tokenizer, text, context_length, vocab_size: As in `make_prompt`.
        place: The span of the subject in the text.
        subject_guessed, subject_count: As in `Prompt`.
        special_tokens: Whether the tokenizer adds its special tokens, such as a BOS. False if the text contains them
            already.
        notes: The first notes of the prompt.

    Raises:
        PromptError, TokenizerError: As in `make_prompt`.
    """
    encoded, spans = encode_with_spans(tokenizer, text, special_tokens)
    ids = encoded.ids
    if context_length is not None and len(ids) > context_length:
        raise PromptError(
            f"The prompt has {len(ids)} tokens, and the model takes at most {context_length}. Shorten it."
        )
    if vocab_size is not None and max(ids) >= vocab_size:
        raise PromptError(
            f"The tokenizer gave token id {max(ids)}, and the model only knows ids below {vocab_size}. Use the "
            "tokenizer that belongs to the model."
        )
    start, end = place
    covered = [i for i, (a, b) in enumerate(spans) if a < end and b > start]
    if not covered:
        raise TokenizerError(
            f"No token of the prompt covers the subject {quoted(text[start:end])}: the tokenizer drops it. Choose "
            "another subject, or another tokenizer."
        )
    return Prompt(
        text=text,
        input_ids=ids,
        tokens=token_labels(tokenizer, ids, text, spans),
        subject=text[start:end],
        subject_range=(covered[0], covered[-1] + 1),
        subject_guessed=subject_guessed,
        subject_count=subject_count,
        subject_start=start,
        special_tokens=special_tokens,
        notes=(*notes, *_notes_of_special_tokens(tokenizer, encoded)),
    )


def duplicate_token_note(token: str, whose: str) -> str:
    """Return the note for a text that contains a special token which the tokenizer or template adds anyway."""
    return (
        f"{token} is in the text, and {whose} adds it too, so the model reads it twice and its answers change. Remove "
        f"{token} from the text."
    )


def _notes_of_special_tokens(tokenizer: Any, encoded: EncodedText) -> list[str]:
    typed = encoded.ids[len(encoded.added) :]
    notes = [
        duplicate_token_note(decode_together(tokenizer, [token]), "the tokenizer")
        for token in dict.fromkeys(encoded.added)
        if token in typed
    ]
    if encoded.appended:
        notes.append(
            f"The tokenizer adds {decode_together(tokenizer, encoded.appended)} after every text. The prompt is read "
            "without it."
        )
    return notes
