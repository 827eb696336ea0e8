"""Finding subjects in other Unicode normal forms, and counting all their occurrences."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from causal_tracer.errors import SubjectError, TokenizerError
from causal_tracer.prompts.chat import ChatText, chat_prompt
from causal_tracer.prompts.prompt import make_prompt
from causal_tracer.prompts.subject import occurrences
from causal_tracer.study.facts import facts_from_records
from tests.support.slow_tokenizer import SlowTokenizer
from tests.support.tiny_tokenizers import KINDS, tokenizer_of

KIND = pytest.mark.parametrize("kind", KINDS)
SUBJECTS = ["São Paulo", "Đà Nẵng", "Zürich", "서울", "Ångström", "ガンダム", "q\u0323\u0307", "é", "दिल्ली", "ﬁ-é"]


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@KIND
@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize(("of_prompt", "of_subject"), [(nfc, nfd), (nfd, nfc), (nfc, nfc), (nfd, nfd)])
def test_a_subject_is_found_in_another_normalisation(kind: str, subject: str, of_prompt: Any, of_subject: Any) -> None:
    text = of_prompt(f"Où est {subject} dans le monde")
    prompt = make_prompt(tokenizer_of(kind), text, of_subject(subject))
    assert prompt.subject == of_prompt(subject)
    assert text[prompt.subject_start :].startswith(prompt.subject)
    assert prompt == make_prompt(tokenizer_of(kind), text, of_prompt(subject))


def test_marks_in_another_order_are_found() -> None:
    text = "a q\u0307\u0323 b"
    assert occurrences(text, "q\u0323\u0307") == ((2, 5),)


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("caf\u00e9", "cafe\u0300"),
        ("q\u0323\u0307", "q\u0307"),
        ("\u00e9", "\u0301"),
        ("\u1ebf", "\u00ea"),
        ("가각", "\u1100\u1161\u11a9"),
    ],
)
def test_parts_of_characters_are_not_found(text: str, subject: str) -> None:
    assert occurrences(text, subject) == ()


def test_places_that_overlap_are_all_found() -> None:
    assert occurrences("aXaXa", "aXa") == ((0, 3), (2, 5))
    assert occurrences("aXaXa", "aXa", 1) == ((2, 5),)
    prompt = make_prompt(tokenizer_of("byte-level"), "Rome, aXaXa", "aXa")
    assert prompt.subject_count == 2
    assert prompt.subject_start == 8


@pytest.mark.parametrize(("of_text", "of_subject"), [(nfc, nfd), (nfd, nfc)])
def test_conversations_and_facts_find_it_too(of_text: Any, of_subject: Any) -> None:
    tokenizer = tokenizer_of.__wrapped__("byte-level")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    text, subject = of_text("Where is Zürich?"), of_subject("Zürich")
    prompt = chat_prompt(tokenizer, ChatText.from_user(text), subject)
    assert prompt.subject == of_text("Zürich")
    (fact,) = facts_from_records([{"prompt": text, "subject": subject, "attribute": "x", "relation": "r"}])
    assert fact.subject == subject
    with pytest.raises(SubjectError, match="is in no message"):
        chat_prompt(tokenizer, ChatText.from_user(text), "Zurich")


@pytest.mark.parametrize("normalizer", [normalizers.NFC(), normalizers.NFD(), normalizers.NFKC()])
@pytest.mark.parametrize("of_text", [nfc, nfd])
@pytest.mark.parametrize("of_subject", [nfc, nfd])
def test_a_tokenizer_that_normalises_has_spans_in_the_text_as_given(
    normalizer: Any, of_text: Any, of_subject: Any
) -> None:
    inner = Tokenizer(models.WordLevel(vocab={"<unk>": 0, "ist": 1}, unk_token="<unk>"))
    inner.normalizer = normalizer
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    prompt = make_prompt(tokenizer, of_text("Über Zürich ist é"), of_subject("Zürich"))
    assert prompt.subject_range == (1, 2)
    assert prompt.subject == of_text("Zürich")


class NormalisingSlowTokenizer(SlowTokenizer):
    """A slow tokenizer that writes all text in NFC."""

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return super()._tokenize(nfc(text))


def test_a_tokenizer_without_offsets_that_normalises_names_the_normalisation() -> None:
    with pytest.raises(TokenizerError, match=r"NFC.*unicodedata.normalize"):
        make_prompt(NormalisingSlowTokenizer(), nfd("Über Zürich ist"), nfd("Zürich"))
    assert make_prompt(NormalisingSlowTokenizer(), nfc("Über Zürich ist"), nfd("Zürich")).subject == nfc("Zürich")
