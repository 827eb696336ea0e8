"""Answers given as text are tokenized as continuations of the prompt, in any script and by any tokenizer."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from causal_tracer import CausalTracer, TraceRequest
from causal_tracer.errors import PromptError, SettingsError, TokenizerError
from causal_tracer.experiment.answers import resolve_answer
from causal_tracer.experiment.set_up import prompt_for
from causal_tracer.prompts.answer_forms import Continuation, choose_form, choose_matching_form, continuations
from causal_tracer.prompts.chat import ChatText, chat_prompt
from causal_tracer.prompts.prompt import Prompt, make_prompt
from causal_tracer.study.facts import facts_from_records, predict_facts
from tests.support.real_models import GEMMA, SMOLLM, real_tracer
from tests.support.tiny_models import VOCAB_SIZE, build_tiny_model
from tests.support.tiny_tokenizers import BOS, EOS, KINDS, tokenizer_of, word_level_tokenizer

KIND = pytest.mark.parametrize("kind", KINDS)
PREFIX = pytest.mark.parametrize("prefix", ["first", "never"])
OPENINGS = [*"([{<$£€¥₹#@*_/=-\"'`“„«‹‘‚「『【《（［｛＂¿¡…—", *"in is 7 是 は คือ في है ist:".split()]
ANSWERS = [*"Paris 巴黎 パリ 日本 ปารีส باريس पेरिस Париж 42 é 🚀".split(), "Paris in Rome", "e\u0301"]
ROLE_MARKER = "{% for m in messages %}<bos>{{ m['role'] }}:{{ m['content'] }}<eos>{% endfor %}assistant{{ ending }}"


def forms_of(tokenizer: Any, prompt: Prompt, text: str, **options: Any) -> dict[str, tuple[int, ...]]:
    return {form.text: form.ids for form in continuations(tokenizer, prompt, text, **options)}


# The tokens of each form --------------------------------------------------------------------------------------------


@KIND
@PREFIX
@pytest.mark.parametrize("opening", OPENINGS)
def test_an_answer_is_possible_right_after_the_prompt_and_after_a_space(kind: str, prefix: str, opening: str) -> None:
    tokenizer = tokenizer_of(kind, prefix=prefix)
    prompt = make_prompt(tokenizer, f"Paris is {opening}", "Paris")
    for answer in ANSWERS:
        forms = forms_of(tokenizer, prompt, answer)
        assert list(forms) == [answer, f" {answer}"]
        for text, ids in forms.items():
            assert list(prompt.input_ids + ids) == tokenizer(prompt.text + text)["input_ids"]
            assert tokenizer.decode([*prompt.input_ids, *ids], skip_special_tokens=True) == prompt.text + text


@KIND
@pytest.mark.parametrize("ending", ["\n", "\n\n", "\t", "\u3000", "\u00a0", "\r\n"])
def test_after_a_blank_an_answer_gets_no_space(kind: str, ending: str) -> None:
    tokenizer = tokenizer_of(kind)
    prompt = make_prompt(tokenizer, f"Paris is:{ending}", "Paris")
    for answer in ANSWERS:
        assert list(forms_of(tokenizer, prompt, answer)) == [answer]


@KIND
@pytest.mark.parametrize("answer", [" Paris", "\nParis", " 巴黎", "\u3000巴黎"])
def test_an_answer_that_begins_with_a_blank_is_taken_as_it_is(kind: str, answer: str) -> None:
    tokenizer = tokenizer_of(kind)
    assert list(forms_of(tokenizer, make_prompt(tokenizer, "Rome is", "Rome"), answer)) == [answer]


@KIND
@pytest.mark.parametrize("opening", ["(", "in", "は"])
def test_exact_leaves_the_form_that_is_written(kind: str, opening: str) -> None:
    tokenizer = tokenizer_of(kind)
    prompt = make_prompt(tokenizer, f"Paris is {opening}", "Paris")
    for answer in ANSWERS:
        assert list(forms_of(tokenizer, prompt, answer, form="exact")) == [answer]


@KIND
@PREFIX
@pytest.mark.parametrize("ending", ["", "\n", ":"])
def test_answers_follow_the_role_marker_of_a_chat(kind: str, prefix: str, ending: str) -> None:
    tokenizer = tokenizer_of.__wrapped__(kind, prefix=prefix)
    tokenizer.chat_template = ROLE_MARKER.replace("ending", repr(ending))
    prompt = chat_prompt(tokenizer, ChatText.from_user("Where is Paris?"), "Paris")
    for answer in ANSWERS:
        forms = forms_of(tokenizer, prompt, answer)
        assert list(forms) == [answer] if ending == "\n" else [answer, f" {answer}"]
        for text, ids in forms.items():
            assert list(prompt.input_ids + ids) == tokenizer(prompt.text + text, add_special_tokens=False)["input_ids"]


@KIND
@pytest.mark.parametrize("opening", ["(", "in", "は", "\n", EOS])
@pytest.mark.parametrize("token", [EOS, BOS])
def test_a_special_token_is_an_answer_of_one_token(kind: str, opening: str, token: str) -> None:
    tokenizer = tokenizer_of(kind)
    prompt = make_prompt(tokenizer, f"Paris is {opening}", "Paris")
    assert forms_of(tokenizer, prompt, token) == {token: (tokenizer.convert_tokens_to_ids(token),)}


@KIND
def test_an_eos_that_the_tokenizer_appends_is_no_part_of_an_answer(kind: str) -> None:
    plain, appending = tokenizer_of(kind), tokenizer_of(kind, eos=True)
    for answer in [*ANSWERS, EOS]:
        expected = forms_of(plain, make_prompt(plain, "Paris is (", "Paris"), answer)
        assert forms_of(appending, make_prompt(appending, "Paris is (", "Paris"), answer) == expected


@KIND
def test_an_answer_can_follow_an_earlier_token(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    prompt = make_prompt(tokenizer, "Paris is in Rome", "Paris")
    shorter = make_prompt(tokenizer, "Paris is in", "Paris")
    assert prompt.input_ids[: len(shorter)] == shorter.input_ids
    assert continuations(tokenizer, prompt, "Rome", read=len(shorter) - 1) == continuations(tokenizer, shorter, "Rome")


def test_a_form_that_changes_the_prompts_tokens_is_not_possible() -> None:
    tokenizer = tokenizer_of("byte-level")
    # " P" and "aris" are merged, and so are a space and "Paris".
    assert list(forms_of(tokenizer, make_prompt(tokenizer, "Rome is P", "Rome"), "aris")) == [" aris"]
    prompt = make_prompt(tokenizer, "Rome is ", "Rome")
    with pytest.raises(PromptError, match=r"'Paris'.*'Rome is '.*before its last space.*answer_id"):
        continuations(tokenizer, prompt, "Paris")


def test_a_reader_is_told_when_only_the_form_with_a_space_is_possible_after_a_mark() -> None:
    characters = {character: number for number, character in enumerate("Rome(P ")}
    inner = Tokenizer(models.BPE(vocab={**characters, "(P": 7}, merges=[("(", "P")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    (form,) = continuations(tokenizer, make_prompt(tokenizer, "Rome (", "Rome"), "P")
    assert form.text == " P"
    assert "with a space" in form.note


def test_characters_that_the_tokenizer_does_not_know_are_refused() -> None:
    tokenizer = word_level_tokenizer(["Rome", "is", "Paris"])
    prompt = make_prompt(tokenizer, "Rome is", "Rome")
    assert len(forms_of(tokenizer, prompt, "Paris")) == 1
    with pytest.raises(PromptError, match=r"'巴黎'.*does not know.*<unk>"):
        continuations(tokenizer, prompt, "巴黎")


@pytest.mark.parametrize("answer", ["", " ", "\n", 7, ["Paris"], b"Paris", "Par\ud800is", "\udfff"])
@pytest.mark.parametrize("field", ["answer", "foil"])
def test_what_is_no_text_is_refused_as_an_answer_and_as_a_foil(field: str, answer: Any) -> None:
    with pytest.raises(PromptError, match=field):
        tracer("byte-level").trace("Paris is in", "Paris", samples=1, **{field: answer})


def test_forms_that_are_not_known_are_refused() -> None:
    with pytest.raises(SettingsError, match="answer_form='spaced'"):
        TraceRequest("Paris is in", answer="Rome", answer_form="spaced")  # type: ignore[arg-type]


@pytest.mark.parametrize("tokenizer", [None, "gpt2", 7])
def test_what_is_no_tokenizer_is_refused(tokenizer: Any) -> None:
    with pytest.raises(TokenizerError, match="must be a Hugging Face tokenizer"):
        make_prompt(tokenizer, "Paris is in", "Paris")


# The more probable form ---------------------------------------------------------------------------------------------


def logits_table(seed: int) -> Any:
    """Return made-up logits after some tokens [tokens + 1, vocabulary]."""

    @cache
    def row(before: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((seed, before)) % 2**31)
        return torch.randn(12, generator=generator) * 3

    def logits_after(forced: tuple[int, ...]) -> Tensor:
        calls.append(forced)
        return torch.stack([row(forced[:n]) for n in range(len(forced) + 1)])

    calls: list[tuple[int, ...]] = []
    return logits_after, calls


def whole_probability(logits_after: Any, ids: tuple[int, ...]) -> float:
    steps = logits_after(ids[:-1]).double().softmax(dim=-1)
    return float(torch.stack([steps[i, token] for i, token in enumerate(ids)]).prod())


@pytest.mark.parametrize("seed", range(60))
def test_the_form_of_the_higher_probability_of_all_its_tokens_is_chosen_with_one_run_more_at_most(seed: int) -> None:
    draw = random.Random(seed)
    forms = [
        Continuation(text, tuple(draw.randrange(12) for _ in range(draw.randint(1, 3)))) for text in ("Rome", " Rome")
    ]
    logits_after, calls = logits_table(seed)
    chosen = choose_form(forms, logits_after)
    made = len(calls)
    best = max(forms, key=lambda form: whole_probability(logits_after, form.ids))
    assert (chosen.text, chosen.ids) == (best.text, best.ids)
    assert made <= 2
    if chosen.text == "Rome":
        assert f"P('Rome') = {whole_probability(logits_after, chosen.ids):.2g}" in chosen.note
        assert "without a space" in chosen.note


def test_runs_are_spared_where_one_first_token_settles_it() -> None:
    logits = torch.full((1, 5), -10.0)
    logits[0, 1] = 0.0
    calls = []

    def logits_after(forced: tuple[int, ...]) -> Tensor:
        calls.append(forced)
        return logits

    forms = (Continuation("Rome", (2, 3, 4)), Continuation(" Rome", (1,)))
    assert choose_form(forms, logits_after) == forms[1]
    assert calls == [()]
    assert choose_form(forms[:1], logits_after) == forms[0]
    assert calls == [()]


def test_long_answers_are_compared_where_their_probabilities_are_too_small_for_a_number() -> None:
    steps = torch.zeros(401, 4)
    steps[:, 0] = -40.0
    steps[200:, 1] = 1.0
    forms = (Continuation("x", (0,) * 300 + (1,)), Continuation(" x", (0,) * 301))
    assert choose_form(forms, lambda forced: steps[: len(forced) + 1]).text == "x"


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_the_usual_form_is_noted_only_where_the_other_comes_near(share: float) -> None:
    logits = torch.tensor([[1.0, share]]).log()
    forms = (Continuation("Rome", (1,)), Continuation(" Rome", (0,)))
    assert bool(choose_form(forms, lambda _forced: logits).note) == (share > 0.1)


def test_a_foil_begins_as_its_answer_does() -> None:
    forms = (Continuation("Rome", (1,)), Continuation(" Rome", (2,)))
    assert choose_matching_form(forms, Continuation(" Paris", (3,))).ids == (2,)
    assert choose_matching_form(forms, Continuation("Paris", (4,))).ids == (1,)
    assert choose_matching_form(forms[1:], Continuation("Paris", (4,))).ids == (2,)


# The smallest trace that reads an answer: its map has one cell.
ONE_CELL: dict[str, Any] = {"samples": 1, "positions": (0,), "end_layer": 1}


# On models ----------------------------------------------------------------------------------------------------------


@cache
def tracer(kind: str, spaced: float = 0.0, **options: Any) -> CausalTracer:
    """A tiny model with raised logits of tokens that begin with a space."""
    tokenizer = tokenizer_of(kind, **options)
    model = build_tiny_model("llama")
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    raised = [number for number, name in enumerate(names) if name and name[0] in "▁Ġ"]
    bias = torch.zeros(VOCAB_SIZE)
    bias[raised] = spaced
    model.lm_head.bias = torch.nn.Parameter(bias)
    return CausalTracer(model, tokenizer, noise=0.5)


def by_hand(of: CausalTracer, prompt: str, answer: str) -> tuple[float, tuple[int, ...]]:
    """Return the log-probability of the whole answer, and its tokens."""
    before = of.tokenizer(prompt)["input_ids"]
    ids = of.tokenizer(prompt + answer)["input_ids"]
    assert ids[: len(before)] == before
    with torch.no_grad():
        logs = of.model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    return sum(float(logs[n - 1, ids[n]]) for n in range(len(before), len(ids))), tuple(ids[len(before) :])


@pytest.mark.slow
@KIND
@pytest.mark.parametrize("spaced", [-20.0, 0.0, 20.0])
@pytest.mark.parametrize("opening", ["(", "in", "は", "“", "€"])
def test_a_trace_reads_the_form_that_the_model_finds_more_probable(kind: str, spaced: float, opening: str) -> None:
    of, text = tracer(kind, spaced), f"Rome is {opening}"
    for answer in ("Paris", "巴黎", "日本", "42"):
        forms = {form: by_hand(of, text, form) for form in (answer, f" {answer}")}
        (joint, ids), written = max((found, form) for form, found in forms.items())
        flow = of.trace(text, "Rome", answer=answer, **ONE_CELL)
        assert flow.answer_ids == ids
        assert flow.high_score == pytest.approx(torch.tensor(joint).exp().item(), rel=1e-4)
        if written == answer:
            assert any("without a space" in note and repr(answer) in note for note in flow.notes)
        for form in forms:
            exact = of.trace(text, "Rome", answer=form, answer_form="exact", **ONE_CELL)
            assert exact.answer_ids == forms[form][1]
            assert not exact.notes or "space" not in " ".join(exact.notes)
        if spaced and answer == "Paris":
            assert flow.answer_ids == forms[f" {answer}" if spaced > 0 else answer][1]


@KIND
def test_the_foil_is_read_in_the_form_of_the_answer(kind: str) -> None:
    for spaced in (-20.0, 20.0):
        of = tracer(kind, spaced)
        request = TraceRequest("Rome is (", "Rome", foil="日本", metric="logit difference", samples=1)
        prompt = prompt_for(of.context, "Rome is (", "Rome")
        forms = forms_of(of.tokenizer, prompt, "日本")
        for answer in ("Paris", " Paris"):
            form = "exact" if answer == "Paris" else "auto"
            asked = resolve_answer(of.context, replace(request, answer=answer, answer_form=form), prompt)
            assert asked.foil_id == forms["日本" if answer == "Paris" else " 日本"][0]
        own = resolve_answer(of.context, request, prompt)
        likelier = max(("日本", " 日本"), key=lambda form: by_hand(of, prompt.text, form))
        assert own.foil_id == forms[likelier][0]


@KIND
def test_an_answer_to_an_earlier_position_is_read_there(kind: str) -> None:
    of = tracer(kind, 20.0)
    text, before = "Rome is in Paris of", "Rome is in Paris"
    read = len(of.tokenizer(before)["input_ids"]) - 1
    flow = of.trace(text, "Rome", answer="Rome", read=read, samples=1)
    joint, ids = by_hand(of, before, " Rome")
    assert flow.answer_ids == ids
    assert flow.high_score == pytest.approx(torch.tensor(joint).exp().item(), rel=1e-4)
    with pytest.raises(SettingsError, match="several tokens can be read after the whole prompt only"):
        of.trace(text, "Rome", answer="42", answer_form="exact", read=read, samples=1)


def test_an_answer_beyond_the_context_is_refused() -> None:
    of = tracer("byte-level")
    text = "Rome" + " is" * 60
    with pytest.raises(PromptError, match="takes at most 64"):
        of.trace(text, "Rome", answer="ปารีส", samples=1)


@KIND
def test_an_appended_eos_changes_no_number(kind: str) -> None:
    plain, appending = tracer(kind), tracer(kind, eos=True)
    for answer in (None, "Paris", EOS):
        request = TraceRequest("Rome is in", "Rome", answer=answer, samples=2)
        one, other = plain.trace(request), appending.trace(request)
        torch.testing.assert_close(one.scores, other.scores, atol=0, rtol=0)
        assert one.input_tokens == other.input_tokens
        assert one.answer_ids == other.answer_ids
        assert any(EOS in note and "adds" in note for note in other.notes)


@pytest.mark.slow
@KIND
def test_a_study_knows_facts_by_the_form_that_the_model_finds_more_probable(kind: str) -> None:
    for spaced in (-20.0, 0.0, 20.0):
        of = tracer(kind, spaced)
        records = [
            {"prompt": f"Rome is {opening}", "subject": "Rome", "attribute": answer, "relation": "x"}
            for opening in ("(", "in", "「", "“")
            for answer in ("Paris", "巴黎", "日本", "42")
        ]
        answers, refused = predict_facts(of.context, facts_from_records(records))
        assert not refused
        own = {prompt: of.trace(prompt, "Rome", **ONE_CELL) for prompt in {record["prompt"] for record in records}}
        for found in answers:
            fact = found.fact
            flow = of.trace(fact.prompt, fact.subject, answer=fact.attribute, **ONE_CELL)
            assert found.answer_ids == flow.answer_ids
            assert found.known == (own[fact.prompt].answer_id == flow.answer_ids[0])


# Gemma --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gemma() -> CausalTracer:
    return real_tracer(GEMMA)


READ_BY_GEMMA = [
    # Prompt, subject, answer, the text that is read, its probability.
    ("The Space Needle is located in the city of", "Space Needle", "Seattle", " Seattle", 0.4722),
    ("The capital of France (", "France", "Paris", "Paris", 0.3511),
    ("The capital of France (", "France", " Paris", " Paris", 0.00089),
    ('The capital of France is "', "France", "Paris", "Paris", 0.0477),
    ("The capital of France is “", "France", "Paris", "Paris", 0.0320),
    ("The capital of France costs $", "France", "100", "100", 0.0140),
    ("法国的首都是", "法国", "巴黎", "巴黎", 0.0344),
    ("フランスの首都は", "フランス", "パリ", "パリ", 0.2416),
    ("フランスの首都は「", "フランス", "パリ", "パリ", 0.1576),
    ("เมืองหลวงของฝรั่งเศสคือ", "ฝรั่งเศส", "ปารีส", "ปารีส", 0.00187),
    ("The capital of France is\n", "France", "Paris", "Paris", 0.00967),
]


@pytest.mark.parametrize(("text", "subject", "answer", "read", "probability"), READ_BY_GEMMA)
def test_gemma_reads_answers_as_it_would_say_them(
    gemma: CausalTracer, text: str, subject: str, answer: str, read: str, probability: float
) -> None:
    prompt = prompt_for(gemma.context, text, subject)
    asked = resolve_answer(gemma.context, TraceRequest(text, subject, answer=answer), prompt)
    assert gemma.tokenizer.decode(list(asked.ids)) == read
    assert asked.probability == pytest.approx(probability, rel=0.02)
    found, _ = by_hand(gemma, text, read)
    assert asked.probability == pytest.approx(torch.tensor(found).exp().item(), rel=1e-3)


@pytest.mark.model
def test_a_chat_model_answers_after_its_role_marker() -> None:
    of = real_tracer(SMOLLM)
    chat = ChatText.from_user("What is the capital of France? Answer with one word.")
    prompt = prompt_for(of.context, chat, "France")
    asked = resolve_answer(of.context, TraceRequest(chat, "France", answer="Paris"), prompt)
    assert asked.probability > 0.05
    assert of.tokenizer.decode(list(asked.ids)) == "Paris"


def test_gemma_knows_facts_after_brackets_and_in_japanese(gemma: CausalTracer) -> None:
    records = [
        {"prompt": "The capital of France (", "subject": "France", "attribute": "Paris", "relation": "capital"},
        {"prompt": "フランスの首都は「", "subject": "フランス", "attribute": "パリ", "relation": "capital"},
    ]
    answers, _ = predict_facts(gemma.context, facts_from_records(records))
    assert [found.known for found in answers] == [True, True]
