"""The `lens` command: the logit lens of one prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from causal_tracer.cli.inputs import (
    AssistantPrefix,
    Chat,
    DeviceMap,
    Prompt,
    System,
    Thinking,
    load_tracer,
    prompt_text,
)
from causal_tracer.cli.options import Device, Dtype, Model, Revision
from causal_tracer.cli.output import Csv, Html, Image, Json, Outputs, Quiet

Answer = Annotated[
    str | None,
    typer.Option(help="The answer whose probability and rank are read. By default the model's most probable token."),
]
Top = Annotated[int, typer.Option(min=1, help="Keep this many most probable tokens of each layer.")]


def lens(
    prompt: Prompt,
    answer: Answer = None,
    top: Top = 5,
    model: Model = "embedded",
    revision: Revision = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    chat: Chat = False,
    system: System = None,
    thinking: Thinking = None,
    assistant_prefix: AssistantPrefix = "",
    json_to: Json = None,
    csv_to: Csv = None,
    html_to: Html = None,
    image_to: Image = None,
    quiet: Quiet = False,
) -> None:
    """Show the logit lens: the next tokens that each layer predicts, through the model's final norm and head.

    Example: causal-tracer lens "The Space Needle is located in the city of" --html lens.html
    """
    outputs = Outputs(json_to, csv_to, html_to, image_to, quiet)
    text = prompt_text(prompt, chat, system, thinking, assistant_prefix)
    tracer = load_tracer(model, revision, dtype, device, device_map, quiet=quiet)
    outputs.write_lens(tracer.lens(text, answer, top))
