"""The `reproduce` commands: run a paper's experiment and compare the results with the published numbers.

Exit status: 0 the numbers agree, or there is no verdict · 1 a number does not agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causal_tracer.cli.inputs import load_tracer
from causal_tracer.cli.options import EXPERIMENT, Device, Dtype, Model, Revision
from causal_tracer.cli.output import Quiet, describe
from causal_tracer.cli.progress import progress_reporter
from causal_tracer.cli.study import Facts, Limit, noise_rule
from causal_tracer.reproduce import published
from causal_tracer.reproduce.dissecting_recall import recall_curves, recall_settings, recall_verdict
from causal_tracer.reproduce.rome_averages import averages_settings, averages_verdict
from causal_tracer.reproduce.rome_figure_1 import figure_verdict, trace_figure
from causal_tracer.reproduce.verdict import Verdict
from causal_tracer.request.sites import SITES
from causal_tracer.results.labels import map_title
from causal_tracer.study.facts import Fact, facts_digest, load_facts
from causal_tracer.study.records import ROLES
from causal_tracer.study.runner import run_study
from causal_tracer.study.settings import StudySettings
from causal_tracer.study.stored import StoredStudy

if TYPE_CHECKING:
    import plotly.graph_objects as go

FAILED = 1
_SHORT_NAME = "gpt2-xl"

Out = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Write the figure, the maps and the verdict into this folder.")
]
StudyOut = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER",
        help="The folder for the study, the figure and the verdict. The same command continues a study that is in it.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be computed. Load and write nothing.")]
Noise = Annotated[
    float,
    typer.Option(
        min=0, help="Noise level. Change it for models whose embeddings have another scale.", rich_help_panel=EXPERIMENT
    ),
]
Samples = Annotated[int, typer.Option(min=1, help="Number of noise samples for each fact.", rich_help_panel=EXPERIMENT)]


def rome_figure_1(
    model: Model = _SHORT_NAME,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = None,
    noise: Noise = published.FIGURE_1_NOISE,
    out: Out = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Draw Figure 1 e-g of Meng et al. 2022 (ROME), three maps of one prompt, and compare them with the published ones.

    There is a verdict only for GPT-2 XL in float32 with the figure's noise. Other models give the figure alone.
    """
    name = _model_id(model)
    if dry_run:
        typer.echo(_figure_plan(name, dtype, noise))
        return
    tracer = load_tracer(name, revision, dtype, device, None, quiet=quiet)
    with progress_reporter("restored runs", quiet=quiet) as report:
        flows = trace_figure(tracer, noise, report)
    verdict = figure_verdict(flows, type(tracer.model).__name__)
    if not quiet:
        for kind, flow in flows.items():
            typer.echo("\n".join([*describe(kind, flow), ""]))
    if out is not None:
        from causal_tracer.plots.heatmap import plot_hidden_flow_heatmap
        from causal_tracer.reproduce.files import write_verdict

        for kind, flow in flows.items():
            flow.save(out / f"{kind}.json")
        figures = {map_title(flow): plot_hidden_flow_heatmap(flow, show=False, title="") for flow in flows.values()}
        made = {kind: asdict(flow.settings) for kind, flow in flows.items()}
        write_verdict(out, f"Figure 1 e-g of Meng et al. 2022: {name}", verdict, figures, made)
    _print_verdict(verdict, out)


