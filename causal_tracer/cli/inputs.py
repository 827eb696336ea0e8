"""Options for the prompt and the model that several commands share, and functions that build both from the options."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from causal_tracer.cli.options import MODEL
from causal_tracer.corruption import NoiseRule
from causal_tracer.errors import SettingsError
from causal_tracer.prompts.chat import ChatText
from causal_tracer.tracer import CausalTracer

_CHAT = "Conversation"

Prompt = Annotated[str, typer.Argument(help="The text that the model continues.", show_default=False)]
DeviceMap = Annotated[str | None, typer.Option(help='"auto" splits the model over all devices.', rich_help_panel=MODEL)]
Chat = Annotated[
    bool, typer.Option("--chat", help="Send the prompt to a chat model as a user message.", rich_help_panel=_CHAT)
]
System = Annotated[str | None, typer.Option(help="The system message, before the user's.", rich_help_panel=_CHAT)]
Thinking = Annotated[
    bool | None,
    typer.Option(help="Switch thinking on or off, if the chat template has a switch for it.", rich_help_panel=_CHAT),
]
AssistantPrefix = Annotated[
    str, typer.Option(help="The start of the assistant's reply. The answer comes next.", rich_help_panel=_CHAT)
]


def prompt_text(
    prompt: str, chat: bool, system: str | None, thinking: bool | None, assistant_prefix: str
) -> str | ChatText:
    """Return the prompt: the text itself, or with `chat` a conversation in which it is the user's message.

    Raises:
        SettingsError: `system`, `thinking` or `assistant_prefix` is given without `chat`.
    """
    if chat:
        return ChatText.from_user(prompt, system=system, thinking=thinking, assistant_prefix=assistant_prefix)
    if system is not None or thinking is not None or assistant_prefix:
        raise SettingsError("--system, --thinking and --assistant-prefix are for conversations only. Add --chat.")
    return prompt


def load_tracer(
    model: str,
    revision: str | None,
    dtype: str | None,
    device: str | None,
    device_map: str | None,
    *,
    quiet: bool,
    noise: NoiseRule = None,
) -> CausalTracer:
    """Load the model that the options name and return its tracer. On a terminal, downloads show a progress bar."""
    from transformers.utils import logging as transformers_logging

    shown = not quiet and sys.stderr.isatty()
    if not shown:
        transformers_logging.disable_progress_bar()
    return CausalTracer.from_pretrained(
        model, noise=noise, progress=shown, revision=revision, dtype=dtype, device=device, device_map=device_map
    )
