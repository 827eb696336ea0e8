"""The `study` command: maps of many facts, averaged by token role."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from causal_tracer.cli.options import EXPERIMENT, MODEL, Device, Dtype, Model, Revision, given_options, with_fields
from causal_tracer.cli.progress import progress_reporter
from causal_tracer.corruption import NoiseRule, SubjectsNoise
from causal_tracer.experiment.set_up import TracingContext
from causal_tracer.request.record import record_fields
from causal_tracer.request.records import MapSpec, RunOptions, TraceRequest, trace_records, with_clean_run_defaults
from causal_tracer.request.sites import KINDS, SITES, require_site
from causal_tracer.study.cost import estimate_cost
from causal_tracer.study.facts import Fact, alternating_relations, facts_digest, load_facts
from causal_tracer.study.runner import StudyOutcome, run_study
from causal_tracer.study.settings import FACT_FIELDS, StudySettings, study_maps
from causal_tracer.study.team import join_team, leave_team, own_devices
from causal_tracer.tracer import CausalTracer

PARTIAL, FAILED = 3, 1
_REPORT = "Report"

Facts = Annotated[
    str,
    typer.Option(
        help='The facts: a file (.json, .jsonl, .csv, .parquet), a data set of the hub ("id:split"), or "shipped".'
    ),
]
Out = Annotated[Path, typer.Option(help="The study's folder. The same command continues a study that is in it.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Trace this many facts, one of each relation in turn.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Trace facts again that failed before.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Estimate the cost. Write nothing.")]
Processes = Annotated[
    int, typer.Option(min=1, help="With --dry-run: the number of processes that will share the work.")
]
GpusPerReplica = Annotated[
    int,
    typer.Option(min=1, help="Split each process's model over this many GPUs.", rich_help_panel=MODEL),
]
OneSeed = Annotated[
    bool,
    typer.Option("--one-seed", help="Use the same noise for all facts, as ROME does.", rich_help_panel=EXPERIMENT),
]
Noise = Annotated[
    str | None,
    typer.Option(
        help='The noise level: a number, a multiple such as "2 sigma", or "subjects" for three standard deviations '
        "of the subjects' embeddings, as in ROME.",
        rich_help_panel=EXPERIMENT,
    ),
]
Kinds = Annotated[
    list[str] | None,
    typer.Option(
        help="A kind of map to make. Can be repeated. By default hidden, mlp and attention.",
        rich_help_panel=EXPERIMENT,
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        min=1, help="Number of layers patched together, for all kinds except hidden.", rich_help_panel=EXPERIMENT
    ),
]
Severed = Annotated[bool, typer.Option(help="Also make severed maps (ROME, Figure 3).", rich_help_panel=EXPERIMENT)]
Placebo = Annotated[bool, typer.Option(help="Also make placebo maps.", rich_help_panel=EXPERIMENT)]
CompareWith = Annotated[
    list[Path] | None,
    typer.Option(
        help="The folder of another study to compare with in the report. Can be repeated.", rich_help_panel=_REPORT
    ),
]
Report = Annotated[bool, typer.Option(help="Write report.html into the folder.", rich_help_panel=_REPORT)]
ReportOnly = Annotated[
    bool,
    typer.Option(
        "--report-only", help="Write the report of the facts traced so far. Trace nothing.", rich_help_panel=_REPORT
    ),
]
PushToHub = Annotated[
    str | None,
    typer.Option(
        help="Upload the study to this data set of the hub. A new data set is private.", rich_help_panel=_REPORT
    ),
]


@with_fields(
    {StudySettings: EXPERIMENT, TraceRequest: EXPERIMENT, MapSpec: EXPERIMENT, RunOptions: MODEL},
    without=(*FACT_FIELDS, *"facts_digest request maps options seed_rule source positions token mean_over".split()),
)
def study(
    context: typer.Context,
    model: Model = "embedded",
    facts: Facts = "shipped",
    out: Out = Path("study"),
    limit: Limit = None,
    retry_failed: RetryFailed = False,
    dry_run: DryRun = False,
    processes: Processes = 1,
    revision: Revision = None,
    dtype: Dtype = None,
    device: Device = None,
    gpus_per_replica: GpusPerReplica = 1,
    one_seed: OneSeed = False,
    noise: Noise = None,
    kind: Kinds = None,
    window: Window = None,
    severed: Severed = True,
    placebo: Placebo = True,
    compare_with: CompareWith = None,
    report: Report = True,
    report_only: ReportOnly = False,
    push_to_hub: PushToHub = None,
    **given: Any,
) -> None:
    """Trace many facts and average them by token role.

    Writes Parquet files, a manifest and a report into the folder. The same command continues a study that was stopped.
    To share a study between processes: accelerate launch -m causal_tracer study ... The seed also draws placebos and
    audited cells.

    Exit status: 0 complete, 3 partial (some facts failed), 1 failed.
    """
    if report_only:
        _write_report(out, compare_with or [])
        return
    _show_own_devices(gpus_per_replica)
    loaded = load_facts(facts)
    options = given_options(context, given) | ({} if noise is None else {"noise": _number_or_text(noise)})
    settings = _settings(
        with_clean_run_defaults(options)
        if kind and all(SITES[require_site(each)].blocks for each in kind)
        else options,
        partial(study_maps, kinds=kind or KINDS, window=window, severed=severed, placebo=placebo),
        model=model,
        revision=revision,
        dtype=dtype,
        facts=Path(facts).name if Path(facts).is_file() else facts,
        facts_digest=facts_digest(loaded),
        seed_rule="one" if one_seed else "per fact",
    )
    load = partial(_context, settings, noise_rule(settings, loaded), device, gpus_per_replica)
    if dry_run:
        wanted = alternating_relations(loaded)[:limit]
        typer.echo(estimate_cost(load(), settings, loaded, wanted, processes=processes).text())
        return
    run = partial(run_study, out, settings, loaded, load, limit=limit, retry_failed=retry_failed)
    _run(run, (compare_with or []) if report else None, push_to_hub)


def _show_own_devices(gpus_per_replica: int) -> None:
    """Hide all GPUs from this process except its own. Must be called before CUDA is first used."""
    if gpus_per_replica > 1 or "LOCAL_RANK" in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = own_devices(os.environ, gpus_per_replica)


def _settings(given: dict[str, Any], maps: Callable[[MapSpec], dict[str, MapSpec]], **own: Any) -> StudySettings:
    """Return the study's settings.

    Args:
        given: Options that are fields of `StudySettings` or of the records in it. Fields of `StudySettings` are
            removed from it.
        maps: Returns the study's maps, from the map that they all share settings with.
        own: Other fields of `StudySettings`.
    """
    own |= {name: given.pop(name) for name in record_fields(StudySettings) if name in given}
    if own.get("pairs") and "metric" not in given:
        given["metric"] = "logit difference"
    request, spec, options = trace_records("", given)
    return StudySettings(request=request, maps=maps(spec), options=options, **own)


def _number_or_text(noise: str) -> float | str:
    try:
        return float(noise)
    except ValueError:
        return noise


def noise_rule(settings: StudySettings, facts: Sequence[Fact]) -> NoiseRule:
    """Return the noise rule for the tracer: the study's noise, or for "subjects" a rule with the facts' subjects."""
    noise = settings.request.noise
    return SubjectsNoise(tuple(fact.subject for fact in facts)) if noise == "subjects" else noise


def _context(settings: StudySettings, noise: NoiseRule, device: str | None, gpus_per_replica: int) -> TracingContext:
    tracer = CausalTracer.from_pretrained(
        settings.model,
        noise=noise,
        revision=settings.revision,
        dtype=settings.dtype,
        device=device,
        device_map="auto" if gpus_per_replica > 1 else None,
        progress=sys.stderr.isatty(),
    )
    return tracer.context


def _run(run: Callable[..., StudyOutcome], compare_with: list[Path] | None, push_to_hub: str | None) -> None:
    """Run a study in this process or team of processes, and exit with its status. Only rank 0 prints and uploads."""
    team = join_team()
    try:
        with progress_reporter("facts" if team.size == 1 else f"facts of process {team.rank}") as report:
            outcome = run(team=team, progress=report)
        if team.rank == 0:
            _print_outcome(outcome, compare_with, push_to_hub)
    finally:
        leave_team(team)
    if outcome.state != "complete":
        raise typer.Exit(PARTIAL if outcome.state == "partial" else FAILED)


def _print_outcome(outcome: StudyOutcome, compare_with: list[Path] | None, push_to_hub: str | None) -> None:
    """Print the outcome. Write the report unless `compare_with` is None. Upload the study if `push_to_hub` is given."""
    counts = ", ".join(f"{number} {status}" for status, number in outcome.counts.items())
    typer.echo(f"{outcome.folder}: {outcome.state} ({counts})")
    for found in outcome.audit:
        typer.echo(f"audit of {found.map_name}: {found.cells} cells, largest difference {found.largest:.1e}")
    if compare_with is not None and outcome.counts.get("traced"):
        _write_report(outcome.folder, compare_with)
    if push_to_hub is not None:
        from causal_tracer.study.publish import push_to_hub as push

        typer.echo(f"uploaded: {push(outcome.folder, push_to_hub)}")


def _write_report(folder: Path, compare_with: list[Path]) -> None:
    from causal_tracer.study.report import write_report

    typer.echo(f"report: {write_report(folder, compare_with)}")
