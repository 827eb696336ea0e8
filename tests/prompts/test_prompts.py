"""From text and subject to tokens: spans by character offsets in any script, labels, guesses, refusals."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from causal_tracer import guess_subject
from causal_tracer.errors import PromptError, SettingsError, SubjectError, TokenizerError
from causal_tracer.prompts.decoding import token_text
from causal_tracer.prompts.prompt import Prompt, make_prompt
from tests.support.slow_tokenizer import SlowTokenizer
from tests.support.tiny_models import BOS_ID, PROMPT, SUBJECT, tiny_tokenizer, tiny_tracer

BOS = pytest.mark.parametrize("bos", [True, False], ids=["bos", "no bos"])
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def subject_bytes(prompt: Prompt, tokenizer: Any) -> str:
    """The text of all the subject's tokens together."""
    start, end = prompt.subject_range
    return tokenizer.decode(list(prompt.input_ids[start:end]))


CASES = {
    "ascii, start": ("Space Needle is in the city of", "Space Needle"),
    "ascii, middle": (PROMPT, SUBJECT),
    "ascii, end": ("Look: the city of Paris", "Paris"),
    "ascii, whole prompt": ("Space Needle", "Space Needle"),
    "ascii, one letter": ("Look: the city of X is in", "X"),
    "chinese, start": ("東京塔位于", "東京塔"),
    "chinese, middle": ("著名的東京塔位于日本的", "東京塔"),
    "chinese, one character": ("我在京都的", "京"),
    "japanese": ("スティーブ・ジョブズは の創業者", "ジョブズ"),
    "arabic, middle": ("تقع مدينة القاهرة في", "القاهرة"),
    "arabic, end": ("تقع في مدينة القاهرة", "القاهرة"),
    "hebrew": ("העיר תל אביב נמצאת", "תל אביב"),
    "hindi": ("ताज महल भारत में", "ताज महल"),
    "emoji": ("Look: the 🚀 is in the city of", "🚀"),
    "emoji among emoji": ("🎉🚀🎉 is in", "🚀"),
    "joined emoji": ("The 👩‍👩‍👧‍👦 family is in", "👩‍👩‍👧‍👦"),
    "combining accents": ("Le cafe\u0301 de Paris est", "cafe\u0301"),
    "accents": ("La Sagrada Família está en", "Família"),
    "newline inside": ("Look:\nSpace\nNeedle\nis", "Space\nNeedle"),
    "punctuation around": ('Look: "Space Needle", the', "Space Needle"),
    "part of a word": ("The Needlework is in", "Needle"),
}


@BOS
@pytest.mark.parametrize("case", CASES)
def test_subject_tokens_are_exactly_those_that_hold_the_subjects_characters(case: str, bos: bool) -> None:
    text, subject = CASES[case]
    tokenizer = tiny_tokenizer(bos=bos)
    prompt = make_prompt(tokenizer, text, subject)
    start, end = prompt.subject_range
    assert 0 <= start < end <= len(prompt)
    covered = subject_bytes(prompt, tokenizer)
    # A token may include the space before the subject, or text after it. All tokens together must cover the subject,
    # and each of them must be needed.
    assert subject in covered or case == "part of a word"
    if case != "part of a word":
        assert covered.strip() == subject
        fewer = tokenizer.decode(list(prompt.input_ids[start + 1 : end]))
        assert subject not in fewer
    assert prompt.input_ids == tuple(tokenizer(text)["input_ids"])
    assert (prompt.input_ids[0] == BOS_ID) == bos
    assert len(prompt.tokens) == len(prompt.input_ids) == len(prompt)


@BOS
def test_bos_is_never_part_of_the_subject(bos: bool) -> None:
    prompt = make_prompt(tiny_tokenizer(bos=bos), "Space Needle is", "Space Needle")
    assert prompt.subject_range[0] == int(bos)
    assert "<bos>" not in prompt.tokens[slice(*prompt.subject_range)]


def test_the_last_occurrence_is_used_unless_the_first_is_asked_for() -> None:
    text = "Paris is the city of Paris in"
    tokenizer = tiny_tokenizer()
    last, first = (make_prompt(tokenizer, text, "Paris", occurrence=which) for which in ("last", "first"))
    assert last.subject_count == first.subject_count == 2
    assert first.subject_range[0] < last.subject_range[0]
    for prompt in (first, last):
        assert subject_bytes(prompt, tokenizer).strip() == "Paris"
    with pytest.raises(SettingsError, match="'middle'"):
        make_prompt(tokenizer, text, "Paris", occurrence="middle")  # type: ignore[arg-type]


