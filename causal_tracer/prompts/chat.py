"""Conversations: turning messages into a prompt with the tokenizer's chat template.

The token ids are those of `apply_chat_template`: the template's text is tokenized without adding the tokenizer's
special tokens. The subject is searched in the messages only, not in the text that the template adds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from causal_tracer.arguments import quoted
from causal_tracer.errors import PromptError, SettingsError, SubjectError, TokenizerError
from causal_tracer.prompts.encoding import Span, check_text
from causal_tracer.prompts.prompt import Prompt, duplicate_token_note, make_prompt_at
from causal_tracer.prompts.subject import Occurrence, chosen_occurrence, guess_subject, occurrences

Message = Mapping[str, str]
"""One message, as for `apply_chat_template`: {"role": "user", "content": "..."}."""


@dataclass(frozen=True)
class ChatText:
    """A conversation to trace, instead of a text. The answer is read at the start of the assistant's next turn.

    Attributes:
        messages: The messages so far. The last one must not be the assistant's.
        thinking: Whether the model thinks first, if its template has that switch. None is the template's default.
        assistant_prefix: The start of the assistant's turn; the answer is read right after it. For a model that thinks,
            it can contain the thoughts and their closing tag.
    """

    messages: tuple[Message, ...]
    thinking: bool | None = None
    assistant_prefix: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.messages, (str, Mapping)) or not isinstance(self.messages, Sequence) or not self.messages:
            raise PromptError(
                f"The messages must be a list with at least one message (given: {self.messages!r}). Give a list such "
                'as [{"role": "user", "content": "..."}].'
            )
        for message in self.messages:
            fits = isinstance(message, Mapping) and all(isinstance(message.get(k), str) for k in ("role", "content"))
            if not fits:
                raise PromptError(
                    f"A message must have a role and a content, both texts (given: {message!r}). Give a message such "
                    'as {"role": "user", "content": "..."}.'
                )
            check_text("message", message["content"])
        if self.messages[-1]["role"] == "assistant":
            raise PromptError(
                "The last message must not be the assistant's: the answer is read in a new turn of the assistant. Give "
                "the start of that turn as assistant_prefix."
            )
        check_text("assistant_prefix", self.assistant_prefix)
        object.__setattr__(self, "messages", tuple(dict(message) for message in self.messages))

    @classmethod
    def from_user(cls, content: str, *, system: str | None = None, **options: Any) -> ChatText:
        """Return a conversation with one user message, after a system message if one is given.

        Args:
            content: The user's message.
            system: The system message.
            options: The other fields, `thinking` and `assistant_prefix`.
        """
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
    """Make a prompt of a conversation, up to the start of the assistant's turn, with its subject located.

    Args:
        tokenizer: A Hugging Face tokenizer with a chat template.
        messages: The messages, or a `ChatText`, whose own `thinking` and `assistant_prefix` are used.
        subject: A part of a message or of the assistant's prefix. None guesses it, from the user's last message first.
        thinking: As in `ChatText`.
        assistant_prefix: As in `ChatText`.
        occurrence: Which occurrence is used if the messages contain the subject more than once.
        context_length: As in `make_prompt`.
        vocab_size: As in `make_prompt`.

    Returns:
        The prompt. Its text is the template's output, and the answer is read after its last token.

    Raises:
        SettingsError: The tokenizer has no chat template, or the template has no switch for thinking.
        PromptError: The messages are invalid, the template refuses them, or the prompt does not fit the model.
        SubjectError: The subject is in no message, or none could be guessed.
        TokenizerError: The messages were not found in the template's output.
    """
    chat = messages if isinstance(messages, ChatText) else ChatText(tuple(messages), thinking, assistant_prefix)
    text, spans = render_chat(tokenizer, chat)
    wanted = _guessed(chat) if subject is None else check_text("subject", subject, SubjectError).strip()
    places = _subject_spans(text, spans, wanted)
    return make_prompt_at(
        tokenizer,
        text,
        chosen_occurrence(places, occurrence),
        subject_guessed=subject is None,
        subject_count=len(places),
        context_length=context_length,
        vocab_size=vocab_size,
        special_tokens=False,
        notes=_notes(tokenizer, text, spans),
    )


def render_chat(tokenizer: Any, chat: ChatText) -> tuple[str, list[Span]]:
    """Render a conversation with the chat template, and find its messages in the text.

    Returns:
        The text, and the spans in it of the messages' contents and, last, of the assistant's prefix.

    Raises:
        SettingsError, PromptError, TokenizerError: As in `chat_prompt`.
    """
    switches = _switches(tokenizer, chat)
    opening = _render(tokenizer, chat.messages, switches)
    text = opening + chat.assistant_prefix
    return text, [*_content_spans(tokenizer, chat.messages, switches, opening), (len(opening), len(text))]


def has_chat_template(tokenizer: Any) -> bool:
    """Check whether the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def has_thinking_switch(tokenizer: Any) -> bool:
    """Check whether the tokenizer's chat template can turn thinking on and off."""
    if not has_chat_template(tokenizer):
        return False
    return _thinking_switch(tokenizer, ({"role": "user", "content": "Hello."},)) is not None


