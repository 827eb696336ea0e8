"""Running a study: what is missing is dealt out, traced, written down; then the Parquet files are made."""

from __future__ import annotations

import logging
import math
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from causal_tracer.errors import CausalTracerError, StudyError
from causal_tracer.experiment.set_up import TracingContext
from causal_tracer.study.audit import AuditSummary, audit_summary, check_audit
from causal_tracer.study.facts import Fact, alternating_relations
from causal_tracer.study.journal import Journal
from causal_tracer.study.records import FactRecord
from causal_tracer.study.settings import StudySettings
from causal_tracer.study.store import compact, read_manifest, read_records, require_tables, write_manifest
from causal_tracer.study.team import Team
from causal_tracer.study.tracing import never, placebo_for, study_fact
from causal_tracer.version import __version__

logger = logging.getLogger(__name__)

State = Literal["complete", "partial", "failed"]
Progress = Callable[[int, int], None]
"""Called with (facts done, facts of this process in all)."""


@dataclass(frozen=True)
class StudyOutcome:
    """What a study has come to.

    Attributes:
        state: "complete", "partial" (facts failed and were set aside), or "failed" (none was traced).
        counts: Number of facts by status.
        audit: The audit of each kind.
        folder: Where the study is.
    """

    state: State
    counts: dict[str, int]
    audit: tuple[AuditSummary, ...]
    folder: Path


def run_study(
    folder: Path,
    settings: StudySettings,
    facts: Sequence[Fact],
    load: Callable[[], TracingContext],
    team: Team | None = None,
    *,
    limit: int | None = None,
    retry_failed: bool = False,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = never,
) -> StudyOutcome:
    """Trace the facts that a study's folder lacks, and compact it.

    The same call goes on with a study that was stopped at any moment, with any number of processes: work is dealt out
    by what is missing. Another limit than before may be asked for; other settings are refused.

    Args:
        folder: The study's folder, made if it is not there. Processes on several hosts need a shared one.
        settings: How facts are traced.
        facts: The whole set of facts.
        load: Loads the model; called only where there is work.
        team: The processes that share the work.
        limit: Trace this many of them, of each relation in turn; None traces all.
        retry_failed: Try facts again that failed before.
        progress: Called after each fact.
        cancelled: Asked as it goes; True stops it. What is done stays.

    Raises:
        StudyError: The folder is in use, damaged, of other settings, or the audit found a wrong cell.
        CausalTracerError: The model could not be loaded.
        TraceCancelled: `cancelled` said so.
    """
    require_tables()
    team = team or Team()
    wanted = alternating_relations(facts)[:limit]
    lock = FileLock(folder / ".lock")
    try:
        missing = _agreed(team, lambda: _begin(folder, lock, settings, wanted, retry_failed))
        own = team.own([fact for fact in wanted if fact.fact_id in missing])
        context = load() if own else None
        seen = None if context is None else _model_facts(context)
        expected = _agreed(team, lambda: _recognise(folder, settings, seen))
        if context is not None and seen is not None:
            if not _same_model(seen, expected):
                raise StudyError(f"This process loaded another model than the first one: {seen}, not {expected}.")
            _trace_own(folder, settings, facts, own, context, progress, cancelled)
        team.wait()
        reached: StudyOutcome = _agreed(team, lambda: _finish(folder, settings, wanted))
        return reached
    finally:
        lock.release()


def outcome(folder: Path, facts: Sequence[Fact], records: Sequence[FactRecord]) -> StudyOutcome:
    """What a study has come to, as its records say."""
    wanted = {fact.fact_id for fact in facts}
    counts: Counter[str] = Counter(record.status for record in records if record.fact.fact_id in wanted)
    left = len(wanted) - counts.total()
    if left:
        counts["missing"] = left
    state: State = "complete" if not (left or counts["failed"]) else "partial"
    if not counts["traced"]:
        state = "failed"
    return StudyOutcome(state, {name: n for name, n in counts.items() if n}, audit_summary(records), folder)


