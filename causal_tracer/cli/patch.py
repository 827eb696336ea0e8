"""The `patch` command: a run of one prompt with activations of another prompt's run."""

from __future__ import annotations

from typing import Annotated

import typer

from causal_tracer.cli.inputs import DeviceMap, load_tracer
from causal_tracer.cli.options import Device, Dtype, Model, Revision
from causal_tracer.cli.output import Csv, Html, Image, Json, Outputs, Quiet
from causal_tracer.errors import SettingsError
from causal_tracer.request.sites import SITES, require_site
from causal_tracer.tracing.patched import Pair

Source = Annotated[str, typer.Argument(help="The prompt whose activations are copied.", show_default=False)]
Base = Annotated[str, typer.Argument(help="The prompt that is run with these activations.", show_default=False)]
Pairs = Annotated[
    list[str],
    typer.Option(
        "--pair",
        metavar="TOKEN,LAYER:TOKEN,LAYER",
        help="A cell of the source, and the cell of the base that gets its value. A cell of a head is "
        "TOKEN,LAYER,HEAD. Can be repeated.",
    ),
]
Kind = Annotated[
    str,
    typer.Option(
        "--kind",
        "-k",
        metavar="|".join(name for name, site in SITES.items() if not site.blocks),
        help="The kind of activations to copy.",
    ),
]
Answers = Annotated[
    list[str] | None,
    typer.Option(
        "--answer",
        help="An answer whose probability is read. Can be repeated. By default the most probable token of each "
        "prompt's clean run.",
    ),
]
Top = Annotated[int, typer.Option(min=1, help="Keep this many most probable tokens of each layer.")]


def patch(
    source: Source,
    base: Base,
    pair: Pairs,
    kind: Kind = "hidden",
    answer: Answers = None,
    top: Top = 5,
    model: Model = "embedded",
    revision: Revision = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    json_to: Json = None,
    csv_to: Csv = None,
    html_to: Html = None,
    image_to: Image = None,
    quiet: Quiet = False,
) -> None:
    """Run the base prompt with activations copied from the source prompt, from any cell into any cell.

    Example: causal-tracer patch "Paris is the capital of" "Rome is the capital of" --pair 1,3:1,3
    """
    outputs = Outputs(json_to, csv_to, html_to, image_to, quiet)
    pairs, site = [_cells(text) for text in pair], require_site(kind)
    tracer = load_tracer(model, revision, dtype, device, device_map, quiet=quiet)
    outputs.write_patched(tracer.patch(source, base, pairs, site, answers=answer or None, top=top))


def _cells(text: str) -> Pair:
    try:
        source, base = (tuple(int(number) for number in end.split(",")) for end in text.split(":"))
    except ValueError as error:
        raise SettingsError(
            f"--pair must be a cell of the source and a cell of the base (given: {text!r}). "
            "Give TOKEN,LAYER:TOKEN,LAYER with integers, such as 3,5:-1,5."
        ) from error
    return source, base