def _thinking_switch(tokenizer: Any, messages: Sequence[Message]) -> str | None:
    """Return the template variable for thinking, the one that changes the template's output; None if there is none."""
    for name in ("enable_thinking", "thinking"):
        if _render(tokenizer, messages, {name: True}) != _render(tokenizer, messages, {name: False}):
            return name
    return None


def _switches(tokenizer: Any, chat: ChatText) -> dict[str, bool]:
    """Return the template's variables besides the messages.

    Raises:
        SettingsError: `thinking` is set, but the template has no switch for it.
    """
    if chat.thinking is None:
        return {}
    name = _thinking_switch(tokenizer, chat.messages)
    if name is None:
        raise SettingsError(
            f"thinking={chat.thinking} was given, but the chat template has no such switch. Leave thinking out. The "
            "model's thoughts can be given in assistant_prefix."
        )
    return {name: chat.thinking}


def _render(tokenizer: Any, messages: Sequence[Message], switches: Mapping[str, bool]) -> str:
    """Return the template's output, up to the start of the assistant's turn."""
    from jinja2 import TemplateError

    if not has_chat_template(tokenizer):
        raise SettingsError(
            f"{type(tokenizer).__name__} has no chat template, so messages cannot be made into a prompt. Give the "
            "prompt as text, or set tokenizer.chat_template."
        )
    try:
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True, **switches
        )
    except (TemplateError, TypeError) as error:
        raise PromptError(f"The chat template refuses these messages ({error}). Check their roles.") from error
    return text


def _content_spans(
    tokenizer: Any, messages: Sequence[Message], switches: Mapping[str, bool], text: str
) -> Iterator[Span]:
    """Yield the spans of the messages' contents in the template's output.

    The template is rendered once more with placeholders as contents. The text between the placeholders is the
    template's own; the text in their places is the contents, even if the template changes these (trims them, drops the
    thoughts of an earlier turn).
    """
    placeholders = [{**message, "content": f"content{number:04}of"} for number, message in enumerate(messages)]
    parts = re.split(r"content(\d{4})of", _render(tokenizer, placeholders, switches))
    own, numbers = parts[::2], [int(number) for number in parts[1::2]]
    if not text.startswith(own[0]):
        raise _not_located(text)
    reached = len(own[0])
    for number, following in zip(numbers, own[1:], strict=True):
        content = messages[number]["content"]
        # The content may itself contain the template's text that follows it.
        whole = [kept for kept in (content, content.strip()) if text.startswith(kept + following, reached)]
        end = reached + len(whole[0]) if whole else text.find(following, reached)
        if end < 0 or not (following or whole):
            raise _not_located(text)
        yield reached, end
        reached = end + len(following)
    if reached != len(text):
        raise _not_located(text)


def _not_located(text: str) -> TokenizerError:
    return TokenizerError(
        f"The messages were not found in the chat template's output: {text[-300:]!r}. Give this output as a text "
        "prompt, with its subject."
    )


def _guessed(chat: ChatText) -> str:
    """Guess the subject from the user's messages, the last one first, or else from the assistant's prefix."""
    candidates = [message["content"] for message in reversed(chat.messages) if message["role"] == "user"]
    for text in [*candidates, chat.assistant_prefix]:
        try:
            return guess_subject(text)
        except SubjectError:
            continue
    raise SubjectError(
        "No subject could be guessed: no message of the user has a capitalised name. Give the subject, exactly as it "
        "is written in a message."
    )


def _subject_spans(text: str, spans: Sequence[Span], subject: str) -> tuple[Span, ...]:
    """Return the spans of the subject in the messages."""
    if not subject:
        raise SubjectError("The subject is empty. Give a part of a message, or None to guess it.")
    found = tuple(place for part in spans for place in occurrences(text, subject, *part))
    if not found:
        elsewhere = "It is only in the text that the chat template adds. " if subject in text else ""
        raise SubjectError(
            f"The subject {quoted(subject)} is in no message. {elsewhere}Give a part of a message, exactly as it is "
            "written there."
        )
    return found


def _notes(tokenizer: Any, text: str, spans: Sequence[Span]) -> tuple[str, ...]:
    """Return a note if a message contains a BOS, since the tokenizer reads it as a real one."""
    bos = getattr(tokenizer, "bos_token", None)
    if bos and any(bos in text[start:end] for start, end in spans):
        return (duplicate_token_note(bos, "the chat template"),)
    return ()
