"""Special tokens in and around a prompt: an appended EOS, a BOS given twice, lone surrogates."""

from __future__ import annotations

from typing import Any

import pytest

from causal_tracer import CausalTracer, TraceRequest
from causal_tracer.corruption import CounterfactualSubjects, SubjectsNoise
from causal_tracer.errors import CausalTracerError, PromptError, SubjectError
from causal_tracer.prompts.chat import ChatText, chat_prompt
from causal_tracer.prompts.encoding import encode, encode_with_spans
from causal_tracer.prompts.prompt import make_prompt
from causal_tracer.request.records import OtherPrompt
from tests.support.slow_tokenizer import SlowTokenizer
from tests.support.tiny_models import tiny_model
from tests.support.tiny_tokenizers import BOS, EOS, KINDS, tokenizer_of

KIND = pytest.mark.parametrize("kind", KINDS)
TEXT = "Rome is in"


class AppendingSlowTokenizer(SlowTokenizer):
    """A slow tokenizer that puts a BOS before a text and an EOS after it."""

    def __init__(self) -> None:
        super().__init__(eos_token="<eos>")

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: Any = None) -> list[int]:
        return [self.bos_token_id, *token_ids_0, self.eos_token_id]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return 2


def tokenizers(kind: str) -> tuple[Any, Any]:
    """Two tokenizers: one adds a BOS before a text, the other also adds an EOS after it."""
    if kind == "slow":
        return SlowTokenizer(), AppendingSlowTokenizer()
    return tokenizer_of(kind), tokenizer_of(kind, eos=True)


@pytest.mark.parametrize("kind", [*KINDS, "slow"])
def test_a_prompt_ends_before_an_eos_that_the_tokenizer_appends(kind: str) -> None:
    plain, appending = tokenizers(kind)
    prompt, expected = (make_prompt(of, TEXT, "Rome") for of in (appending, plain))
    assert appending(TEXT)["input_ids"][-1] == appending.eos_token_id
    assert len(prompt) == len(appending(TEXT)["input_ids"]) - 1
    assert prompt.tokens == expected.tokens
    assert prompt.subject_range == expected.subject_range
    assert expected.notes == ()
    (note,) = prompt.notes
    assert EOS in note
    encoded, spans = encode_with_spans(appending, TEXT)
    assert (len(encoded.added), len(encoded.appended)) == (1, 1)
    assert len(spans) == len(encoded.ids)


@pytest.mark.parametrize("kind", [*KINDS, "slow"])
@pytest.mark.parametrize("text", [f"{TEXT}{EOS}", f"{TEXT}{EOS}{EOS}"])
def test_an_eos_that_was_typed_stays(kind: str, text: str) -> None:
    _, appending = tokenizers(kind)
    encoded = encode(appending, text)
    assert encoded.ids[-1] == appending.eos_token_id
    assert encoded.ids.count(appending.eos_token_id) == text.count(EOS)
    assert encoded.appended == (appending.eos_token_id,)


@KIND
@pytest.mark.parametrize("text", [f"{BOS}{TEXT}", f"{BOS}{BOS}{TEXT}", f" {BOS}{TEXT}", f"Paris {BOS}{TEXT}"])
def test_a_bos_in_the_text_is_reported_where_the_tokenizer_adds_one(kind: str, text: str) -> None:
    (note,) = make_prompt(tokenizer_of(kind), text, "Rome").notes
    for word in (BOS, "the tokenizer adds it too", "Remove"):
        assert word in note
    tracer = CausalTracer(tiny_model("llama"), tokenizer_of(kind), noise=0.5)
    assert note in tracer.trace(text, "Rome", samples=1).notes


@KIND
def test_a_bos_in_the_text_is_right_where_the_tokenizer_adds_none(kind: str) -> None:
    assert make_prompt(tokenizer_of(kind, bos=False), f"{BOS}{TEXT}", "Rome").notes == ()
    assert make_prompt(tokenizer_of(kind), TEXT, "Rome").notes == ()


def test_a_bos_in_a_message_is_reported_and_one_of_the_template_is_not() -> None:
    tokenizer = tokenizer_of.__wrapped__("byte-level")
    tokenizer.chat_template = "<bos>{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{% endfor %}\n"
    assert chat_prompt(tokenizer, ChatText.from_user(TEXT), "Rome").notes == ()
    (note,) = chat_prompt(tokenizer, ChatText.from_user(f"{BOS}{TEXT}"), "Rome").notes
    assert "the chat template adds it too" in note


HALF = "\ud83d"
HALVES = {
    "prompt": lambda: TraceRequest(f"Rome {HALF} is in", "Rome"),
    "subject": lambda: TraceRequest(TEXT, f"Rome{HALF}"),
    "answer": lambda: TraceRequest(TEXT, "Rome", answer=HALF),
    "foil": lambda: TraceRequest(TEXT, "Rome", foil=f"x{HALF}", metric="logit difference"),
    "message": lambda: TraceRequest(ChatText.from_user(f"Rome{HALF}")),
    "assistant_prefix": lambda: TraceRequest(ChatText.from_user(TEXT, assistant_prefix=HALF)),
    "counterfactual subject": lambda: TraceRequest(TEXT, "Rome", corruption=CounterfactualSubjects((f"Par{HALF}",))),
    "placebo prompt": lambda: TraceRequest(TEXT, "Rome", placebo=OtherPrompt(f"Paris {HALF}", "Paris")),
}


@pytest.mark.parametrize("where", HALVES)
def test_half_a_character_is_refused_wherever_it_is(where: str) -> None:
    from causal_tracer import MapSpec

    tracer = CausalTracer(tiny_model("llama"), tokenizer_of("byte-level"), noise=0.5)
    subject = where in ("subject", "counterfactual subject")
    with pytest.raises(SubjectError if subject else PromptError, match=r"half a character.*Type or paste it again"):
        tracer.trace_maps(HALVES[where](), {"map": MapSpec(source="placebo" if "placebo" in where else "clean")})


def test_half_a_character_is_refused_among_the_subjects_that_set_the_noise() -> None:
    with pytest.raises(CausalTracerError, match="half a character"):
        CausalTracer(tiny_model("llama"), tokenizer_of("byte-level"), noise=SubjectsNoise((f"Rome{HALF}",)))


@pytest.mark.parametrize("subject", [7, ["Rome"], b"Rome", {"Rome": 1}])
def test_a_subject_of_a_conversation_must_be_a_text(subject: Any) -> None:
    tokenizer = tokenizer_of.__wrapped__("byte-level")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}\n"
    with pytest.raises(SubjectError, match="must be a text"):
        chat_prompt(tokenizer, ChatText.from_user(TEXT), subject)
