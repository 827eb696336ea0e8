"""The prompt and the model of a command: their options, and what these make."""

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
DeviceMap = Annotated[
    str | None, typer.Option(help='"auto" spreads the model over all devices.', rich_help_panel=MODEL)
]
Chat = Annotated[
    bool, typer.Option("--chat", help="The prompt is a user's message to a chat model.", rich_help_panel=_CHAT)
]
System = Annotated[str | None, typer.Option(help="A system message before it.", rich_help_panel=_CHAT)]
Thinking = Annotated[bool | None, typer.Option(help="Where the chat template can switch it.", rich_help_panel=_CHAT)]
AssistantPrefix = Annotated[
    str, typer.Option(help="How the assistant begins; the answer comes next.", rich_help_panel=_CHAT)
]


def prompt_text(
    prompt: str, chat: bool, system: str | None, thinking: bool | None, assistant_prefix: str
) -> str | ChatText:
    """Return the prompt: the text, or with `chat` the conversation that begins with it.

    Raises:
        SettingsError: Options of a conversation are given without `chat`.
    """
    if chat:
        return ChatText.from_user(prompt, system=system, thinking=thinking, assistant_prefix=assistant_prefix)
    if system is not None or thinking is not None or assistant_prefix:
        raise SettingsError("--system, --thinking and --assistant-prefix belong to conversations: add --chat.")
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
    """Return a tracer of the model that the options name; a download shows its progress on a terminal."""
    from transformers.utils import logging as transformers_logging

    shown = not quiet and sys.stderr.isatty()
    if not shown:
        transformers_logging.disable_progress_bar()
    return CausalTracer.from_pretrained(
        model, noise=noise, progress=shown, revision=revision, dtype=dtype, device=device, device_map=device_map
    )
