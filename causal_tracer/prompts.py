"""From text and subject to token ids, a subject span and labels for the tokens."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from causal_tracer.errors import PromptError, SettingsError, SubjectError, TokenizerError

Occurrence = Literal["first", "last"]

# Messages quote prompts, which may be long: the ends are enough.
_shortened = reprlib.Repr()
_shortened.maxstring = 160
_quoted = _shortened.repr

# Words that open a sentence or a question with a capital without belonging to a name.
_OPENERS = frozenset(
    (
        "a an and are as at by can did do does for from how if in is it its of on or our that the their there "
        "these this those to was were what when where which who whom whose why will with your"
    ).split()
)
# Small words that may stand inside a name.
_JOINERS = frozenset("al and bin d da de del della der des di du for ibn la le of the to van von y".split())
_ARTICLES = frozenset({"the", "a", "an"})


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt with its subject located.

    Attributes:
        text: The prompt as given.
        input_ids: Its token ids, special tokens included.
        tokens: One label per token; tokens that are parts of one character say which part.
        subject: The subject's text.
        subject_range: First token of the subject, and one past its last.
        subject_guessed: Whether the subject was guessed rather than given.
        subject_count: How often the subject occurs in the prompt.
        subject_start: Where in the text the subject begins, in characters.
        special_tokens: Whether the tokenizer added its special tokens; False where the text has them already.
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

    def __len__(self) -> int:
        """Number of tokens."""
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
        subject: A part of the prompt; None guesses it (`guess_subject`).
        occurrence: Which one is meant where the subject occurs more than once. ROME's code takes the first,
            causal-tracer 1.1.0 the last.
        context_length: The longest prompt that the model takes, in tokens.
        vocab_size: Number of tokens that the model knows.

    Raises:
        PromptError: The prompt is empty or longer than `context_length`, or has ids that the model does not know.
        SubjectError: The subject is empty or not in the prompt, or none could be guessed.
        TokenizerError: Tokens cannot be aligned with the prompt's characters.
    """
    if not isinstance(text, str) or not text.strip():
        raise PromptError(f"The prompt is empty (given: {_quoted(text)}). Give a text that the model can go on from.")
    if not isinstance(subject, str | None):
        raise SubjectError(f"The subject is no text (given: {_quoted(subject)}). Give a part of the prompt.")
    guessed = subject is None
    subject = guess_subject(text) if subject is None else subject.strip()
    if not subject:
        raise SubjectError("The subject is empty. Give a part of the prompt, or None to have it guessed.")
    count = text.count(subject)
    if count == 0:
        raise SubjectError(_not_found(text, subject))
    return prompt_at(
        tokenizer,
        text,
        subject,
        _find(text, subject, occurrence),
        subject_guessed=guessed,
        subject_count=count,
        context_length=context_length,
        vocab_size=vocab_size,
    )


def prompt_at(
    tokenizer: Any,
    text: str,
    subject: str,
    start: int,
    *,
    subject_guessed: bool,
    subject_count: int,
    context_length: int | None,
    vocab_size: int | None,
    special_tokens: bool = True,
) -> Prompt:
    """Tokenize a text whose subject starts at character `start`.

    Args:
        tokenizer, text, subject, context_length, vocab_size: As in `make_prompt`.
        start: The subject's first character.
        subject_guessed, subject_count: Handed on to the `Prompt`.
        special_tokens: Whether the tokenizer adds its own, such as a BOS; False where the text has them already.

    Raises:
        PromptError, TokenizerError: As in `make_prompt`.
    """
    ids, spans = encode_text(tokenizer, text, special_tokens)
    if context_length is not None and len(ids) > context_length:
        raise PromptError(
            f"The prompt has {len(ids)} tokens, and the model takes at most {context_length}. Shorten it."
        )
    if vocab_size is not None and ids and max(ids) >= vocab_size:
        raise PromptError(
            f"The tokenizer gave token id {max(ids)}, and the model knows ids below {vocab_size}. Use the tokenizer "
            "that belongs to the model."
        )
    covered = [i for i, (a, b) in enumerate(spans) if a < start + len(subject) and b > start]
    if not covered:
        raise TokenizerError(f"No token of the prompt covers the subject {_quoted(subject)}: the tokenizer drops it.")
    return Prompt(
        text=text,
        input_ids=tuple(ids),
        tokens=token_labels(tokenizer, ids, text, spans),
        subject=subject,
        subject_range=(covered[0], covered[-1] + 1),
        subject_guessed=subject_guessed,
        subject_count=subject_count,
        subject_start=start,
        special_tokens=special_tokens,
    )


