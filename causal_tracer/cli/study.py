"""The `study` command."""

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
    str, typer.Option(help='A file (.json, .jsonl, .csv, .parquet), a data set ("id:split"), or "shipped".')
]
Out = Annotated[Path, typer.Option(help="The study's folder. The same command continues what is there.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Trace this many facts, of each relation in turn.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Try facts again that failed before.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Estimate the cost; write nothing.")]
Processes = Annotated[int, typer.Option(min=1, help="With --dry-run: processes that will share the work.")]
GpusPerReplica = Annotated[
    int,
    typer.Option(min=1, help="Spread each process's model over this many GPUs of its own.", rich_help_panel=MODEL),
]
OneSeed = Annotated[
    bool,
    typer.Option("--one-seed", help="Give all facts the same noise, as ROME does.", rich_help_panel=EXPERIMENT),
]
Noise = Annotated[
    str | None,
    typer.Option(
        help='A level, "2 sigma", or "subjects": 3 sd of the subjects\' embeddings, as in ROME.',
        rich_help_panel=EXPERIMENT,
    ),
]
Kinds = Annotated[
    list[str] | None,
    typer.Option(
        help="A kind to trace; may be given again. By default hidden, mlp and attention.",
        rich_help_panel=EXPERIMENT,
    ),
]
Window = Annotated[
    int | None,
    typer.Option(min=1, help="Layers patched together, of all kinds but hidden.", rich_help_panel=EXPERIMENT),
]
Severed = Annotated[bool, typer.Option(help="Make severed maps (ROME, Figure 3).", rich_help_panel=EXPERIMENT)]
Placebo = Annotated[bool, typer.Option(help="Make placebo maps.", rich_help_panel=EXPERIMENT)]
CompareWith = Annotated[
    list[Path] | None, typer.Option(help="Another study's folder, for the report.", rich_help_panel=_REPORT)
]
Report = Annotated[bool, typer.Option(help="Write report.html into the folder.", rich_help_panel=_REPORT)]
ReportOnly = Annotated[
    bool,
    typer.Option("--report-only", help="Write the report of the facts done; trace nothing.", rich_help_panel=_REPORT),
]
PushToHub = Annotated[
    str | None, typer.Option(help="Upload it as this data set, private if it is new.", rich_help_panel=_REPORT)
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

    The folder gets Parquet files, a manifest and a report. The same command continues a study that was stopped. Several
    processes share a study: accelerate launch -m causal_tracer study ... The seed also draws placebos and audits.

    Exit status: 0 complete, 3 partial (facts failed and were set aside), 1 failed.
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
    """Leave this process of a team its own GPUs. To be called before CUDA is first used."""
    if gpus_per_replica > 1 or "LOCAL_RANK" in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = own_devices(os.environ, gpus_per_replica)


def _settings(given: dict[str, Any], maps: Callable[[MapSpec], dict[str, MapSpec]], **own: Any) -> StudySettings:
    """Return the study's settings, from options that are fields of the records in it."""
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
    """Return the noise rule for a tracer: the study's, with its facts' subjects for "subjects"."""
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
    """Run a study, alone or as one of a team, of which one process prints and publishes; leave with its status."""
    team = join_team()
    try:
        with progress_reporter("facts" if team.size == 1 else f"facts of process {team.rank}") as report:
            outcome = run(team=team, progress=report)
        if team.rank == 0:
            _tell(outcome, compare_with, push_to_hub)
    finally:
        leave_team(team)
    if outcome.state != "complete":
        raise typer.Exit(PARTIAL if outcome.state == "partial" else FAILED)


def _tell(outcome: StudyOutcome, compare_with: list[Path] | None, push_to_hub: str | None) -> None:
    """Print the outcome; write the report, unless `compare_with` is None; upload the study where that is asked for."""
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