@pytest.mark.parametrize(("occurrence", "word"), [("first", "first"), ("last", "last")])
def test_a_result_says_which_of_two_subjects_was_traced(occurrence: Any, word: str) -> None:
    flow = tiny_tracer("gpt2").calculate_hidden_flow(
        "Paris is the city of Paris in", "Paris", samples=1, occurrence=occurrence
    )
    assert any("2 times" in note and word in note for note in flow.notes)


def test_other_capitals_are_named_in_the_refusal() -> None:
    with pytest.raises(SubjectError) as caught:
        make_prompt(tiny_tokenizer(), PROMPT, "space needle")
    for word in ("'space needle'", "'Space Needle'", "capitals"):
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["İstanbul is a city: PARIS", "ẞtraße and PARIS"])
def test_other_capitals_are_found_after_letters_whose_lower_case_is_longer(text: str) -> None:
    with pytest.raises(SubjectError, match="'PARIS'"):
        make_prompt(tiny_tokenizer(), text, "Paris")


@pytest.mark.parametrize("text", ["", " ", "\n\t ", None, 7])
def test_an_empty_prompt_is_refused(text: Any) -> None:
    with pytest.raises(PromptError, match="empty"):
        make_prompt(tiny_tokenizer(), text, "x")


@pytest.mark.parametrize("subject", ["", "  "])
def test_an_empty_subject_is_refused(subject: str) -> None:
    with pytest.raises(SubjectError, match="empty"):
        make_prompt(tiny_tokenizer(), PROMPT, subject)


@pytest.mark.parametrize("subject", [7, ["Space Needle"], b"Space"])
def test_a_subject_that_is_not_a_text_is_refused(subject: Any) -> None:
    with pytest.raises(SubjectError):
        make_prompt(tiny_tokenizer(), PROMPT, subject)


def test_blanks_around_a_subject_do_not_matter() -> None:
    tokenizer = tiny_tokenizer()
    assert make_prompt(tokenizer, PROMPT, " Space Needle ") == make_prompt(tokenizer, PROMPT, SUBJECT)


def test_a_subject_that_is_not_there_is_refused_with_both_texts() -> None:
    with pytest.raises(SubjectError) as caught:
        make_prompt(tiny_tokenizer(), PROMPT, "Eiffel Tower")
    assert "'Eiffel Tower'" in str(caught.value)
    assert repr(PROMPT) in str(caught.value)


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers() -> None:
    tokenizer = tiny_tokenizer()
    text = "Paris " + "is in the city of " * 20
    n_tokens = len(tokenizer(text)["input_ids"])
    assert len(make_prompt(tokenizer, text, "Paris", context_length=n_tokens)) == n_tokens
    with pytest.raises(PromptError, match=rf"{n_tokens} tokens.*{n_tokens - 1}"):
        make_prompt(tokenizer, text, "Paris", context_length=n_tokens - 1)
    with pytest.raises(PromptError, match="64"):
        tiny_tracer("gpt2").calculate_hidden_flow(text, "Paris", samples=1)


def test_token_ids_that_the_model_does_not_know_are_refused() -> None:
    tokenizer = tiny_tokenizer()
    largest = max(tokenizer(PROMPT)["input_ids"])
    make_prompt(tokenizer, PROMPT, SUBJECT, vocab_size=largest + 1)
    with pytest.raises(PromptError, match=rf"{largest}.*below {largest}.*tokenizer"):
        make_prompt(tokenizer, PROMPT, SUBJECT, vocab_size=largest)


# Labels ---------------------------------------------------------------------------------------------------------------


@BOS
@pytest.mark.parametrize("case", CASES)
def test_labels_are_never_a_replacement_mark(case: str, bos: bool) -> None:
    text, subject = CASES[case]
    prompt = make_prompt(tiny_tokenizer(bos=bos), text, subject)
    for label in prompt.tokens:
        assert label
        assert label.strip("\n ") or label in (" ", "\n")
        assert REPLACEMENT not in label


def test_parts_of_one_character_say_which_part() -> None:
    prompt = make_prompt(tiny_tokenizer(bos=False), "X🚀Y", "🚀")
    assert prompt.tokens == ("X", "🚀[1/4]", "🚀[2/4]", "🚀[3/4]", "🚀[4/4]", "Y")
    assert prompt.subject_range == (1, 5)


