"""The `study` command. Importing it is cheap: what it runs is imported when it runs."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from causal_tracer.corruption import NoiseRule
    from causal_tracer.experiment.set_up import TracingContext
    from causal_tracer.request.sites import LayerKind
    from causal_tracer.study.facts import Fact
    from causal_tracer.study.runner import StudyOutcome
    from causal_tracer.study.settings import StudySettings
    from causal_tracer.study.team import Team

PARTIAL, FAILED = 3, 1


def study(
    model: Annotated[
        str, typer.Option(help="The model: an embedded name, a folder, a .gguf file, or a hub id.")
    ] = "embedded",
    facts: Annotated[
        str, typer.Option(help='A file (.json, .jsonl, .csv, .parquet), a data set ("id:split"), or "shipped".')
    ] = "shipped",
    out: Annotated[Path, typer.Option(help="The study's folder. The same command goes on with what is there.")] = Path(
        "study"
    ),
    limit: Annotated[int | None, typer.Option(min=1, help="Trace this many facts, of each relation in turn.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Noise samples of each fact.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of noise, placebos, audit and intervals.")] = 1,
    one_seed: Annotated[bool, typer.Option("--one-seed", help="Give all facts the same noise, as ROME does.")] = False,
    noise: Annotated[
        str | None,
        typer.Option(help='A level, "2 sigma", or "subjects": 3 sd of the subjects\' embeddings, as in ROME.'),
    ] = None,
    metric: Annotated[str, typer.Option(help="What is read off the logits.")] = "probability",
    kind: Annotated[list[str] | None, typer.Option(help="A kind to trace; may be given again. All by default.")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Layers restored together, for MLP and attention.")] = None,
    severed: Annotated[bool, typer.Option(help="Make severed maps (ROME, Figure 3).")] = True,
    placebo: Annotated[bool, typer.Option(help="Make placebo maps.")] = True,
    controls_everywhere: Annotated[
        bool, typer.Option("--controls-everywhere", help="Make severed and placebo maps at all tokens, not only two.")
    ] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows that go through the model together.")] = None,
    audit_share: Annotated[float, typer.Option(min=0, max=1, help="Share of cells checked by the full sweep.")] = 0.005,
    audit_limit: Annotated[float | None, typer.Option(min=0, help="Difference at which the study stops.")] = None,
    revision: Annotated[str | None, typer.Option(help="A hub model's branch, tag or commit.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or auto.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to put the model, if not on a GPU that is there.")] = None,
    gpus_per_replica: Annotated[
        int, typer.Option(min=1, help="Spread each process's model over this many GPUs of its own.")
    ] = 1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try facts again that failed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it will cost; write nothing.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="With --dry-run: processes that will share the work.")] = 1,
    compare_with: Annotated[list[Path] | None, typer.Option(help="Another study's folder, for the report.")] = None,
    report: Annotated[bool, typer.Option(help="Write report.html into the folder.")] = True,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Write the report of what is there; trace nothing.")
    ] = False,
    push_to_hub: Annotated[str | None, typer.Option(help="Upload it as this data set, private if it is new.")] = None,
) -> None:
    """Trace many facts and average them by token role.

    The folder gets Parquet files, a manifest and a report. A study that was stopped, however, goes on where it was when
    the same command is given again. Several processes share one: accelerate launch -m causal_tracer study ...

    Exit status: 0 complete, 3 partial (facts failed and were set aside), 1 failed.
    """
    if report_only:
        from causal_tracer.study.report import write_report

        typer.echo(f"report: {write_report(out, compare_with or [])}")
        return
    if gpus_per_replica > 1 or "LOCAL_RANK" in os.environ:
        from causal_tracer.study.team import own_devices

        # Before CUDA is first used.
        os.environ["CUDA_VISIBLE_DEVICES"] = own_devices(os.environ, gpus_per_replica)
    from causal_tracer.study.facts import facts_digest, load_facts
    from causal_tracer.study.settings import StudySettings
    from causal_tracer.study.team import join_team, leave_team

    loaded = load_facts(facts)
    kinds, windows = _kinds(kind, window)
    settings = StudySettings(
        model=model,
        facts=Path(facts).name if Path(facts).is_file() else facts,
        facts_digest=facts_digest(loaded),
        revision=revision,
        dtype=dtype,
        noise=_number_or_text(noise),
        samples=samples,
        seed=seed,
        seed_rule="one" if one_seed else "per fact",
        metric=metric,
        kinds=kinds,
        windows=windows,
        severed=severed,
        placebo=placebo,
        controls_everywhere=controls_everywhere,
        batch_size=batch_size,
        audit_share=audit_share,
        audit_limit=audit_limit,
    )
    load = functools.partial(_context, settings, noise_rule(settings, loaded), device, gpus_per_replica)
    if dry_run:
        _dry_run(settings, loaded, limit, load, processes)
        return
    team = join_team()
    try:
        outcome = _run(settings, loaded, limit, out, team, load, retry_failed)
        if team.rank == 0:
            _tell(outcome, report, compare_with or [])
            if push_to_hub is not None:
                from causal_tracer.study.publish import push_to_hub as push

                typer.echo(f"uploaded: {push(out, push_to_hub)}")
    finally:
        leave_team(team)
    if outcome.state != "complete":
        raise typer.Exit(PARTIAL if outcome.state == "partial" else FAILED)


def _kinds(kinds: list[str] | None, window: int | None) -> tuple[tuple[LayerKind, ...], tuple[int, ...]]:
    from causal_tracer.request.sites import DEFAULT_WINDOWS, KINDS, require_kind

    chosen = tuple(require_kind(kind) for kind in kinds or KINDS)
    return chosen, tuple(
        window if window is not None and kind != "hidden" else DEFAULT_WINDOWS[kind] for kind in chosen
    )


def _number_or_text(noise: str | None) -> float | str | None:
    try:
        return None if noise is None else float(noise)
    except ValueError:
        return noise


def noise_rule(settings: StudySettings, facts: Sequence[Fact]) -> NoiseRule:
    """The rule that a tracer takes: a study's own, with its facts' subjects where they are asked for."""
    from causal_tracer.corruption import SubjectsNoise

    return SubjectsNoise(tuple(fact.subject for fact in facts)) if settings.noise == "subjects" else settings.noise


def _context(settings: StudySettings, noise: NoiseRule, device: str | None, gpus_per_replica: int) -> TracingContext:
    from causal_tracer.tracer import CausalTracer

    spread = "auto" if gpus_per_replica > 1 else None
    tracer = CausalTracer.from_pretrained(
        settings.model,
        noise=noise,
        revision=settings.revision,
        dtype=settings.dtype,
        device=device,
        device_map=spread,
        progress=sys.stderr.isatty(),
    )
    return tracer.context


def _dry_run(
    settings: StudySettings,
    facts: tuple[Fact, ...],
    limit: int | None,
    load: Callable[[], TracingContext],
    processes: int,
) -> None:
    from causal_tracer.study.cost import estimate_cost
    from causal_tracer.study.facts import alternating_relations

    wanted = alternating_relations(facts)[:limit]
    estimate = estimate_cost(load(), settings, facts, wanted, processes=processes)
    typer.echo(estimate.text())


def _run(
    settings: StudySettings,
    facts: tuple[Fact, ...],
    limit: int | None,
    out: Path,
    team: Team,
    load: Callable[[], TracingContext],
    retry_failed: bool,
) -> StudyOutcome:
    from causal_tracer.cli.progress import progress_reporter
    from causal_tracer.study.runner import run_study

    with progress_reporter("facts" if team.size == 1 else f"facts of process {team.rank}") as report:
        return run_study(
            out,
            settings,
            facts,
            load,
            team,
            limit=limit,
            retry_failed=retry_failed,
            progress=report,
        )


def _tell(outcome: StudyOutcome, report: bool, compare_with: list[Path]) -> None:
    """Say on stdout what came of it, and write the report."""
    counts = ", ".join(f"{number} {status}" for status, number in outcome.counts.items())
    typer.echo(f"{outcome.folder}: {outcome.state} ({counts})")
    for found in outcome.audit:
        typer.echo(f"audit of {found.map_name}: {found.cells} cells, largest difference {found.largest:.1e}")
    if report and outcome.counts.get("traced"):
        from causal_tracer.study.report import write_report

        typer.echo(f"report: {write_report(outcome.folder, compare_with)}")
