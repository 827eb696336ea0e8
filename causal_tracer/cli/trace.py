"""The `trace` command: one prompt, one or several maps of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from causal_tracer.cli.output import Outputs
from causal_tracer.cli.progress import progress_reporter
from causal_tracer.corruption import Corruption, CounterfactualSubjects, NoiseRule
from causal_tracer.errors import SettingsError
from causal_tracer.prompts.chat import ChatText
from causal_tracer.request.records import Direction, HiddenFlowQuery, MapSpec, Text, TraceRequest
from causal_tracer.request.sites import LayerKind, require_kind
from causal_tracer.tracer import DEFAULT_WINDOWS, CausalTracer

_MODEL, _EXPERIMENT, _CHAT, _OUTPUT = "Model", "Experiment", "Conversation", "Output"


def trace(
    prompt: Annotated[str, typer.Argument(help="The text that the model goes on from.", show_default=False)],
    subject: Annotated[
        str | None, typer.Option("--subject", "-s", help="The part of the prompt to corrupt; guessed if not given.")
    ] = None,
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
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows that go through the model together.", rich_help_panel=_MODEL)
    ] = None,
    engine: Annotated[
        Literal["auto", "full"], typer.Option(help='"full" runs the whole model for each cell.', rich_help_panel=_MODEL)
    ] = "auto",
    audit: Annotated[
        bool, typer.Option(help="Compute a few cells again by the full sweep.", rich_help_panel=_MODEL)
    ] = True,
    samples: Annotated[int, typer.Option(min=1, help="Noise samples.", rich_help_panel=_EXPERIMENT)] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.", rich_help_panel=_EXPERIMENT)] = 1,
    window: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Layers restored together.",
            show_default="the paper's: hidden 1, mlp and attention 10",
            rich_help_panel=_EXPERIMENT,
        ),
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL|'K sigma'",
            help="Noise level: a number, or times the embeddings' deviation.",
            show_default="3 sigma",
            rich_help_panel=_EXPERIMENT,
        ),
    ] = None,
    corruption: Annotated[
        str,
        typer.Option(
            help="What is done to the subject: gaussian, uniform, either with ' replacing'; multivariate, student-t, "
            "zero, mean.",
            rich_help_panel=_EXPERIMENT,
        ),
    ] = "gaussian",
    counterfactual: Annotated[
        list[str] | None,
        typer.Option(
            help="Put this subject of as many tokens in its place, instead of noise; may be given again.",
            rich_help_panel=_EXPERIMENT,
        ),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="What is read: probability, log-probability, logit, 'logit difference', rank, 'KL from clean'.",
            rich_help_panel=_EXPERIMENT,
        ),
    ] = "probability",
    answer: Annotated[
        str | None,
        typer.Option(
            help="The answer that is read.", show_default="the model's own next token", rich_help_panel=_EXPERIMENT
        ),
    ] = None,
    foil: Annotated[
        str | None, typer.Option(help="What 'logit difference' sets the answer against.", rich_help_panel=_EXPERIMENT)
    ] = None,
    answer_form: Annotated[
        Literal["auto", "exact"],
        typer.Option(
            help='"exact" reads answer and foil right after the prompt as they are written; "auto" also tries a space '
            "before the answer and reads the more probable.",
            rich_help_panel=_EXPERIMENT,
        ),
    ] = "auto",
    direction: Annotated[
        Direction, typer.Option(help='"corrupt" puts corrupted into the clean run.', rich_help_panel=_EXPERIMENT)
    ] = "restore",
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
    occurrence: Annotated[
        Literal["first", "last"],
        typer.Option(help="Which one, where the subject is there more than once.", rich_help_panel=_EXPERIMENT),
    ] = "last",
    start_layer: Annotated[int, typer.Option(min=0, help="First layer.", rich_help_panel=_EXPERIMENT)] = 0,
    end_layer: Annotated[
        int | None, typer.Option(min=1, help="One past the last layer.", rich_help_panel=_EXPERIMENT)
    ] = None,
    subject_tokens_only: Annotated[
        bool, typer.Option("--subject-tokens-only", help="Restore at these only.", rich_help_panel=_EXPERIMENT)
    ] = False,
    top_tokens: Annotated[
        int, typer.Option(min=0, help="Keep this many next tokens for each cell.", rich_help_panel=_EXPERIMENT)
    ] = 0,
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
) -> None:
    """Trace one prompt: where does restoring an activation bring the answer back?

    Example: causal-tracer trace "The Space Needle is located in the city of" -s "Space Needle" -k mlp --html map.html
    """
    outputs = Outputs(json_to, csv_to, html_to, image_to, quiet)
    kinds = [require_kind(name) for name in dict.fromkeys(kind or ["hidden"])]
    specs = _maps(kinds, window, severed, placebo is not None)
    text: Text = prompt
    if chat:
        text = ChatText.from_user(prompt, system=system, thinking=thinking, assistant_prefix=assistant_prefix)
    elif system is not None or thinking is not None or assistant_prefix:
        raise SettingsError("--system, --thinking and --assistant-prefix belong to conversations: add --chat.")
    request = TraceRequest(
        text,
        subject,
        samples=samples,
        seed=seed,
        batch_size=batch_size,
        start_layer=start_layer,
        end_layer=end_layer,
        subject_tokens_only=subject_tokens_only,
        occurrence=occurrence,
        engine=engine,
        audit=audit,
        answer=answer,
        foil=foil,
        answer_form=answer_form,
        corruption=_corruption(corruption, counterfactual),
        metric=metric,
        direction=direction,
        top_tokens=top_tokens,
        placebo=None if placebo is None else HiddenFlowQuery(placebo, placebo_subject),
    )
    places: dict[str, Any] = {"revision": revision, "dtype": dtype, "device": device, "device_map": device_map}
    tracer = _load(model, noise, places, quiet)
    with progress_reporter("restored runs", quiet=quiet) as report:
        flows = tracer.trace_maps(request, specs, progress=report)
    outputs.write(flows)


def _maps(
    kinds: list[LayerKind], window: int | None, severed: Literal["mlp", "attention"] | None, placebo: bool
) -> dict[str, MapSpec]:
    def wide(kind: LayerKind) -> int:
        return DEFAULT_WINDOWS[kind] if window is None else window

    specs: dict[str, MapSpec] = {kind: MapSpec(kind, wide(kind)) for kind in kinds}
    if severed is not None:
        specs[f"hidden-severed-{severed}"] = MapSpec("hidden", wide("hidden"), severed=severed)
    if placebo:
        specs |= {f"{kind}-placebo": MapSpec(kind, wide(kind), placebo=True) for kind in kinds}
    return specs


def _corruption(name: str, counterfactual: list[str] | None) -> str | Corruption:
    return CounterfactualSubjects(tuple(counterfactual)) if counterfactual else name


def _load(model: str, noise: str | None, places: dict[str, Any], quiet: bool) -> CausalTracer:
    from transformers.utils import logging as transformers_logging

    shown = not quiet and sys.stderr.isatty()
    if not shown:
        transformers_logging.disable_progress_bar()
    try:
        level: NoiseRule = None if noise is None else float(noise)
    except ValueError:
        level = noise
    return CausalTracer.from_pretrained(model, noise=level, progress=shown, **places)
