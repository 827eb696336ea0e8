"""Turning token ids into readable text: single tokens, consecutive tokens, and labels for a prompt's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from causal_tracer.prompts.encoding import Span

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_PRINTED = (range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100))


def _byte_alphabet() -> dict[str, int]:
    """Return the byte for each character of the byte-level alphabet, which byte-level tokenizers (GPT-2's) use."""
    printed = [byte for part in _PRINTED for byte in part]
    others = (byte for byte in range(256) if byte not in printed)
    return {**{chr(byte): byte for byte in printed}, **{chr(256 + n): byte for n, byte in enumerate(others)}}


_BYTES = _byte_alphabet()


def decode_together(tokenizer: Any, ids: Sequence[int]) -> str:
    r"""Return the text of consecutive tokens, which may share characters.

    The bytes of an incomplete character are written like \xe6. A token id that the tokenizer does not have is written
    like <id 50300>; there are such ids if the model's vocabulary is padded.
    """
    parts: list[str] = []
    start = 0
    while start < len(ids):
        # The most tokens that decode to a complete text: all of them, unless characters are incomplete.
        ends = range(len(ids), start, -1)
        found = next(((end, text) for end in ends if (text := _text(tokenizer, ids[start:end]))), None)
        end, text = found or (start + 1, _name(tokenizer, ids[start]))
        parts.append(text)
        start = end
    return "".join(parts)


def token_text(tokenizer: Any, token_id: int) -> str:
    """Return the text of a single token. `decode_together` says how tokens without a text are written."""
    return decode_together(tokenizer, (token_id,))


def token_labels(tokenizer: Any, ids: Sequence[int], text: str, spans: Sequence[Span]) -> tuple[str, ...]:
    """Return a label for each token of a text.

    A label is the token's text, or "é[1/2]" for a token that is the first of two parts of one character.
    """
    labels = []
    for i, token_id in enumerate(ids):
        label = _text(tokenizer, [token_id])
        if label is None:
            shared = [j for j, span in enumerate(spans) if span == spans[i] and span[1] > span[0]]
            if len(shared) > 1:
                label = f"{text[slice(*spans[i])]}[{shared.index(i) + 1}/{len(shared)}]"
            else:
                label = _name(tokenizer, token_id)
        labels.append(label)
    return tuple(labels)


def _text(tokenizer: Any, ids: Sequence[int]) -> str | None:
    """Return the text of tokens, or None if they have no text or end within a character."""
    if None in tokenizer.convert_ids_to_tokens(list(ids)):
        return None
    text: str = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    return text if text and _REPLACEMENT not in text else None


def _name(tokenizer: Any, token_id: int) -> str:
    """Return the name of a token that has no text."""
    name = tokenizer.convert_ids_to_tokens([token_id])[0]
    if name is None:
        return f"<id {token_id}>"
    if not all(character in _BYTES for character in name):
        return str(name)
    return bytes(_BYTES[character] for character in name).decode("utf-8", errors="backslashreplace")
