"""Running a study: processes share the missing facts, trace them, and write journals and then Parquet files."""

from __future__ import annotations

import logging
import math
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from filelock import FileLock, Timeout

from causal_tracer.errors import CausalTracerError, StudyError
from causal_tracer.experiment.set_up import TracingContext
from causal_tracer.files import PART_SUFFIX
from causal_tracer.request.record import to_data
from causal_tracer.study.audit import AuditSummary, audit_summary, check_audit
from causal_tracer.study.facts import Fact, alternating_relations
from causal_tracer.study.journal import Journal
from causal_tracer.study.settings import StudySettings, stored_settings
from causal_tracer.study.store import compact, read_manifest, read_records, require_pyarrow, update_manifest
from causal_tracer.study.team import Team
from causal_tracer.study.tracing import study_fact
from causal_tracer.version import __version__

logger = logging.getLogger(__name__)
T = TypeVar("T")

State = Literal["complete", "partial", "failed"]
Progress = Callable[[int, int], None]
"""Called with the number of facts done and the number of all facts of this process."""


@dataclass(frozen=True)
class StudyOutcome:
    """The state of a study after a run.

    Attributes:
        state: "complete", "partial" (facts failed or are missing), or "failed" (no fact was traced).
        counts: Number of facts by status.
        audit: The audit of each map.
        folder: The study's folder.
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
    cancelled: Callable[[], bool] = lambda: False,
) -> StudyOutcome:
    """Trace the facts that are missing in a study's folder, and write its tables.

    The same call continues a study that was stopped at any moment, with any number of processes. The limit can change
    between runs; the settings cannot.

    Args:
        folder: The study's folder, created if missing. Processes on several hosts need a shared folder.
        settings: The study's settings.
        facts: The whole set of facts.
        load: Loads the model; called only in processes that have facts to trace.
        team: The processes that share the work; None is this process alone.
        limit: Trace this many facts, one of each relation in turn; None traces all.
        retry_failed: Trace facts again that failed before.
        progress: Called after each fact.
        cancelled: Called during the sweep; True stops it. Finished facts are kept.

    Raises:
        StudyError: The folder is in use, damaged, or has a study with other settings; or the audit found a wrong cell.
        CausalTracerError: The model could not be loaded.
        TraceCancelled: `cancelled` returned True.
    """
    require_pyarrow()
    team = team or Team()
    wanted = alternating_relations(facts)[:limit]
    lock = FileLock(folder / ".lock")
    try:
        missing = _agreed(team, lambda: _begin(folder, lock, settings, wanted, retry_failed))
        own = team.own([fact for fact in wanted if fact.fact_id in missing])
        context = load() if own else None
        seen = None if context is None else _model_facts(context)
        expected = _agreed(team, lambda: _recognise(folder, seen))
        if context is not None and seen is not None:
            if not _same_model(seen, expected):
                raise StudyError(
                    f"This process loaded another model than the process of rank 0: {seen}, and not {expected}. "
                    "Give all processes the same model."
                )
            _trace_own(folder, settings, facts, own, context, progress, cancelled)
        team.wait()
        return _agreed(team, lambda: _finish(folder, settings, wanted))
    finally:
        lock.release()


def _begin(
    folder: Path, lock: FileLock, settings: StudySettings, facts: Sequence[Fact], retry_failed: bool
) -> frozenset[str]:
    """Lock the folder, check its settings and audit, and return the ids of the facts that are missing in it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise StudyError(
            f"Another run is using the study in {str(folder)!r}. Wait for it, or give another folder. To use several "
            "processes, start them together with accelerate launch."
        ) from error
    manifest = read_manifest(folder)
    if manifest is None:
        # A process that was killed here may have left a partial manifest.
        if left := [path.name for path in folder.iterdir() if path.name != ".lock" and path.suffix != PART_SUFFIX]:
            raise StudyError(
                f"The folder {str(folder)!r} has other files and no study: {', '.join(sorted(left)[:4])}. "
                "Give an empty folder, or a new one."
            )
        update_manifest(folder, settings=to_data(settings), state="running")
    elif changes := stored_settings(manifest).changes(settings):
        raise StudyError(
            f"The study in {str(folder)!r} was begun with other settings: {'; '.join(changes)}. Give the earlier "
            "settings, or another folder."
        )
    records = read_records(folder)
    check_audit(records, settings, (manifest or {}).get("model", {}).get("dtype"))
    again = {"failed"} if retry_failed else set()
    done = {record.fact.fact_id for record in records if record.status not in again}
    return frozenset(fact.fact_id for fact in facts) - done


def _recognise(folder: Path, seen: dict[str, Any] | None) -> dict[str, Any]:
    """Check that the model is the one that the study was begun with, and add this environment to the manifest.

    Args:
        folder: The study's folder.
        seen: The facts about the model of this process; None if it loaded none.

    Returns:
        The facts about the study's model.
    """
    manifest = read_manifest(folder) or {}
    known: dict[str, Any] = manifest.get("model", {})
    if seen is None:
        return known
    if known and not _same_model(known, seen):
        raise StudyError(
            f"The study in {str(folder)!r} was begun with the model {known}, and this one is {seen}. Give the same "
            "model, or another folder."
        )
    libraries = {name: version(name) for name in ("torch", "transformers", "numpy")}
    environments, here = (
        manifest.get("environments", []),
        {"causal_tracer": __version__, "commit": _commit(), **libraries},
    )
    if here not in environments:
        environments = [*environments, here]
    update_manifest(folder, state="running", model=seen, environments=environments)
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
    with closing(Journal(folder)) as journal:
        for number, fact in enumerate(own, start=1):
            begun = time.perf_counter()
            record = study_fact(context, settings, fact, facts, cancelled)
            record = replace(record, seconds=time.perf_counter() - begun)
            journal.append(record.to_dict())
            if record.status == "failed":
                logger.warning("The fact %r failed and is left out: %s", fact.prompt, record.cause)
            check_audit([record], settings, str(context.traced.dtype).removeprefix("torch."))
            if progress is not None:
                progress(number, len(own))


def _finish(folder: Path, settings: StudySettings, facts: Sequence[Fact]) -> StudyOutcome:
    """Move the journals into the tables, and write the study's state into the manifest."""
    records = compact(folder, settings)
    wanted = {fact.fact_id for fact in facts}
    counts: Counter[str] = Counter(record.status for record in records if record.fact.fact_id in wanted)
    counts["missing"] = len(wanted) - counts.total()
    counts = +counts
    state: State = "partial" if counts["missing"] or counts["failed"] else "complete"
    if not counts["traced"]:
        state = "failed"
    audit = audit_summary(records)
    update_manifest(
        folder,
        state=state,
        facts=dict(counts),
        seconds=sum(record.seconds for record in records),
        audit=[asdict(summary) for summary in audit],
    )
    return StudyOutcome(state, dict(counts), audit, folder)


def _agreed(team: Team, decide: Callable[[], T]) -> T:
    """Return rank 0's decision in every process. If it raises an error, all processes raise it, so that none hangs."""
    answer: tuple[T | None, CausalTracerError | None] = (None, None)
    if team.rank == 0:
        try:
            answer = (decide(), None)
        except CausalTracerError as error:
            answer = (None, error)
    found, refused = team.share(answer)
    if refused is not None:
        raise refused
    return cast(T, found)


def _same_model(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two models are the same. A measured noise level can round differently on another machine."""
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


@cache
def _commit() -> str | None:
    """Return the git commit of this package, with "-dirty" if files differ from it; None outside a git checkout."""
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
