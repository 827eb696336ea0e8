"""Conversations: token ids equal the chat template's, and the subject is found in the messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from causal_tracer import CausalTracer
from causal_tracer.corruption import CounterfactualSubjects
from causal_tracer.errors import PromptError, SettingsError, SubjectError, TokenizerError
from causal_tracer.loading.embedded import embedded_model_folder
from causal_tracer.prompts.chat import ChatText, chat_prompt, has_chat_template, has_thinking_switch
from tests.support.chat_templates import PLAIN, TRIMMED, with_template
from tests.support.hand_hooks import last_probabilities, map_by_hand
from tests.support.slow_tokenizer import SlowTokenizer
from tests.support.tiny_models import BOS_ID, tiny_model, tiny_tokenizer

QUESTION = [{"role": "user", "content": "Where is the Space Needle?"}]
CONVERSATION = [
    {"role": "system", "content": "Answer like Steve Jobs."},
    {"role": "user", "content": "Is Paris in France?"},
    {"role": "assistant", "content": "Paris is."},
    {"role": "user", "content": "And the Space Needle?"},
]

# The system message is put before the last message, as in Mistral's templates.
MOVED = (
    "{{ bos_token }}{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}>"
    "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n{% endif %}"
    "{{ m['content'] }}{% endfor %}<assistant>"
)
THINKING = PLAIN.replace(
    "[assistant]\n{% endif %}",
    "[assistant]\n{% if enable_thinking is defined and not enable_thinking %}<think>\n</think>\n{% endif %}{% endif %}",
)
# The thoughts of earlier turns are left out, as in the templates of reasoning models.
FORGETFUL = PLAIN.replace("m['content']", "m['content'].split('</think>')[-1]")
CHOOSY = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN


@pytest.fixture(scope="module")
def smollm() -> Any:
    return AutoTokenizer.from_pretrained(embedded_model_folder("embedded:smollm2-135m-instruct"))


def template_ids(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> tuple[int, ...]:
    """The token ids that transformers makes of the conversation in one step."""
    options = {"add_generation_prompt": True, **options}
    return tuple(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"])


def subject_text(tokenizer: Any, prompt: Any) -> str:
    start, end = prompt.subject_range
    text: str = tokenizer.decode(prompt.input_ids[start:end])
    return text.strip()


# Token ids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", [QUESTION, CONVERSATION])
def test_token_ids_are_the_templates_on_a_real_chat_model(smollm: Any, messages: list[dict[str, str]]) -> None:
    prompt = chat_prompt(smollm, messages, "Space Needle")
    assert prompt.input_ids == template_ids(smollm, messages)
    assert subject_text(smollm, prompt) == "Space Needle"
    assert prompt.text == smollm.decode(prompt.input_ids)


def test_a_prefix_continues_the_assistants_turn_as_transformers_does(smollm: Any) -> None:
    prompt = chat_prompt(smollm, QUESTION, "Space Needle", assistant_prefix="It is in the city of")
    turns = [*QUESTION, {"role": "assistant", "content": "It is in the city of"}]
    assert prompt.input_ids == template_ids(smollm, turns, add_generation_prompt=False, continue_final_message=True)
    assert prompt.tokens[-1] == " of"


@pytest.mark.parametrize("template", [PLAIN, TRIMMED, MOVED, THINKING, FORGETFUL])
@pytest.mark.parametrize("messages", [QUESTION, CONVERSATION])
def test_there_is_one_bos_if_both_the_template_and_the_tokenizer_add_one(
    template: str, messages: list[dict[str, str]]
) -> None:
    tokenizer = with_template(template)
    prompt = chat_prompt(tokenizer, messages, "Space Needle")
    assert prompt.input_ids == template_ids(tokenizer, messages)
    assert prompt.input_ids.count(BOS_ID) == 1
    assert not prompt.special_tokens
    assert tokenizer(prompt.text).input_ids.count(BOS_ID) == 2  # the trap is there


# Thinking -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking"])
@pytest.mark.parametrize("thinking", [True, False])
def test_thinking_is_switched_where_the_template_can(switch: str, thinking: bool) -> None:
    tokenizer = with_template(THINKING.replace("enable_thinking", switch))
    assert has_thinking_switch(tokenizer)
    prompt = chat_prompt(tokenizer, QUESTION, "Space Needle", thinking=thinking)
    assert prompt.input_ids == template_ids(tokenizer, QUESTION, **{switch: thinking})
    assert prompt.text.endswith("</think>\n") is not thinking


def test_thinking_none_is_the_templates_default() -> None:
    tokenizer = with_template(THINKING)
    assert chat_prompt(tokenizer, QUESTION).input_ids == template_ids(tokenizer, QUESTION)


def test_thinking_is_refused_where_the_template_has_no_switch() -> None:
    tokenizer = with_template(PLAIN)
    assert not has_thinking_switch(tokenizer)
    for thinking in (True, False):
        with pytest.raises(SettingsError, match="no such switch"):
            chat_prompt(tokenizer, QUESTION, thinking=thinking)


def test_thoughts_can_stand_in_the_prefix() -> None:
    tokenizer = with_template(THINKING)
    thoughts = "<think>\nSeattle?</think>\nIt is in"
    prompt = chat_prompt(tokenizer, QUESTION, "Space Needle", thinking=True, assistant_prefix=thoughts)
    assert prompt.text.endswith("[assistant]\n" + thoughts)


# The subject ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [PLAIN, TRIMMED, MOVED, THINKING, FORGETFUL])
@pytest.mark.parametrize("subject", ["Space Needle", "Paris", "Steve Jobs"])
def test_the_span_covers_the_subject_in_the_message_that_has_it(template: str, subject: str) -> None:
    tokenizer = with_template(template)
    prompt = chat_prompt(tokenizer, CONVERSATION, subject)
    assert subject_text(tokenizer, prompt) == subject
    assert prompt.text[prompt.subject_start :].startswith(subject)


def test_a_tokenizer_without_offsets_finds_the_subject_too() -> None:
    tokenizer = SlowTokenizer(chat_template=PLAIN.replace("{{ bos_token }}", ""))
    prompt = chat_prompt(tokenizer, CONVERSATION, "Space Needle")
    assert prompt.input_ids == template_ids(tokenizer, CONVERSATION)
    assert subject_text(tokenizer, prompt) == "Space Needle"


def test_text_of_the_template_cannot_be_the_subject() -> None:
    tokenizer = with_template(PLAIN)
    with pytest.raises(SubjectError, match="chat template adds"):
        chat_prompt(tokenizer, QUESTION, "user")
    said = [{"role": "user", "content": "Is a user in Paris?"}]
    prompt = chat_prompt(tokenizer, said, "user")
    assert prompt.subject_count == 1
    assert prompt.subject_start == prompt.text.index("user in Paris")


def test_the_templates_own_system_message_is_neither_guessed_nor_taken(smollm: Any) -> None:
    assert "SmolLM" in chat_prompt(smollm, QUESTION).text
    assert chat_prompt(smollm, QUESTION).subject == "Space Needle"
    with pytest.raises(SubjectError, match="chat template adds"):
        chat_prompt(smollm, QUESTION, "SmolLM")
    with pytest.raises(SubjectError, match="no message"):
        chat_prompt(smollm, QUESTION, "Eiffel Tower")


def test_the_first_and_the_last_occurrence_in_all_messages() -> None:
    tokenizer = with_template(PLAIN)
    last = chat_prompt(tokenizer, CONVERSATION, "Paris", assistant_prefix="Paris and")
    first = chat_prompt(tokenizer, CONVERSATION, "Paris", assistant_prefix="Paris and", occurrence="first")
    assert (last.subject_count, first.subject_count) == (3, 3)
    assert last.text[last.subject_start :] == "Paris and"
    assert first.text[first.subject_start :].startswith("Paris in France?")
    with pytest.raises(SettingsError, match="occurrence"):
        chat_prompt(tokenizer, CONVERSATION, "Paris", occurrence="second")  # type: ignore[arg-type]


def test_a_subject_is_guessed_from_the_users_last_message_that_has_one() -> None:
    tokenizer = with_template(PLAIN)
    guessed = chat_prompt(tokenizer, CONVERSATION)
    assert (guessed.subject, guessed.subject_guessed) == ("Space Needle", True)
    thanks = [*CONVERSATION[:3], {"role": "user", "content": "and its river?"}]
    assert chat_prompt(tokenizer, thanks).subject == "Paris"
    blank = [{"role": "user", "content": "go on"}]
    assert chat_prompt(tokenizer, blank, assistant_prefix="The capital of France is").subject == "France"
    with pytest.raises(SubjectError, match="No subject could be guessed"):
        chat_prompt(tokenizer, blank)
    assert not chat_prompt(tokenizer, CONVERSATION, "Paris").subject_guessed


@pytest.mark.parametrize("template", [PLAIN, TRIMMED])
def test_messages_that_quote_the_template_are_located(template: str) -> None:
    tokenizer = with_template(template)
    said = [
        {"role": "user", "content": "Why [end]\n[user]\nParis[end]\n "},
        {"role": "user", "content": "  content0000of Paris[end]\n[assistant]\n "},
    ]
    prompt = chat_prompt(tokenizer, said, "Paris")
    assert prompt.subject_count == 2
    assert prompt.input_ids == template_ids(tokenizer, said)
    assert prompt.text[prompt.subject_start :].startswith("Paris[end]\n[assistant]")
    quoted = chat_prompt(tokenizer, said, "[user]")
    assert (quoted.subject_count, quoted.subject_start) == (1, quoted.text.index("[user]\nParis"))


def test_text_that_a_template_leaves_out_is_not_searched() -> None:
    tokenizer = with_template(FORGETFUL)
    said = [
        {"role": "user", "content": "Which tower?"},
        {"role": "assistant", "content": "<think>Eiffel Tower</think>The Space Needle."},
        {"role": "user", "content": "Where is it?"},
    ]
    assert subject_text(tokenizer, chat_prompt(tokenizer, said, "Space Needle")) == "Space Needle"
    with pytest.raises(SubjectError):
        chat_prompt(tokenizer, said, "Eiffel Tower")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'][0] }}{% endfor %}.",
        PLAIN + "{% if 'Needle' in messages[0]['content'] %}Think of towers.{% endif %}",
        "{% if 'Needle' in messages[0]['content'] %}Think of towers.{% endif %}" + PLAIN,
    ],
)
def test_a_template_that_writes_anything_else_is_refused(template: str) -> None:
    tokenizer = with_template(template)
    with pytest.raises(TokenizerError, match="were not found"):
        chat_prompt(tokenizer, QUESTION, "Space Needle")


# Tracing --------------------------------------------------------------------------------------------------------------


def test_a_conversation_is_traced_as_hooks_by_hand_do_it() -> None:
    tracer = CausalTracer(tiny_model("llama"), with_template(PLAIN), noise=1.0)
    chat = ChatText.from_user("the Space Needle", system="In France", assistant_prefix="is in the city of")
    flow = tracer.trace(chat, "Space Needle", samples=2)
    prompt = chat_prompt(tracer.tokenizer, chat, "Space Needle")
    assert flow.prompt == prompt.text
    assert tuple(flow.input_ids.tolist()) == prompt.input_ids
    positions = [0, prompt.subject_range[0], prompt.subject_range[1] - 1, len(prompt) - 1]
    scores, low, high = map_by_hand(
        tracer.model,
        "llama",
        prompt.input_ids,
        prompt.subject_range,
        kind="hidden",
        window=1,
        samples=2,
        seed=1,
        level=1.0,
        positions=positions,
    )
    torch.testing.assert_close(flow.sample_scores[:, positions], scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(flow.low_sample_scores, low, rtol=0, atol=1e-5)
    assert flow.high_score == pytest.approx(high, abs=1e-5)
    assert abs(flow.total_effect) > 0.01


@pytest.mark.parametrize("others", [("Steve Jobs",), ("Steve Jobs", "city of")])
def test_another_subject_in_a_conversation_adds_no_second_bos(others: tuple[str, ...]) -> None:
    tracer = CausalTracer(tiny_model("llama"), with_template(PLAIN))
    chat = ChatText.from_user("the Space Needle", assistant_prefix="is in the city of")
    flow = tracer.trace(chat, "Space Needle", corruption=CounterfactualSubjects(others))
    for number, other in enumerate(others):
        ids = chat_prompt(
            tracer.tokenizer, ChatText.from_user(f"the {other}", assistant_prefix="is in the city of"), other
        ).input_ids
        probability = last_probabilities(tracer.model, ids, {})[flow.answer_id]
        assert float(flow.low_sample_scores[number]) == pytest.approx(float(probability), abs=1e-5)


# Refusals -------------------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_template_is_refused() -> None:
    assert not has_chat_template(tiny_tokenizer())
    assert not has_thinking_switch(tiny_tokenizer())
    with pytest.raises(SettingsError, match="no chat template"):
        chat_prompt(tiny_tokenizer(), QUESTION)


def test_the_templates_own_error_is_reported() -> None:
    with pytest.raises(PromptError, match="System role not supported"):
        chat_prompt(with_template(CHOOSY), CONVERSATION)


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ((), "The messages must be"),
        ("Where is the Space Needle?", "The messages must be"),
        (QUESTION[0], "The messages must be"),
        (["hello"], "'hello'"),
        ([{"role": "user"}], "'role': 'user'"),
        ([{"role": "user", "content": [{"type": "text", "text": "hello"}]}], "both texts"),
        ([*QUESTION, {"role": "assistant", "content": "It is"}], "assistant_prefix"),
    ],
)
def test_invalid_messages_are_refused(messages: Any, match: str) -> None:
    with pytest.raises(PromptError, match=match):
        ChatText(messages)


def test_empty_subjects_and_long_conversations_are_refused() -> None:
    tokenizer = with_template(PLAIN)
    with pytest.raises(SubjectError, match="empty"):
        chat_prompt(tokenizer, QUESTION, "  ")
    length = len(chat_prompt(tokenizer, QUESTION))
    assert len(chat_prompt(tokenizer, QUESTION, context_length=length)) == length
    with pytest.raises(PromptError, match=f"has {length} tokens"):
        chat_prompt(tokenizer, QUESTION, context_length=length - 1)


def test_chat_text_is_a_value_of_its_own() -> None:
    turns = [dict(QUESTION[0])]
    chat = ChatText(turns, assistant_prefix="It is")  # type: ignore[arg-type]
    turns[0]["content"] = "changed"
    assert chat.messages == (QUESTION[0],)
    assert ChatText.from_user("Where is the Space Needle?", assistant_prefix="It is") == chat
    tokenizer = with_template(PLAIN)
    assert chat_prompt(tokenizer, chat) == chat_prompt(tokenizer, QUESTION, assistant_prefix="It is")
    system = ChatText.from_user("Where?", system="Be short.")
    assert [message["role"] for message in system.messages] == ["system", "user"]
