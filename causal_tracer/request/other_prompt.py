"""`OtherPrompt`: the second prompt or the placebo prompt of a request."""

from __future__ import annotations

from typing import Annotated, Any

from causal_tracer import arguments
from causal_tracer.arguments import as_list, optional, quoted, text
from causal_tracer.errors import SettingsError
from causal_tracer.prompts.alignment import AlignmentRule
from causal_tracer.prompts.chat import ChatText
from causal_tracer.prompts.encoding import check_text
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.prompts.subject import Occurrence
from causal_tracer.request.record import Check, one_of, record

_WORD = Check(optional(text))

Text = str | ChatText | Prompt
"""The text that the model continues: a string, a conversation, or a tokenized prompt."""


def checked_prompt_text(name: str, value: Any) -> Any:
    """Return the text of a prompt, checked if it is a string."""
    return value if isinstance(value, (ChatText | Prompt, dict)) else check_text(name, value)


def _pairs(name: str, value: Any) -> Any:
    if value is None:
        return None
    found = [as_list(f"Each pair of {name}", pair) for pair in as_list(name, value)]
    if wrong := [pair for pair in found if len(pair) != 2]:
        raise SettingsError(f"{name} must be pairs (token, other token) (given: {quoted(wrong[0])}).")
    return tuple(tuple(arguments.whole_number(name, token) for token in pair) for pair in found)


@record
class OtherPrompt:
    """Another prompt to patch with, and the alignment of its tokens with those of the request's prompt."""

    text: Annotated[Text, Check(checked_prompt_text)]
    """The text of the other prompt."""

    subject: Annotated[str | None, _WORD] = None
    """The subject of the other prompt; guessed if not given."""

    occurrence: Annotated[Occurrence, one_of(Occurrence)] = "last"
    """Which occurrence of the subject is used: "first" or "last"."""

    align: Annotated[AlignmentRule, one_of(AlignmentRule)] = "auto"
    """The alignment of tokens: "tokens", one by one; "spans", subject with subject and end with end; "auto", "tokens"
    if both prompts have the same number of tokens, else "spans"."""

    pairs: Annotated[tuple[tuple[int, int], ...] | None, Check(_pairs)] = None
    """Aligned tokens, given as pairs (token of the prompt, token of the other prompt) instead of a rule. Negative
    numbers count from the end."""
