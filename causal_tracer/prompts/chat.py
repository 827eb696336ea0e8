"""Conversations: from messages to the prompt that the tokenizer's chat template makes of them.

The token ids are those of `apply_chat_template`: what the template writes is tokenized as it stands, with no BOS of the
tokenizer's own on top. The subject is looked for in what was said, never in what the template adds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from causal_tracer.errors import PromptError, SettingsError, SubjectError, TokenizerError
from causal_tracer.prompts.encoding import Span, check_text, quoted
from causal_tracer.prompts.prompt import Prompt, doubled_note, prompt_at
from causal_tracer.prompts.subject import Occurrence, chosen_occurrence, guess_subject, occurrences

Message = Mapping[str, str]
"""One turn: {"role": "user", "content": "..."}, as `apply_chat_template` takes them."""


@dataclass(frozen=True)
class ChatText:
    """A conversation to trace, in place of a text. The answer is read where the assistant's turn goes on.

    Attributes:
        messages: The turns so far; the last one is not the assistant's.
        thinking: Whether the model is to think first, where its template has that switch; None takes the
            template's default.
        assistant_prefix: How the assistant's turn begins; the answer follows right after it. Of a model that thinks,
            it can hold the thoughts, closing mark included.
    """

    messages: tuple[Message, ...]
    thinking: bool | None = None
    assistant_prefix: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.messages, (str, Mapping)) or not isinstance(self.messages, Sequence) or not self.messages:
            raise PromptError(
                f'The messages are {self.messages!r}. Give a list such as [{{"role": "user", "content": "..."}}].'
            )
        for message in self.messages:
            fits = isinstance(message, Mapping) and all(isinstance(message.get(k), str) for k in ("role", "content"))
            if not fits:
                raise PromptError(
                    f"The message {message!r} is none. Each has a role and a content, both texts: "
                    '{"role": "user", "content": "..."}.'
                )
            check_text("message", message["content"])
        if self.messages[-1]["role"] == "assistant":
            raise PromptError(
                "The last message is the assistant's, and the answer is read in a new turn of the assistant. Give the "
                "start of that turn as assistant_prefix."
            )
        check_text("assistant_prefix", self.assistant_prefix)
        object.__setattr__(self, "messages", tuple(dict(message) for message in self.messages))

    @classmethod
    def from_user(cls, content: str, *, system: str | None = None, **options: Any) -> ChatText:
        """A single user message, with a system message before it if one is given; `options` are the other fields."""
        turns = [] if system is None else [{"role": "system", "content": system}]
        return cls((*turns, {"role": "user", "content": content}), **options)


def chat_prompt(
    tokenizer: Any,
    messages: Sequence[Message] | ChatText,
    subject: str | None = None,
    *,
    thinking: bool | None = None,
    assistant_prefix: str = "",
    occurrence: Occurrence = "last",
    context_length: int | None = None,
    vocab_size: int | None = None,
) -> Prompt:
    """The prompt that a conversation is, up to where the assistant goes on, with the subject located in what was said.

    Args:
        tokenizer: A Hugging Face tokenizer with a chat template.
        messages: The turns, or a `ChatText`, which brings `thinking` and `assistant_prefix` along.
        subject: A part of a message or of the assistant's prefix; None guesses it, from the user's last message first.
        thinking: As in `ChatText`.
        assistant_prefix: As in `ChatText`.
        occurrence: Which one is meant where the subject is said more than once.
        context_length: As in `make_prompt`.
        vocab_size: As in `make_prompt`.

    Returns:
        The prompt; its text is what the template wrote, and its last token is where the answer is read.

    Raises:
        SettingsError: The template has no switch for thinking, or none is set.
        PromptError: The messages are none, the template refuses them, or the prompt does not fit the model.
        SubjectError: The subject was not said, or none could be guessed.
        TokenizerError: The messages were not found in what the template wrote.
    """
    chat = messages if isinstance(messages, ChatText) else ChatText(tuple(messages), thinking, assistant_prefix)
    text, said = written(tokenizer, chat)
    wanted = _guessed(chat) if subject is None else check_text("subject", subject, SubjectError).strip()
    places = _places(text, said, wanted)
    return prompt_at(
        tokenizer,
        text,
        chosen_occurrence(places, occurrence),
        subject_guessed=subject is None,
        subject_count=len(places),
        context_length=context_length,
        vocab_size=vocab_size,
        special_tokens=False,
        notes=_notes(tokenizer, text, said),
    )


def written(tokenizer: Any, chat: ChatText) -> tuple[str, list[Span]]:
    """What the chat template makes of a conversation, and where in it is what was said.

    Returns:
        The text, and (first character, one past the last) of each message in it, then of the assistant's prefix.

    Raises:
        SettingsError, PromptError, TokenizerError: As in `chat_prompt`.
    """
    switches = _switches(tokenizer, chat)
    opening = _rendered(tokenizer, chat.messages, switches)
    text = opening + chat.assistant_prefix
    return text, [*_said(tokenizer, chat.messages, switches, opening), (len(opening), len(text))]


def has_chat_template(tokenizer: Any) -> bool:
    """Whether the tokenizer can write conversations."""
    return bool(getattr(tokenizer, "chat_template", None))


def has_thinking_switch(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template can switch thinking on and off."""
    if not has_chat_template(tokenizer):
        return False
    return _thinking_switch(tokenizer, ({"role": "user", "content": "Hello."},)) is not None


