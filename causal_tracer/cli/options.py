"""Command-line options made from the fields of request records, with their types, bounds, defaults and help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any, TypeVar

import typer
from pydantic.fields import FieldInfo

from causal_tracer.corruption import CORRUPTIONS
from causal_tracer.metrics.metric import METRICS
from causal_tracer.request.record import Check, record_fields

Command = TypeVar("Command", bound=Callable[..., Any])

MODEL, EXPERIMENT = "Model", "Experiment"

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="An embedded model's name, a folder, a .gguf file, or a hub id.", rich_help_panel=MODEL
    ),
]
Revision = Annotated[str | None, typer.Option(help="The branch, tag or commit of a hub model.", rich_help_panel=MODEL)]
Dtype = Annotated[
    str | None, typer.Option(help="Dtype of the weights: float32, bfloat16, float16 or auto.", rich_help_panel=MODEL)
]
Device = Annotated[
    str | None,
    typer.Option(
        help="A torch device, such as cpu or cuda:0. By default a GPU if there is one.", rich_help_panel=MODEL
    ),
]

_SHORT = {"subject": ("-s",)}
# Help of fields that in Python also take objects.
_HELP = {
    "corruption": f"The corruption of the subject: {', '.join(CORRUPTIONS)}.",
    "samples": "Number of noise samples. Corruptions that are not random have a fixed number.",
    "metric": f"The metric: {', '.join(METRICS)}. By default the probability, with a second prompt the logit "
    "difference.",
}
_TYPES = {
    "corruption": str,
    "metric": str | None,
    "noise": str | None,
    "samples": int,
    "window": int | None,
    "token": int | None,
}


def with_fields(records: Mapping[type[Any], str | None], without: Collection[str] = ()) -> Callable[[Command], Command]:
    """Return a decorator that adds an option for each field of some records to a command.

    A parameter that the command already has keeps its own definition. The command receives all other options by `**`.

    Args:
        records: The record classes, each with the help panel of its options.
        without: Names of fields that get no option.
    """

    def decorate(command: Command) -> Command:
        # Typer reads the options from the signature.
        parameters = inspect.signature(command, eval_str=True).parameters
        own = {name: each for name, each in parameters.items() if each.kind is not each.VAR_KEYWORD}
        added = [
            each
            for record, panel in records.items()
            for each in _options(record, panel)
            if each.name not in own and each.name not in without
        ]
        every = [*own.values(), *added]
        command.__signature__ = inspect.Signature([each.replace(kind=each.KEYWORD_ONLY) for each in every])  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in every}
        return command

    return decorate


def given_options(context: typer.Context, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that the user gave, without defaults: the default of a field can depend on other fields."""
    sources = {name: context.get_parameter_source(name) for name in settings}
    return {name: settings[name] for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


def _options(record: type[Any], panel: str | None) -> Iterator[inspect.Parameter]:
    for name, field in record_fields(record).items():
        flag = f"--{name.replace('_', '-')}"
        default = ... if field.is_required() else None if field.default_factory else field.default
        option = typer.Option(
            *((f"{flag}/--no-{flag[2:]}",) if default is True else (flag, *_SHORT.get(name, ()))),
            help=_HELP.get(name) or " ".join(str(field.description).split()),
            **_bounds(field),
            show_default=default not in (None, "", False),
            rich_help_panel=panel,
        )
        annotation: Any = Annotated[(_TYPES.get(name, field.annotation), option)]
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _bounds(field: FieldInfo) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for mark in field.metadata:
        least, most = (
            (mark.schema.get("minimum"), mark.schema.get("maximum"))
            if isinstance(mark, Check)
            else (getattr(mark, "ge", None), getattr(mark, "le", None))
        )
        found |= {name: bound for name, bound in (("min", least), ("max", most)) if bound is not None}
    return found
