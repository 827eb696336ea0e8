"""Tokenizers of the three kinds that language models have, small enough for the tiny models, made in memory.

All can encode any text: characters without a token become byte tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.support.tiny_models import VOCAB_SIZE

KINDS = ("byte-level", "metaspace", "unigram")
BOS, EOS, UNK = "<bos>", "<eos>", "<unk>"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_WORDS = ("▁in", "▁of", "▁is", "▁Paris", "▁Rome")
_PIECES = (*"▁PRarismoenf", "巴", "黎", "巴黎", "パ", "リ", "パリ", "日", "本", "日本", "ป", "า", "“", "「", "€")


@functools.cache
def tokenizer_of(kind: str, *, bos: bool = True, eos: bool = False, prefix: str = "first") -> PreTrainedTokenizerFast:
    """A tokenizer of one of `KINDS`.

    Args:
        kind: "byte-level" BPE as GPT-2's, "metaspace" BPE as Llama's, or "unigram" as T5's.
        bos: Whether it puts a BOS before each text.
        eos: Whether it puts an EOS after each text.
        prefix: The prepend scheme of Metaspace: "first" puts a space before the text, "never" does not.
    """
    make = {"byte-level": _byte_level, "metaspace": _metaspace, "unigram": _unigram}[kind]
    inner = make(prefix)
    inner.add_special_tokens([AddedToken(token, special=True) for token in (BOS, EOS)])
    if inner.get_vocab_size() > VOCAB_SIZE:
        raise ValueError(f"The vocabulary has {inner.get_vocab_size()} entries, more than the models' {VOCAB_SIZE}.")
    template = " ".join([*[BOS] * bos, "$A", *[EOS] * eos])
    ids = [(token, inner.token_to_id(token)) for token in (BOS, EOS)]
    inner.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=None if kind == "byte-level" else UNK,
        clean_up_tokenization_spaces=False,
    )


def _byte_level(prefix: str) -> Tokenizer:
    return _byte_level_of((*(word.replace("▁", " ") for word in _WORDS), "Paris", "巴黎", "パリ", "日本"))


def byte_level_tokenizer_of(pieces: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as GPT-2's, without special tokens, in which each of these texts is one token."""
    return PreTrainedTokenizerFast(tokenizer_object=_byte_level_of(pieces), clean_up_tokenization_spaces=False)


def _byte_level_of(pieces: Iterable[str]) -> Tokenizer:
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab = {symbol: number for number, symbol in enumerate(sorted(letters.alphabet()))}
    merges: list[tuple[str, str]] = []
    for text in pieces:
        ((piece, _),) = letters.pre_tokenize_str(text)
        _merge(piece, vocab, merges)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merge(piece: str, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """Make a piece of its characters, from the left."""
    vocab.setdefault(piece[0], len(vocab))
    for end in range(2, len(piece) + 1):
        pair = piece[: end - 1], piece[end - 1]
        vocab.setdefault(pair[1], len(vocab))
        vocab.setdefault(piece[:end], len(vocab))
        if pair not in merges:
            merges.append(pair)


def _metaspace(prefix: str) -> Tokenizer:
    vocab = {token: number for number, token in enumerate([UNK, *_BYTES])}
    merges: list[tuple[str, str]] = []
    for piece in (*_PIECES, *_WORDS, "Paris"):
        _merge(piece, vocab, merges)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=UNK, byte_fallback=True, fuse_unk=True))
    return _with_metaspace(tokenizer, prefix)


def _unigram(prefix: str) -> Tokenizer:
    pieces = dict.fromkeys([*_WORDS, "Paris", *_PIECES])
    # Longer pieces are more probable than the characters that they are made of.
    scored = [(piece, -4.0 - 0.1 * number) for number, piece in enumerate(pieces)]
    tokenizer = Tokenizer(
        models.Unigram([(UNK, -20.0), *((byte, -15.0) for byte in _BYTES), *scored], unk_id=0, byte_fallback=True)
    )
    return _with_metaspace(tokenizer, prefix)


def _with_metaspace(tokenizer: Tokenizer, prefix: str) -> Tokenizer:
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix == "first":
        parts.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def word_level_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that knows these words only, and has <unk> for all others."""
    vocab = {word: number for number, word in enumerate([UNK, *words])}
    inner = Tokenizer(models.WordLevel(vocab=vocab, unk_token=UNK))
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=UNK)
