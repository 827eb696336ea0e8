"""The `trace` command: one or several maps of one prompt."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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
from causal_tracer.cli.options import EXPERIMENT, MODEL, Device, Dtype, Model, Revision, given_options, with_fields
from causal_tracer.cli.output import Csv, Html, Image, Json, Outputs, Quiet
from causal_tracer.cli.progress import progress_reporter
from causal_tracer.corruption import CounterfactualSubjects
from causal_tracer.errors import SettingsError
from causal_tracer.prompts.alignment import AlignmentRule
from causal_tracer.request.record import record_fields
from causal_tracer.request.records import MapSpec, OtherPrompt, RunOptions, TraceRequest, trace_records
from causal_tracer.request.sites import SITES, SiteName, require_site

Kinds = Annotated[
    list[str] | None,
    typer.Option(
        "--kind",
        "-k",
        metavar="|".join(SITES),
        help="The activations to restore, or the attention to block. Can be repeated.",
        show_default="hidden",
    ),
]
Counterfactual = Annotated[
    list[str] | None,
    typer.Option(
        help="Corrupt by this subject in the subject's place, instead of noise. It must have as many tokens. "
        "Can be repeated.",
        rich_help_panel=EXPERIMENT,
    ),
]
SecondPrompt = Annotated[
    str | None,
    typer.Option(
        help="A second prompt, instead of noise. Activations are restored into its run.", rich_help_panel=EXPERIMENT
    ),
]
SecondSubject = Annotated[
    str | None,
    typer.Option(help="The second prompt's subject. Guessed if not given.", rich_help_panel=EXPERIMENT),
]
Align = Annotated[
    AlignmentRule,
    typer.Option(
        help='How the tokens of both prompts are aligned. "auto" uses "spans" if their numbers of tokens differ.',
        rich_help_panel=EXPERIMENT,
    ),
]
Ablate = Annotated[
    Literal["zero", "mean"] | None,
    typer.Option(help="Set activations of the clean run to zero, or to their mean.", rich_help_panel=EXPERIMENT),
]
MeanOver = Annotated[
    list[str] | None,
    typer.Option(
        help="A text for the mean of --ablate mean, which is taken over all these texts. Can be repeated.",
        rich_help_panel=EXPERIMENT,
    ),
]
Severed = Annotated[
    Literal["mlp", "attention"] | None,
    typer.Option(
        help="Add a map of hidden states in which these outputs are held at their corrupted values.",
        rich_help_panel=EXPERIMENT,
    ),
]
Placebo = Annotated[
    str | None,
    typer.Option(
        help="Another prompt. Add control maps that restore its activations instead of the clean ones.",
        rich_help_panel=EXPERIMENT,
    ),
]
PlaceboSubject = Annotated[
    str | None,
    typer.Option(help="The placebo prompt's subject. Guessed if not given.", rich_help_panel=EXPERIMENT),
]


@with_fields(
    {TraceRequest: EXPERIMENT, MapSpec: EXPERIMENT, RunOptions: MODEL},
    without=("source", "positions", "answer_id", "read", "elsewhere", "second"),
)
def trace(
    context: typer.Context,
    prompt: Prompt,
    kind: Kinds = None,
    model: Model = "embedded",
    revision: Revision = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    counterfactual: Counterfactual = None,
    second_prompt: SecondPrompt = None,
    second_subject: SecondSubject = None,
    align: Align = "auto",
    ablate: Ablate = None,
    mean_over: MeanOver = None,
    severed: Severed = None,
    placebo: Placebo = None,
    placebo_subject: PlaceboSubject = None,
    chat: Chat = False,
    system: System = None,
    thinking: Thinking = None,
    assistant_prefix: AssistantPrefix = "",
    json_to: Json = None,
    csv_to: Csv = None,
    html_to: Html = None,
    image_to: Image = None,
    quiet: Quiet = False,
    **settings: Any,
) -> None:
    """Trace one prompt: show where restoring an activation brings the answer back.

    Example: causal-tracer trace "The Space Needle is located in the city of" -s "Space Needle" -k mlp --html map.html
    """
    outputs = Outputs(json_to, csv_to, html_to, image_to, quiet)
    kinds = [require_site(name) for name in dict.fromkeys(kind or ["hidden"])]
    text = prompt_text(prompt, chat, system, thinking, assistant_prefix)
    given = given_options(context, settings)
    if counterfactual:
        given["corruption"] = CounterfactualSubjects(tuple(counterfactual))
    if second_prompt is not None:
        given["second"] = OtherPrompt(second_prompt, second_subject, align=align)
    if placebo is not None:
        given["placebo"] = OtherPrompt(placebo, placebo_subject)
    if mean_over:
        given["mean_over"] = tuple(mean_over)
    of_maps = {name: given.pop(name) for name in record_fields(MapSpec) if name in given}
    if ablate is not None:
        of_maps["source"] = ablate
    specs = _maps(kinds, of_maps, severed, placebo is not None)
    # Nothing is corrupted only if all maps are made in the clean run.
    first = next((spec for spec in specs.values() if not spec.in_clean_run), next(iter(specs.values())))
    request, _, options = trace_records(text, given, (first,))
    tracer = load_tracer(model, revision, dtype, device, device_map, quiet=quiet)
    with progress_reporter("restored runs", quiet=quiet) as report:
        flows = tracer.trace_maps(request, specs, options, progress=report)
    outputs.write(flows)


def _maps(
    kinds: list[SiteName], given: dict[str, Any], severed: Literal["mlp", "attention"] | None, placebo: bool
) -> dict[str, MapSpec]:
    """Return the maps of these kinds, with `given` as fields of each `MapSpec`."""
    token = given.pop("token", None)
    at_a_token = [kind for kind in kinds if SITES[kind].rows != "tokens" or SITES[kind].blocks]
    if token is not None and not at_a_token:
        raise SettingsError(
            f"--token {token} is only for maps of heads and knockouts. Add --kind head or --kind knockout."
        )

    def of(kind: SiteName, **controls: Any) -> MapSpec:
        return MapSpec(kind=kind, token=token if kind in at_a_token else None, **given, **controls)

    specs: dict[str, MapSpec] = {kind: of(kind) for kind in kinds}
    if "source" in given and (placebo or severed):
        raise SettingsError(
            "--ablate cannot be combined with --placebo or --severed. Leave them out, or run the command twice."
        )
    if severed is not None:
        specs[f"hidden-severed-{severed}"] = of("hidden", severed=severed)
    if placebo:
        specs |= {f"{kind}-placebo": of(kind, source="placebo") for kind in kinds if not SITES[kind].blocks}
    return specs
