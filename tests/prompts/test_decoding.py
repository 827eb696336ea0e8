"""Decoding tokens: several together, parts of characters, and ids without a token."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from causal_tracer import CausalTracer
from causal_tracer.prompts.decoding import decode_together, token_labels, token_text
from causal_tracer.prompts.prompt import make_prompt
from tests.support.slow_tokenizer import SlowTokenizer
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.tiny_tokenizers import KINDS, tokenizer_of

KIND = pytest.mark.parametrize("kind", KINDS)
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
TEXTS = ["日本", " 日本", "巴黎", "Paris in Rome", "🚀 é", "ปารีส", "e\u0301", "👩‍👩‍👧‍👦", "<eos>"]


def ids_after(tokenizer: Any, text: str) -> list[int]:
    before = tokenizer("Rome")["input_ids"]
    return tokenizer("Rome" + text)["input_ids"][len(before) :]


@KIND
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_of_one_text_are_decoded_together(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind, prefix="never")
    assert decode_together(tokenizer, ids_after(tokenizer, text)) == text


@pytest.mark.parametrize("text", ["Paris in Rome", "日本"])
def test_spaces_between_words_stay_where_the_tokenizer_strips_the_first(text: str) -> None:
    tokenizer = tokenizer_of("metaspace", prefix="first")
    assert decode_together(tokenizer, ids_after(tokenizer, f" {text}")) == text


def test_a_slow_tokenizer_decodes_together() -> None:
    tokenizer = SlowTokenizer()
    assert decode_together(tokenizer, list("日本".encode())) == "日本"
    assert decode_together(tokenizer, list("日".encode())[:2]) == "<230><151>"


def test_bytes_of_an_incomplete_character_are_written_as_numbers() -> None:
    tokenizer = tiny_tokenizer(bos=False)
    ids = tokenizer("🚀 日本")["input_ids"]
    assert decode_together(tokenizer, ids) == "🚀 日本"
    assert decode_together(tokenizer, ids[:-1]) == r"🚀 日\xe6\x9c"
    assert decode_together(tokenizer, ids[1:]) == r"\x9f\x9a\x80 日本"
    assert [token_text(tokenizer, token) for token in ids[:4]] == [r"\xf0", r"\x9f", r"\x9a", r"\x80"]
    assert decode_together(tokenizer, []) == ""


def test_a_token_of_a_space_and_a_part_of_a_character_keeps_the_space() -> None:
    vocab = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab={**vocab, "Ġð": 256}, merges=[("Ġ", "ð")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert tokenizer(" 🚀")["input_ids"][0] == 256
    assert token_text(tokenizer, 256) == r" \xf0"
    assert decode_together(tokenizer, tokenizer(" 🚀")["input_ids"]) == " 🚀"


@KIND
def test_an_id_without_a_token_is_called_by_its_number(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    missing = len(tokenizer) + 7
    assert token_text(tokenizer, missing) == f"<id {missing}>"
    paris = tokenizer.convert_tokens_to_ids("Paris")
    assert decode_together(tokenizer, [paris, missing, paris]) == f"Paris<id {missing}>Paris"
    assert token_labels(tokenizer, [paris, missing], "Paris", [(0, 5), (0, 0)]) == ("Paris", f"<id {missing}>")


@pytest.mark.parametrize("top_tokens", [0, 391])
def test_a_result_never_calls_a_token_none(top_tokens: int) -> None:
    tokenizer = tokenizer_of("unigram")
    tracer = CausalTracer(tiny_model("llama"), tokenizer, noise=0.5)
    flow = tracer.trace("Rome is in", "Rome", answer_id=390, samples=1, top_tokens=top_tokens)
    assert flow.answer == "<id 390>"
    if flow.top_tokens is not None:
        texts = {token.token_id: token.text for token in flow.top_tokens.clean}
        assert texts[390] == "<id 390>"
        assert "None" not in texts.values()
        assert not any(REPLACEMENT in text or not text for text in texts.values())


@KIND
@pytest.mark.parametrize("answer", ["日本", "パリ", "🚀", "Paris in Rome", "ปารีส"])
def test_a_result_shows_an_answer_of_several_tokens_as_it_is_written(kind: str, answer: str) -> None:
    tracer = CausalTracer(tiny_model("llama"), tokenizer_of(kind, prefix="never"), noise=0.5)
    for text in (answer, f" {answer}"):
        flow = tracer.trace("Rome is in", "Rome", answer=text, answer_form="exact", samples=1)
        assert flow.answer == text


@KIND
def test_labels_of_a_prompt_say_which_part_of_a_character_a_token_is(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    prompt = make_prompt(tokenizer, "Rome is 🚀 in", "🚀")
    labels = prompt.tokens[slice(*prompt.subject_range)]
    assert [label for label in labels if label.startswith("🚀[")] == [f"🚀[{n}/4]" for n in (1, 2, 3, 4)]
    assert not any(REPLACEMENT in label or not label for label in prompt.tokens)
