"""A prompt's subject: finding a given subject in the text, or guessing it from the capital letters."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from causal_tracer.arguments import quoted
from causal_tracer.errors import SettingsError, SubjectError
from causal_tracer.prompts.encoding import Span

Occurrence = Literal["first", "last"]

# Words that have a capital at the start of a sentence or question, without being part of a name.
_OPENERS = frozenset(
    (
        "a an and are as at by can did do does for from how if in is it its of on or our that the their there "
        "these this those to was were what when where which who whom whose why will with your"
    ).split()
)
# Lower-case words that may be part of a name.
_JOINERS = frozenset("al and bin d da de del della der des di du for ibn la le of the to van von y".split())
_ARTICLES = frozenset({"the", "a", "an"})


def occurrences(text: str, subject: str, start: int = 0, end: int | None = None) -> tuple[Span, ...]:
    """Return the spans of a subject in text[start:end], in order. Spans may overlap.

    If the subject is not found exactly as written, canonically equivalent texts are found: é as one character (NFC) and
    as e with a combining accent (NFD).
    """
    part = text[start:end]
    found = [(m.start(), m.start() + len(subject)) for m in re.finditer(f"(?={re.escape(subject)})", part)]
    if not subject or not found:
        found = _equivalent_spans(part, subject) if subject else []
    return tuple((start + a, start + b) for a, b in found)


def _equivalent_spans(text: str, subject: str) -> list[Span]:
    """Return the spans canonically equivalent to the subject: whole characters, with all their combining marks."""
    if text.isascii() and subject.isascii():
        return []
    wanted = unicodedata.normalize("NFD", subject)
    characters, sources = _decomposed(text)
    spans = []
    for match in re.finditer(f"(?={re.escape(wanted)})", characters):
        start, end = match.start(), match.start() + len(wanted)
        before = sources[start - 1] if start else -1
        after = sources[end] if end < len(sources) else len(text)
        # NFD may reorder the marks of one character, so all characters they come from must be inside.
        inside = sources[start:end]
        cut = before in inside or after in inside
        if not cut and not (end < len(characters) and unicodedata.combining(characters[end])):
            spans.append((min(inside), max(inside) + 1))
    return spans


def _decomposed(text: str) -> tuple[str, list[int]]:
    """Return a text in NFD, and for each of its characters the index of the character in the text it comes from."""
    pairs = [(part, i) for i, character in enumerate(text) for part in unicodedata.normalize("NFD", character)]
    ordered: list[tuple[str, int]] = []
    for pair in pairs:
        place = len(ordered)
        rank = unicodedata.combining(pair[0])
        while rank and place and unicodedata.combining(ordered[place - 1][0]) > rank:
            place -= 1
        ordered.insert(place, pair)
    return "".join(part for part, _ in ordered), [i for _, i in ordered]


def chosen_occurrence(places: tuple[Span, ...], occurrence: Occurrence) -> Span:
    """Return the first or the last of some spans.

    Raises:
        SettingsError: `occurrence` is neither "first" nor "last".
    """
    if occurrence not in ("first", "last"):
        raise SettingsError(f'occurrence={occurrence!r} is not known. Choose "first" or "last".')
    return places[0] if occurrence == "first" else places[-1]


def replace_subject(text: str, subject: str | None, occurrence: Occurrence, other: str) -> str:
    """Return a text with its subject replaced by another one.

    Args:
        text: The text.
        subject: The subject to replace. None guesses it.
        occurrence: Which occurrence of the subject is replaced.
        other: The new subject.

    Raises:
        SubjectError: The subject is not in the text, or none could be guessed.
    """
    own = guess_subject(text) if subject is None else subject
    places = occurrences(text, own)
    if not places:
        raise SubjectError(subject_not_found_message(text, own))
    start, end = chosen_occurrence(places, occurrence)
    return text[:start] + other + text[end:]


def subject_not_found_message(text: str, subject: str) -> str:
    """Return the error message for a subject that is not in the prompt."""
    message = f"The subject {quoted(subject)} is not in the prompt {quoted(text)}."
    if found := re.search(re.escape(subject), text, re.IGNORECASE):
        return f"{message} The prompt has {found[0]!r}: write the subject in the same way, capitals included."
    return f"{message} Give a part of the prompt, exactly as it is written there."


def guess_subject(text: str) -> str:
    """Return a prompt's subject: the first run of words that looks like a name.

    A name consists of capitalised words. Some lower-case words may join them ("Kingdom of the Netherlands"). Numbers
    may be inside the name or start the text ("2005 Tour de France"). Words that have a capital only because they start
    a sentence ("In", "Where") are not part of the name, except an article right before it ("The Space Needle").

    Raises:
        SubjectError: The text has no capitalised name.
    """
    if not isinstance(text, str):
        raise SubjectError(f"The prompt must be a text (given: {quoted(text)}).")
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
            # An abbreviation keeps its last dot, as in "F.C."
            end += "." in run[-1][0] and text[end : end + 1] == "."
            return re.sub(r"['’]s$", "", text[run[0].start() : end])
    raise SubjectError(
        f"No subject could be guessed in {quoted(text)}: the text has no capitalised name. Give the subject, exactly "
        "as it is written in the prompt."
    )


def _adjoins(word: str, gap: str) -> bool:
    """Check whether a name may continue over this gap after this word. A dot may follow an initial."""
    return gap.strip() in ("", "&", "'", "’") or (gap.strip() == "." and len(word) <= 2)