def _thinking_switch(tokenizer: Any, messages: Sequence[Message]) -> str | None:
    """The variable that makes the template write something else when it is on than when it is off."""
    for name in ("enable_thinking", "thinking"):
        if _rendered(tokenizer, messages, {name: True}) != _rendered(tokenizer, messages, {name: False}):
            return name
    return None


def _switches(tokenizer: Any, chat: ChatText) -> dict[str, bool]:
    """What the template is told besides the messages."""
    if chat.thinking is None:
        return {}
    name = _thinking_switch(tokenizer, chat.messages)
    if name is None:
        raise SettingsError(
            f"thinking={chat.thinking} was asked for, and the chat template has no such switch. Leave it out; what "
            "the model is to have thought can stand in assistant_prefix."
        )
    return {name: chat.thinking}


def _rendered(tokenizer: Any, messages: Sequence[Message], switches: Mapping[str, bool]) -> str:
    """What the template writes, up to where the assistant goes on."""
    from jinja2 import TemplateError

    if not has_chat_template(tokenizer):
        raise SettingsError(
            f"{type(tokenizer).__name__} has no chat template, so it cannot write messages. Give the prompt as text, "
            "or set tokenizer.chat_template."
        )
    try:
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True, **switches
        )
    except (TemplateError, TypeError) as error:
        raise PromptError(f"The chat template does not take these messages ({error}). Check their roles.") from error
    return text


def _said(tokenizer: Any, messages: Sequence[Message], switches: Mapping[str, bool], text: str) -> Iterator[Span]:
    """Where the messages' contents are in the written text: (first character, one past the last).

    The template is given stand-ins for the contents; what it writes between them is its own, and what it writes in
    their places is what was said, even where it changes that (trims it, drops an earlier turn's thoughts).
    """
    stand_ins = [{**message, "content": f"content{number:04}of"} for number, message in enumerate(messages)]
    parts = re.split(r"content(\d{4})of", _rendered(tokenizer, stand_ins, switches))
    own, numbers = parts[::2], [int(number) for number in parts[1::2]]
    if not text.startswith(own[0]):
        raise _unlike(text)
    reached = len(own[0])
    for number, following in zip(numbers, own[1:], strict=True):
        content = messages[number]["content"]
        # A content may itself hold what the template writes after it.
        whole = [kept for kept in (content, content.strip()) if text.startswith(kept + following, reached)]
        end = reached + len(whole[0]) if whole else text.find(following, reached)
        if end < 0 or not (following or whole):
            raise _unlike(text)
        yield reached, end
        reached = end + len(following)
    if reached != len(text):
        raise _unlike(text)


def _unlike(text: str) -> TokenizerError:
    return TokenizerError(
        f"The messages cannot be told from the chat template's own words in what it wrote: {text[-300:]!r}. Give that "
        "as a text prompt, with the subject in it."
    )


def _guessed(chat: ChatText) -> str:
    """The subject guessed from the user's messages, the last first, or else from the assistant's prefix."""
    candidates = [message["content"] for message in reversed(chat.messages) if message["role"] == "user"]
    for text in [*candidates, chat.assistant_prefix]:
        try:
            return guess_subject(text)
        except SubjectError:
            continue
    raise SubjectError(
        "No subject could be guessed: no message of the user has a capitalised name. Give the subject, as it stands "
        "in a message."
    )


def _places(text: str, said: Sequence[Span], subject: str) -> tuple[Span, ...]:
    """Where the subject stands in what was said."""
    if not subject:
        raise SubjectError("The subject is empty. Give a part of a message, or None to have it guessed.")
    found = tuple(place for part in said for place in occurrences(text, subject, *part))
    if not found:
        elsewhere = "It is in what the chat template adds, which is not traced. " if subject in text else ""
        raise SubjectError(
            f"The subject {quoted(subject)} is in no message. {elsewhere}Give a part of a message exactly as it stands "
            "there."
        )
    return found


def _notes(tokenizer: Any, text: str, said: Sequence[Span]) -> tuple[str, ...]:
    """A BOS in a message is read as the one that opens a text."""
    bos = getattr(tokenizer, "bos_token", None)
    if bos and any(bos in text[start:end] for start, end in said):
        return (doubled_note(bos, "the chat template"),)
    return ()