def test_parts_of_equal_neighbours_are_counted_separately() -> None:
    prompt = make_prompt(tiny_tokenizer(bos=False), "東東", "東")
    assert prompt.tokens == ("東[1/3]", "東[2/3]", "東[3/3]") * 2
    assert prompt.subject_range == (3, 6)


def test_tokens_of_one_character_can_be_told_apart() -> None:
    prompt = make_prompt(tiny_tokenizer(bos=False), "京東🚀é", "🚀")
    assert max(Counter(prompt.tokens).values()) == 1


def test_a_token_that_ends_within_a_character_still_gets_a_label() -> None:
    """A merge of a blank with the first byte of an emoji: the parts of the emoji have different offsets."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: number for number, symbol in enumerate(alphabet)}
    first_byte = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("🚀")[0][0][0]
    vocab[f"Ġ{first_byte}"] = len(vocab)
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", first_byte)]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    prompt = make_prompt(PreTrainedTokenizerFast(tokenizer_object=inner), "a 🚀 b", "🚀")
    assert len(prompt) == 7
    assert prompt.subject_range == (1, 5)
    assert all(label and REPLACEMENT not in label for label in prompt.tokens)
    assert len(set(prompt.tokens[1:5])) == 4


def test_ascii_labels_are_the_tokens_texts() -> None:
    prompt = make_prompt(tiny_tokenizer(), PROMPT, SUBJECT)
    assert prompt.tokens == ("<bos>", "Look", ":", " the", " Space", " Needle", " is", " in", " the", " city", " of")


def test_the_answer_is_never_a_replacement_mark() -> None:
    """A model may answer with a token that is part of a character."""
    tokenizer = tiny_tokenizer()
    part = tokenizer("🚀")["input_ids"][2]
    assert tokenizer.decode([part]) == REPLACEMENT
    assert REPLACEMENT not in token_text(tokenizer, part)
    flow = tiny_tracer("gpt2").calculate_hidden_flow(PROMPT, SUBJECT, answer_id_override=part, samples=1)
    assert flow.answer
    assert REPLACEMENT not in flow.answer


# Other tokenizers -----------------------------------------------------------------------------------------------------


def test_a_normalizing_word_tokenizer_has_spans_in_the_text_as_given() -> None:
    vocab = {"<unk>": 0, "the": 1, "space": 2, "needle": 3, "is": 4, "in": 5}
    inner = Tokenizer(models.WordLevel(vocab=vocab, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    prompt = make_prompt(tokenizer, "Thé ÉÉÉÉ Space Needle is in", "Space Needle")
    assert prompt.subject_range == (2, 4)
    assert prompt.input_ids == (0, 0, 2, 3, 4, 5) or prompt.input_ids == (1, 0, 2, 3, 4, 5)


def test_a_sentencepiece_like_tokenizer_with_a_space_prefix_has_right_spans() -> None:
    pieces = ["▁", "▁The", "▁Space", "▁Need", "le", "▁is", "▁in", *"TheSpacNdlisn"]
    vocab = [("<unk>", 0.0), *((piece, -float(number)) for number, piece in enumerate(dict.fromkeys(pieces)))]
    inner = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=False))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    inner.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    for text, subject, expected in (
        ("Space Needle is in", "Space Needle", ["▁Space", "▁Need", "le"]),
        ("The Space Needle is", "Space Needle", ["▁Space", "▁Need", "le"]),
        ("The Space Needle", "Needle", ["▁Need", "le"]),
    ):
        prompt = make_prompt(tokenizer, text, subject)
        start, end = prompt.subject_range
        assert tokenizer.convert_ids_to_tokens(list(prompt.input_ids[start:end])) == expected


def test_a_tokenizer_that_makes_no_tokens_is_refused() -> None:
    inner = Tokenizer(models.BPE(vocab={"z": 0}, merges=[]))
    with pytest.raises(PromptError, match="no tokens"):
        make_prompt(PreTrainedTokenizerFast(tokenizer_object=inner), "Paris is", "Paris")


def test_a_tokenizer_that_drops_the_subject_is_refused() -> None:
    inner = Tokenizer(models.WordLevel(vocab={"<unk>": 0}, unk_token="<unk>"))
    inner.normalizer = normalizers.Replace("Paris", "")
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(TokenizerError, match="'Paris'"):
        make_prompt(PreTrainedTokenizerFast(tokenizer_object=inner), "In Paris there is", "Paris")


@pytest.mark.parametrize("case", CASES)
def test_a_slow_tokenizer_has_right_spans_or_is_refused(case: str) -> None:
    text, subject = CASES[case]
    tokenizer = SlowTokenizer()
    assert not tokenizer.is_fast
    prompt = make_prompt(tokenizer, text, subject)
    start, end = prompt.subject_range
    given = [number for number in prompt.input_ids[start:end] if number < 256]
    assert bytes(given).decode("utf-8", errors="replace") == subject
    assert all(label and REPLACEMENT not in label for label in prompt.tokens)


def test_a_slow_tokenizer_that_changes_the_text_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"offsets.*fast"):
        make_prompt(SlowTokenizer(lossy=True), "Look, the Space Needle", "Space Needle")


def test_tokenizers_are_left_as_they_were() -> None:
    tokenizer = tiny_tokenizer()
    before = (tokenizer.pad_token, tokenizer.padding_side, tokenizer.backend_tokenizer.to_str(), len(tokenizer))
    make_prompt(tokenizer, PROMPT, SUBJECT)
    tiny_tracer("gpt2").calculate_hidden_flow(PROMPT, SUBJECT, samples=1)
    assert tokenizer.pad_token is None
    assert (
        tokenizer.pad_token,
        tokenizer.padding_side,
        tokenizer.backend_tokenizer.to_str(),
        len(tokenizer),
    ) == before


# Guessing the subject -------------------------------------------------------------------------------------------------

GUESSES = {
    "The Space Needle is located in the city of": "Space Needle",
    "Steve Jobs was the founder of": "Steve Jobs",
    "Paris is the capital of": "Paris",
    "Where is the Eiffel Tower? It is in": "Eiffel Tower",
    "What is the mother tongue of Danielle Darrieux? It is": "Danielle Darrieux",
    "Who is Ada Lovelace's father?": "Ada Lovelace",
    "When did Marie Curie win": "Marie Curie",
    "In which country is Lake Como? It is in": "Lake Como",
    "The mother tongue of Danielle Darrieux is": "Danielle Darrieux",
    "The headquarters of the company Red Hat is in": "Red Hat",
    "Toyota's founder was": "Toyota",
    "Apple’s most famous product is the": "Apple",
    '"Hey Jude" was written by': "Hey Jude",
    "“Star Wars” was directed by": "Star Wars",
    "The University of Oxford is located in": "University of Oxford",
    "Leonardo da Vinci was born in": "Leonardo da Vinci",
    "Vincent van Gogh died in": "Vincent van Gogh",
    "J. R. R. Tolkien wrote": "J. R. R. Tolkien",
    "Jean-Luc Picard is played by": "Jean-Luc Picard",
    "Windows 95 was developed by": "Windows 95",
    "BMW was founded in": "BMW",
    "In Germany, people speak": "Germany",
    "The official language of Brazil is": "Brazil",
    "Its capital is London, and": "London",
    "A citizen of Norway speaks": "Norway",
    "São Paulo is in the country of": "São Paulo",
    "Москва is the capital of": "Москва",
    "iPhone 3GS is developed by": "iPhone 3GS",
    "2005 Tour de France was won by": "2005 Tour de France",
    "The capital of Kingdom of the Netherlands is": "Kingdom of the Netherlands",
    "Partick Thistle F.C. is based in": "Partick Thistle F.C.",
    "It rained in Rome. Julius Caesar was": "Rome",
}


@pytest.mark.parametrize("text", GUESSES)
def test_guessed_subjects(text: str) -> None:
    guess = guess_subject(text)
    expected = GUESSES[text]
    assert guess in (expected, f"The {expected}"), guess
    assert guess in text


@pytest.mark.parametrize("text", ["the capital of france is", "it is what it is", "1, 2, 3,", "What is it?", "東京塔"])
def test_without_a_capitalised_name_nothing_is_guessed(text: str) -> None:
    with pytest.raises(SubjectError, match="Give the subject"):
        guess_subject(text)


def test_a_guess_is_marked_as_one() -> None:
    assert make_prompt(tiny_tokenizer(), PROMPT.replace("Look: the ", "the "), None).subject_guessed
    assert not make_prompt(tiny_tokenizer(), PROMPT, SUBJECT).subject_guessed