def _begin(
    folder: Path, lock: FileLock, settings: StudySettings, facts: Sequence[Fact], retry_failed: bool
) -> frozenset[str]:
    """Take the folder, check that it fits, and say which facts it lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise StudyError(
            f"Another run works on the study in {str(folder)!r}. Wait for it, or give another folder. To use several "
            "processes, start them together with accelerate launch."
        ) from error
    manifest = read_manifest(folder)
    if manifest is None:
        if left := [path.name for path in folder.iterdir() if path.name != ".lock"]:
            raise StudyError(
                f"The folder {str(folder)!r} has no study in it, but {', '.join(sorted(left)[:4])}. Give an empty "
                "folder, or one that is not there yet."
            )
        write_manifest(folder, settings, {"state": "running"})
    elif changes := StudySettings.from_dict(manifest["settings"]).changes(settings):
        raise StudyError(
            f"The study in {str(folder)!r} was begun with other settings: {'; '.join(changes)}. Give those, or "
            "another folder."
        )
    records = read_records(folder)
    check_audit(records, settings, (manifest or {}).get("model", {}).get("dtype"))
    again = {"failed"} if retry_failed else set()
    done = {record.fact.fact_id for record in records if record.status not in again}
    return frozenset(fact.fact_id for fact in facts) - done


def _recognise(folder: Path, settings: StudySettings, seen: dict[str, Any] | None) -> dict[str, Any]:
    """Check the model against the one that the study was begun with, and write down what it runs on."""
    manifest = read_manifest(folder) or {}
    known: dict[str, Any] | None = manifest.get("model")
    if seen is None:
        return known or {}
    if known is not None and not _same_model(known, seen):
        raise StudyError(
            f"The study in {str(folder)!r} was begun with the model {known}, and what loads now is {seen}. Give the "
            "same one, or another folder."
        )
    environments = list(manifest.get("environments", []))
    if (here := _environment()) not in environments:
        environments.append(here)
    write_manifest(folder, settings, {"state": "running", "model": seen, "environments": environments})
    return seen


def _trace_own(
    folder: Path,
    settings: StudySettings,
    facts: Sequence[Fact],
    own: Sequence[Fact],
    context: TracingContext,
    progress: Progress | None,
    cancelled: Callable[[], bool],
) -> None:
    # Placebos come from the whole set, so that they do not depend on how much of it is asked for.
    with Journal(folder) as journal:
        for number, fact in enumerate(own, start=1):
            begun = time.perf_counter()
            record = study_fact(context, settings, fact, placebo_for(settings.seed, fact, facts), cancelled)
            record = replace(record, seconds=time.perf_counter() - begun)
            journal.append(record.to_dict())
            if record.status == "failed":
                logger.warning("The fact %r is set aside: %s", fact.prompt, record.cause)
            check_audit([record], settings, str(context.traced.dtype).removeprefix("torch."))
            if progress is not None:
                progress(number, len(own))


def _finish(folder: Path, settings: StudySettings, facts: Sequence[Fact]) -> StudyOutcome:
    records = compact(folder)
    reached = outcome(folder, facts, records)
    manifest = read_manifest(folder) or {}
    kept: dict[str, Any] = {name: manifest[name] for name in ("model", "environments") if name in manifest}
    parts: dict[str, Any] = {
        "state": reached.state,
        "facts": reached.counts,
        "seconds": sum(record.seconds for record in records),
        "audit": [summary.to_dict() for summary in reached.audit],
        **kept,
    }
    write_manifest(folder, settings, parts)
    return reached


def _agreed(team: Team, decide: Callable[[], Any]) -> Any:
    """What rank 0 finds, in every process; an error of its is raised in all, so that none waits for ever."""
    answer: tuple[Any, CausalTracerError | None] = (None, None)
    if team.rank == 0:
        try:
            answer = (decide(), None)
        except CausalTracerError as error:
            answer = (None, error)
    found, refused = team.share(answer)
    if refused is not None:
        raise refused
    return found


def _same_model(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two processes loaded the same; a noise level that was measured may round differently elsewhere."""
    close = math.isclose(one["noise"], other["noise"], rel_tol=1e-6)
    return close and all(one[name] == other[name] for name in one.keys() | other.keys() if name != "noise")


def _model_facts(context: TracingContext) -> dict[str, Any]:
    traced = context.traced
    return {
        "model": context.model_id,
        "revision": context.revision,
        "class": type(traced.model).__name__,
        "layers": traced.n_layers,
        "dtype": str(traced.dtype).removeprefix("torch."),
        "noise": context.noise,
        "noise_rule": context.noise_rule,
    }


def _environment() -> dict[str, Any]:
    """Versions and commit of what runs."""
    libraries = {name: version(name) for name in ("torch", "transformers", "numpy")}
    return {"causal_tracer": __version__, "commit": _commit(), **libraries}


@cache
def _commit() -> str | None:
    """The commit of this package's checkout, where it is one, with "-dirty" after it where files differ from it."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