def rome_averages(
    model: Model = _SHORT_NAME,
    facts: Facts = "shipped",
    out: StudyOut = Path("rome-averages"),
    limit: Limit = None,
    samples: Samples = published.AVERAGES_SAMPLES,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Average maps over facts as in Meng et al. 2022 (ROME), and compare effects and probabilities with the paper's.

    There is a verdict only for GPT-2 XL in float32 on all of the paper's facts (--facts known_1000.json).
    """
    loaded = load_facts(facts)
    settings = averages_settings(samples, **_model_and_facts(model, facts, loaded, revision, dtype))
    if dry_run:
        typer.echo(_study_plan(settings, loaded[:limit], len(published.AVERAGES)))
        return
    study = _study(settings, loaded, out, limit, device, quiet)
    verdict = averages_verdict(study)
    means = {kind: study.effects.mean(effects) for kind, effects in study.effects.maps.items()}
    _write_study(
        study, verdict, "Averages over facts (Meng et al. 2022)", ("map", "lines"), means, dict.fromkeys(means, ROLES)
    )
    _print_verdict(verdict, out)


def dissecting_recall(
    model: Model = _SHORT_NAME,
    facts: Facts = "shipped",
    out: StudyOut = Path("dissecting-recall"),
    limit: Limit = None,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Draw the three attention-knockout curves of Geva et al. 2023, and compare their order with the paper's.

    There is a verdict only for GPT-2 XL in float32 on all of the paper's facts (--facts known_1000.json).
    """
    loaded = load_facts(facts)
    settings = recall_settings(**_model_and_facts(model, facts, loaded, revision, dtype))
    if dry_run:
        typer.echo(_study_plan(settings, loaded[:limit], len(published.RECALL)))
        return
    study = _study(settings, loaded, out, limit, device, quiet)
    verdict, curves = recall_verdict(study), recall_curves(study.effects)
    _write_study(study, verdict, "Attention knockout (Geva et al. 2023)", ("spans",), curves, dict.fromkeys(curves, ()))
    _print_verdict(verdict, out)


COMMANDS: Mapping[str, Callable[..., None]] = {
    "rome-figure-1": rome_figure_1,
    "rome-averages": rome_averages,
    "dissecting-recall": dissecting_recall,
}
"""The subcommands of `reproduce` by name."""


def _model_id(model: str) -> str:
    """Return the hub id for the short name of the papers' model, unless a local folder has that name."""
    return published.PAPER_MODEL if model == _SHORT_NAME and not Path(model).exists() else model


def _model_and_facts(
    model: str, facts: str, loaded: Sequence[Fact], revision: str | None, dtype: str | None
) -> dict[str, str | None]:
    return {
        "model": _model_id(model),
        "facts": Path(facts).name if Path(facts).is_file() else facts,
        "facts_digest": facts_digest(loaded),
        "revision": revision,
        "dtype": dtype,
    }


def _study(
    settings: StudySettings, facts: Sequence[Fact], out: Path, limit: int | None, device: str | None, quiet: bool
) -> StoredStudy:
    def load() -> Any:
        noise = noise_rule(settings, facts)
        named = (settings.model, settings.revision, settings.dtype)
        return load_tracer(*named, device, None, quiet=quiet, noise=noise).context

    with progress_reporter("facts", quiet=quiet) as report:
        run_study(out, settings, facts, load, limit=limit, progress=report, retry_failed=True)
    return StoredStudy.open(out)


def _write_study(
    study: StoredStudy,
    verdict: Verdict,
    title: str,
    figures: tuple[str, ...],
    means: Mapping[str, Any],
    rows: Mapping[str, tuple[str, ...]],
) -> None:
    from causal_tracer.reproduce.files import write_means, write_verdict
    from causal_tracer.study.figures import study_figures, title_and_caption

    direction = study.settings.request.direction
    drawn: dict[str, go.Figure] = {
        title_and_caption(name, direction)[1]: figure
        for name, figure in study_figures(study.effects).items()
        if name.startswith(figures)
    }
    named = f"{title}: {study.model}, {len(study.effects.facts)} facts"
    write_verdict(
        study.folder,
        named,
        verdict,
        drawn,
        {name: study.manifest[name] for name in ("model", "environments", "facts", "settings")},
    )
    write_means(study.folder / "means.json", rows, means)


def _print_verdict(verdict: Verdict, out: Path | None) -> None:
    """Print where files were written and the verdict. Exit with status 1 if the verdict is FAIL."""
    if out is not None:
        typer.echo(f"written to {out}\n")
    typer.echo(verdict.text())
    if verdict.state == "FAIL":
        raise typer.Exit(FAILED)


def _figure_plan(model: str, dtype: str | None, noise: float) -> str:
    tokens, layers = len(published.FIGURE_1_TOKENS), published.PAPER_LAYERS
    samples, seed, window = published.FIGURE_1_SAMPLES, published.FIGURE_1_SEED, published.FIGURE_1_WINDOW
    return "\n".join(
        [
            f"model    {model}, {dtype or 'its own dtype'}",
            f"prompt   {published.FIGURE_1_PROMPT!r}, subject {published.FIGURE_1_SUBJECT!r}, answer "
            f"{published.FIGURE_1_ANSWER!r}",
            f"noise    {noise:g} * numpy.random.RandomState({seed}).randn({samples}, subject tokens, d_model)",
            f"maps     hidden states of single layers; MLP and attention outputs in windows of {window} "
            f"(centre c: layers c-{window // 2} to c+{window // 2 - 1})",
            f"size     {tokens} tokens x {layers} layers x 3 maps = {3 * tokens * layers} cells on GPT-2 XL, "
            f"{samples} samples each",
            f"verdict  {len(published.FIGURE_1)} checks, for GPT-2 XL in float32 with noise "
            f"{published.FIGURE_1_NOISE:g} only",
        ]
    )


def _study_plan(settings: StudySettings, facts: Sequence[Fact], checks: int) -> str:
    noise = (
        "none"
        if settings.request.corruption == "none"
        else f"3 sd of the subjects' embeddings, {settings.samples} samples, one seed"
    )
    maps = (f"{SITES[spec.kind].label} (window {spec.window})" for spec in settings.maps.values())
    whose = "ROME's" if settings.facts_digest == published.PAPER_FACTS_DIGEST else "not ROME's known_1000.json"
    return "\n".join(
        [
            f"model    {settings.model}, {settings.dtype or 'its own dtype'}",
            f"facts    {len(facts)} of {settings.facts} ({whose})",
            f"noise    {noise}",
            f"maps     {', '.join(maps)} of each fact that the model knows",
            f"verdict  {checks} checks, for GPT-2 XL in float32 on all of ROME's {published.PAPER_FACTS} facts only",
        ]
    )