def guess_subject(text: str) -> str:
    """The first run of words that looks like a name: words with a capital, and what joins them.

    Small words may stand inside a name ("Kingdom of the Netherlands"), numbers in it or at the start of the text
    ("2005 Tour de France"). Words that only open a sentence ("In", "Where") are no part of one, but for an article
    right before it ("The Space Needle").

    Raises:
        SubjectError: The text has no such run.
    """
    if not isinstance(text, str):
        raise SubjectError(f"The prompt must be a text (given: {_quoted(text)}).")
    runs: list[list[re.Match[str]]] = [[]]
    joiners: list[re.Match[str]] = []
    for word in re.finditer(r"[^\W_](?:[^\s\"“”()\[\]{},;:!?]*[^\W_])?", text):
        run = runs[-1]
        before = (joiners or run)[-1] if run else None
        adjoins = before is not None and _adjoins(before[0], text[before.end() : word.start()])
        if word[0] != word[0].lower() or (word[0][0].isdigit() and (adjoins or word.start() == 0)):
            if adjoins:
                run += [*joiners, word]
            else:
                runs.append([word])
            joiners = []
        elif adjoins and word[0] in _JOINERS and run[-1][0].lower() not in _OPENERS:
            joiners.append(word)
        else:
            runs.append([])
            joiners = []
    for run in runs:
        while run and run[0][0].lower() in _OPENERS and (len(run) == 1 or run[0][0].lower() not in _ARTICLES):
            run = run[1:]
        if any(word[0] != word[0].lower() for word in run):
            end = run[-1].end()
            # An abbreviation keeps its last dot: "F.C."
            end += "." in run[-1][0] and text[end : end + 1] == "."
            return re.sub(r"['’]s$", "", text[run[0].start() : end])
    raise SubjectError(
        f"No subject could be guessed in {_quoted(text)}: it has no capitalised name. Give the subject, as it "
        "stands in the prompt."
    )


def _adjoins(word: str, gap: str) -> bool:
    """Whether a name may go on over this gap after this word; a dot may follow an initial."""
    return gap.strip() in ("", "&", "'", "’") or (gap.strip() == "." and len(word) <= 2)


def token_labels(tokenizer: Any, ids: Sequence[int], text: str, spans: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """A label per token: its text, or, for a token that is part of a character, the character and which part."""
    labels = []
    for i, token_id in enumerate(ids):
        label = tokenizer.decode([token_id])
        if "\N{REPLACEMENT CHARACTER}" in label or not label:
            shared = [j for j, span in enumerate(spans) if span == spans[i] and span[1] > span[0]]
            if len(shared) > 1:
                label = f"{text[slice(*spans[i])]}[{shared.index(i) + 1}/{len(shared)}]"
            else:
                label = _raw_token(tokenizer, token_id)
        labels.append(label)
    return tuple(labels)


def token_text(tokenizer: Any, token_id: int) -> str:
    """The text of a token by itself, or its name in the vocabulary where it is only part of a character."""
    text: str = tokenizer.decode([token_id])
    return text if text and "\N{REPLACEMENT CHARACTER}" not in text else _raw_token(tokenizer, token_id)


def _raw_token(tokenizer: Any, token_id: int) -> str:
    return str(tokenizer.convert_ids_to_tokens([token_id])[0])


def _find(text: str, subject: str, occurrence: Occurrence) -> int:
    if occurrence not in ("first", "last"):
        raise SettingsError(f'occurrence={occurrence!r} is not known. Choose "first" or "last".')
    return text.find(subject) if occurrence == "first" else text.rfind(subject)


def _not_found(text: str, subject: str) -> str:
    message = f"The subject {_quoted(subject)} is not in the prompt {_quoted(text)}."
    if found := re.search(re.escape(subject), text, re.IGNORECASE):
        return f"{message} It has {found[0]!r}; write it the same way, capitals included."
    return f"{message} Give a part of the prompt exactly as it stands there."


def encode_text(tokenizer: Any, text: str, special_tokens: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids, and for each token the characters [start, end) of the text that it covers."""
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(text, add_special_tokens=special_tokens, return_offsets_mapping=True, verbose=False)
        ids = [int(i) for i in encoded["input_ids"]]
        spans = [(int(a), int(b)) for a, b in encoded["offset_mapping"]]
    else:
        ids = [int(i) for i in tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"]]
        spans = _spans_by_decoding(tokenizer, ids, text, special_tokens)
    if not ids:
        raise PromptError(
            f"The tokenizer makes no tokens of {_quoted(text)}. Give a text that the model can go on from."
        )
    if any(a < 0 or b < a or b > len(text) for a, b in spans):
        raise TokenizerError(
            f"{type(tokenizer).__name__} gave character offsets outside the prompt {_quoted(text)}; the "
            "subject's tokens cannot be found with it."
        )
    return ids, spans


def _spans_by_decoding(tokenizer: Any, ids: list[int], text: str, special_added: bool) -> list[tuple[int, int]]:
    """Spans for tokenizers without offsets: how far the decoded text reaches with each token more."""
    special = set(tokenizer.all_special_ids) if special_added else set()

    def decoded(count: int) -> str:
        plain: str = tokenizer.decode(
            ids[:count], skip_special_tokens=special_added, clean_up_tokenization_spaces=False
        )
        return plain

    whole = decoded(len(ids))
    shift = len(whole) - len(text)
    if not whole.endswith(text) or whole[:shift].strip():
        raise TokenizerError(
            f"{type(tokenizer).__name__} has no character offsets, and decoding its tokens gives {_quoted(whole)} for "
            f"{_quoted(text)}, so the subject's tokens cannot be found. Use the fast tokenizer (use_fast=True)."
        )
    spans: list[tuple[int, int]] = []
    complete = 0
    for i, token_id in enumerate(ids):
        reached = decoded(i + 1)
        start, complete = complete, max(complete, _shared_start(reached, whole) - shift)
        # An unfinished character decodes to a replacement mark that the whole text does not have: all its tokens
        # cover it.
        end = complete if whole.startswith(reached) else min(len(text), complete + 1)
        spans.append((0, 0) if token_id in special else (start, end))
    return spans


def _shared_start(one: str, other: str) -> int:
    """How many characters two texts have in common at their start."""
    differing = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))
