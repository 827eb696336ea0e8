"""Checks of values in a program's JSON object: objects, texts, conversations and lists, within the app's limits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from causal_tracer.arguments import as_list, flag, quoted
from causal_tracer.errors import PromptError, SettingsError
from causal_tracer.prompts.chat import ChatText
from causal_tracer.prompts.encoding import check_text
from causal_tracer.request.records import Text
from causal_tracer.web.service.app_fields import CHARACTERS_PER_TOKEN, LONGEST_ANSWER, MOST_TEXTS
from causal_tracer.web.service.settings import ServiceSettings, limit

_MOST_ITEMS = 1000
# The most characters of all texts in an object together, in prompts of the greatest length.
_PROMPTS_OF_TEXT = 20
_LONGEST_PLACE = 60
_CONVERSATION = ("messages", "thinking", "assistant_prefix")
_MESSAGE = ("role", "content")


def object_with(name: str, value: Any, known: Collection[str]) -> dict[str, Any]:
    """Return an object after checking that all its fields are known.

    Raises:
        SettingsError: The value is not an object, or has an unknown field.
    """
    if not isinstance(value, Mapping):
        raise SettingsError(f"{name} must be an object with the fields {', '.join(known)} (given: {quoted(value)}).")
    if unknown := [field for field in value if field not in known]:
        raise SettingsError(f"{name} has no field {quoted(unknown[0])}. Its fields are {', '.join(known)}.")
    return dict(value)


def check_sizes(asked: Any, settings: ServiceSettings) -> None:
    """Check the lengths of all texts and lists, at any depth, before they are parsed.

    Raises:
        SettingsError: A list or object has too many items.
        PromptError: A text is too long or has an unpaired surrogate, or all texts together are too long.
    """
    longest = CHARACTERS_PER_TOKEN * settings.max_prompt_tokens
    most = max(_MOST_ITEMS, settings.max_prompt_tokens)
    tokens, total = limit("max_prompt_tokens", settings.max_prompt_tokens), 0
    waiting: list[tuple[str, Any]] = [("", asked)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, str):
            total += len(check_text(name or "text", value))
            if len(value) > longest:
                raise PromptError(
                    f"{name} has {len(value)} characters, and this app takes at most {tokens} tokens. Shorten it."
                )
        elif isinstance(value, Mapping | list | tuple):
            if len(value) > most:
                raise SettingsError(f"{name} has {len(value)} items, and this app takes at most {most}. Give fewer.")
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            inside = {str(key): each for key, each in items}
            waiting += [(f"{name}.{key}"[-_LONGEST_PLACE:].lstrip("."), each) for key, each in inside.items()]
            waiting += [("field name", key) for key in inside]
    if total > _PROMPTS_OF_TEXT * longest:
        raise PromptError(
            f"The texts have {total} characters together, and this app takes at most {_PROMPTS_OF_TEXT * longest}. "
            "Give fewer or shorter ones."
        )


def prompt_of(name: str, value: Any) -> Text:
    """Return a prompt: a text, or a conversation without unknown fields.

    Raises:
        PromptError, SettingsError: The value is neither.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise PromptError(
            f'{name} must be a text, or a conversation {{"messages": [{{"role": "user", "content": "..."}}]}} (given: '
            f"{quoted(value)})."
        )
    given = object_with(name, value, _CONVERSATION)
    messages = [object_with("Each message", each, _MESSAGE) for each in as_list("messages", given.get("messages"))]
    thinking = given.get("thinking")
    return ChatText(
        tuple(messages),
        None if thinking is None else flag("thinking", thinking),
        given.get("assistant_prefix", ""),
    )


def short_text(name: str, value: str) -> str:
    """Return an answer after checking its length.

    Raises:
        PromptError: The text has more than `LONGEST_ANSWER` characters.
    """
    if len(value) > LONGEST_ANSWER:
        raise PromptError(f"{name} has {len(value)} characters. Give at most {LONGEST_ANSWER}.")
    return value


def short_list(name: str, value: Any) -> list[Any]:
    """Return the items of a list of texts or answers after checking their number.

    Raises:
        SettingsError: The value is not a list, or has more than `MOST_TEXTS` items.
    """
    items = list(as_list(name, value))
    if len(items) > MOST_TEXTS:
        raise SettingsError(f"{name} has {len(items)} items, and this app takes at most {MOST_TEXTS}. Give fewer.")
    return items


def at_most(name: str, value: int, setting: str, settings: ServiceSettings) -> None:
    """Check a number against a setting of the app.

    Raises:
        SettingsError: The number is above the setting.
    """
    most = getattr(settings, setting)
    if value > most:
        raise SettingsError(f"{name}={quoted(value)} is over this app's limit of {limit(setting, most)}. Give less.")
