"""The `trace` command: one prompt, one or several maps of it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic.fields import FieldInfo

from causal_tracer.cli.output import Outputs
from causal_tracer.cli.progress import progress_reporter
from causal_tracer.corruption import CounterfactualSubjects
from causal_tracer.errors import SettingsError
from causal_tracer.prompts.chat import ChatText
from causal_tracer.request.record import Check, record_fields
from causal_tracer.request.records import HiddenFlowQuery, MapSpec, RunOptions, Text, TraceRequest, trace_records
from causal_tracer.request.sites import DEFAULT_WINDOWS, LayerKind, require_kind
from causal_tracer.tracer import CausalTracer

_MODEL, _EXPERIMENT, _CHAT, _OUTPUT = "Model", "Experiment", "Conversation", "Output"


def trace(
    prompt: Annotated[str, typer.Argument(help="The text that the model goes on from.", show_default=False)],
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            "-k",
            metavar="hidden|mlp|attention",
            help="What to restore; may be given again.",
            show_default="hidden",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="An embedded name, a folder, a .gguf file, or a hub id.", rich_help_panel=_MODEL
        ),
    ] = "embedded",
    revision: Annotated[
        str | None, typer.Option(help="A hub model's commit or branch.", rich_help_panel=_MODEL)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16 or auto.", rich_help_panel=_MODEL)
    ] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0.", rich_help_panel=_MODEL)] = None,
    device_map: Annotated[
        str | None, typer.Option(help='"auto" spreads the model over all devices.', rich_help_panel=_MODEL)
    ] = None,
    counterfactual: Annotated[
        list[str] | None,
        typer.Option(
            help="Put this subject of as many tokens in its place, instead of noise; may be given again.",
            rich_help_panel=_EXPERIMENT,
        ),
    ] = None,
    severed: Annotated[
        Literal["mlp", "attention"] | None,
        typer.Option(help="Add a map of hidden states with these outputs held.", rich_help_panel=_EXPERIMENT),
    ] = None,
    placebo: Annotated[
        str | None,
        typer.Option(help="Another prompt: add maps that restore to its activations.", rich_help_panel=_EXPERIMENT),
    ] = None,
    placebo_subject: Annotated[
        str | None, typer.Option(help="The subject of that prompt; guessed if not given.", rich_help_panel=_EXPERIMENT)
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a user's message to a chat model.", rich_help_panel=_CHAT)
    ] = False,
    system: Annotated[str | None, typer.Option(help="A system message before it.", rich_help_panel=_CHAT)] = None,
    thinking: Annotated[
        bool | None, typer.Option(help="Where the chat template can switch it.", rich_help_panel=_CHAT)
    ] = None,
    assistant_prefix: Annotated[
        str, typer.Option(help="How the assistant begins; the answer comes next.", rich_help_panel=_CHAT)
    ] = "",
    json_to: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="FILE|-",
            help='Write all numbers, a line for each map; "-" prints.',
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    csv_to: Annotated[
        str | None,
        typer.Option("--csv", metavar="FILE|-", help='Write a row for each cell; "-" prints.', rich_help_panel=_OUTPUT),
    ] = None,
    html_to: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page that needs no network.", rich_help_panel=_OUTPUT),
    ] = None,
    image_to: Annotated[
        Path | None,
        typer.Option("--image", metavar="FILE", help="Write a .png, .svg or .pdf.", rich_help_panel=_OUTPUT),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress and no map.", rich_help_panel=_OUTPUT)
    ] = False,
    **settings: Any,
) -> None:
    """Trace one prompt: where does restoring an activation bring the answer back?

    Example: causal-tracer trace "The Space Needle is located in the city of" -s "Space Needle" -k mlp --html map.html
    """
    outputs = Outputs(json_to, csv_to, html_to, image_to, quiet)
    kinds = [require_kind(name) for name in dict.fromkeys(kind or ["hidden"])]
    text: Text = prompt
    if chat:
        text = ChatText.from_user(prompt, system=system, thinking=thinking, assistant_prefix=assistant_prefix)
    elif system is not None or thinking is not None or assistant_prefix:
        raise SettingsError("--system, --thinking and --assistant-prefix belong to conversations: add --chat.")
    given = {name: value for name, value in settings.items() if value is not None}
    if counterfactual:
        given["corruption"] = CounterfactualSubjects(tuple(counterfactual))
    request, spec, options = trace_records(text, given)
    if placebo is not None:
        request = replace(request, placebo=HiddenFlowQuery(placebo, placebo_subject))
    places: dict[str, Any] = {"revision": revision, "dtype": dtype, "device": device, "device_map": device_map}
    tracer = _load(model, places, quiet)
    specs = _maps(kinds, spec, given.get("window"), severed, placebo is not None)
    with progress_reporter("restored runs", quiet=quiet) as report:
        flows = tracer.trace_maps(request, specs, options, progress=report)
    outputs.write(flows)


def _maps(
    kinds: list[LayerKind],
    spec: MapSpec,
    window: int | None,
    severed: Literal["mlp", "attention"] | None,
    placebo: bool,
) -> dict[str, MapSpec]:
    def of(kind: LayerKind) -> MapSpec:
        return replace(spec, kind=kind, window=DEFAULT_WINDOWS[kind] if window is None else window)

    specs: dict[str, MapSpec] = {kind: of(kind) for kind in kinds}
    if severed is not None:
        specs[f"hidden-severed-{severed}"] = replace(of("hidden"), severed=severed)
    if placebo:
        specs |= {f"{kind}-placebo": replace(of(kind), source="placebo") for kind in kinds}
    return specs


def _load(model: str, places: dict[str, Any], quiet: bool) -> CausalTracer:
    from transformers.utils import logging as transformers_logging

    shown = not quiet and sys.stderr.isatty()
    if not shown:
        transformers_logging.disable_progress_bar()
    return CausalTracer.from_pretrained(model, progress=shown, **places)


# Fields that have an option of another form, or none: they need more than one value.
_NO_OPTION = ("prompt", "kind", "severed", "source", "placebo", "positions", "answer_id", "read", "elsewhere")
_PANELS = {TraceRequest: _EXPERIMENT, MapSpec: _EXPERIMENT, RunOptions: _MODEL}
_SHORT = {"subject": ("-s",)}
_OPTION_TYPES = {"corruption": str, "metric": str, "noise": str | None, "samples": int, "window": int | None}


def _options() -> Iterator[inspect.Parameter]:
    """The options that the records' fields are, with their types, bounds and help."""
    for record, panel in _PANELS.items():
        for name, field in record_fields(record).items():
            if name in _NO_OPTION:
                continue
            flag = f"--{name.replace('_', '-')}"
            default = None if name == "window" else field.default
            words = " ".join(str(field.description).split())
            option = typer.Option(
                *((f"{flag}/--no-{flag[2:]}",) if default is True else (flag, *_SHORT.get(name, ()))),
                help=words,
                **_bounds(field),
                show_default=default not in (None, "", False),
                rich_help_panel=panel,
            )
            annotation: Any = Annotated[(_OPTION_TYPES.get(name, field.annotation), option)]
            yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _bounds(field: FieldInfo) -> dict[str, Any]:
    schema = next((mark.schema for mark in field.metadata if isinstance(mark, Check)), {})
    return {short: schema[name] for short, name in (("min", "minimum"), ("max", "maximum")) if name in schema}


def _with_options(command: Any) -> None:
    """Put the records' fields into the command's signature, which is where Typer takes options from."""
    own = [each for each in inspect.signature(command, eval_str=True).parameters.values() if each.name != "settings"]
    parameters = [*own, *_options()]
    command.__signature__ = inspect.Signature([each.replace(kind=each.KEYWORD_ONLY) for each in parameters])
    command.__annotations__ = {each.name: each.annotation for each in parameters}


_with_options(trace)
