"""Reading and writing a study's folder.

- manifest.json: settings, model, environments, counts and audit;
- cells.parquet: one row per cell;
- facts.parquet: one row per fact, also for facts that were left out;
- audit.parquet: one row per cell that was computed again;
- journal/: records that are not in the Parquet files yet.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from causal_tracer.errors import StudyError
from causal_tracer.files import write_atomically
from causal_tracer.request.sites import SITES, SPANS
from causal_tracer.study.facts import Fact
from causal_tracer.study.journal import journal_files, read_journal
from causal_tracer.study.records import AuditedCell, FactRecord, MapResult, latest_records
from causal_tracer.study.settings import StudySettings

TABLES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "cells": {
        "string": ("fact", "relation", "map", "kind", "severed", "token", "role"),
        "int16": ("window", "position", "layer"),
        "bool": ("placebo", "everywhere"),
        "float32": ("score", "standard_error"),
        "double": ("low", "high"),
    },
    "audit": {
        "string": ("fact", "map_name", "kind"),
        "int64": ("position", "layer"),
        "double": ("score", "full_score"),
    },
    # Written last, because a fact with a row here counts as done.
    "facts": {
        "string": ("fact", "prompt", "subject", "attribute", "relation", "status", "cause", "engine", "partner"),
        "int64": ("seed", "batch_size"),
        "double": ("high", "low", "seconds"),
        "list<string>": ("tokens", "roles"),
    },
}
"""The columns of each Parquet file by type. The files are written in this order."""

_FORMAT = "causal_tracer.study"
_FORMAT_VERSION = 2


def require_pyarrow() -> None:
    """Check that Parquet files can be written, so that a study does not fail at its end.

    Raises:
        StudyError: pyarrow is not installed.
    """
    if find_spec("pyarrow") is None:
        raise StudyError("A study needs pyarrow for its Parquet files, and it is not installed: pip install pyarrow")


def read_manifest(study: Path) -> dict[str, Any] | None:
    """Return the manifest of a study's folder, or None if it has no manifest.

    Raises:
        StudyError: The manifest is damaged, or of another version.
    """
    path = study / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(f"{path} is not JSON ({error}). Give the folder of a study.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise StudyError(f"{path} is not a study's manifest. Give the folder of a study, or a new folder.")
    if manifest.get("format_version") != _FORMAT_VERSION:
        raise StudyError(
            f"{path} has format version {manifest.get('format_version')!r}, and this version of causal_tracer reads "
            f"version {_FORMAT_VERSION}. Use the version that wrote it, or run the study again into another folder."
        )
    return manifest


def update_manifest(study: Path, **parts: Any) -> None:
    """Replace some entries of the manifest, and keep the others."""
    data = {"format": _FORMAT, "format_version": _FORMAT_VERSION, **(read_manifest(study) or {}), **parts}
    write_atomically(study / "manifest.json", json.dumps(data, indent=1, ensure_ascii=False))


def read_records(study: Path) -> tuple[FactRecord, ...]:
    """Return one record for each fact of a study, from its Parquet files and its journals."""
    records = list(_from_tables(study))
    for path in journal_files(study):
        records += [FactRecord.from_dict(data) for data in read_journal(path)]
    return latest_records(records)


def compact(study: Path, settings: StudySettings) -> tuple[FactRecord, ...]:
    """Move the records of the journals into the Parquet files, and return all records.

    The journals are removed after the tables are written, so that a process that is killed in between loses nothing.
    """
    done = journal_files(study)
    records = read_records(study)
    if done or not _path(study, "facts").exists():
        import pyarrow.parquet

        tables = {
            "cells": cells_table(records, settings),
            "audit": _table("audit", [{**vars(c), "fact": r.fact.fact_id} for r in records for c in r.audit]),
            "facts": _table("facts", [{**vars(r), **vars(r.fact), "fact": r.fact.fact_id} for r in records]),
        }
        for name in TABLES:
            buffer = BytesIO()
            pyarrow.parquet.write_table(tables[name], buffer, compression="zstd")
            write_atomically(_path(study, name), buffer.getvalue())
        for path in done:
            path.unlink()
    return records


def cells_table(records: Sequence[FactRecord], settings: StudySettings) -> Any:
    """Return the cells of all traced facts as a pyarrow table. Cells that were not computed have no row."""
    import pyarrow as pa

    schema, parts = _schema("cells"), []
    for record in records:
        for result in record.maps:
            positions, layers = np.nonzero(~np.isnan(result.scores))
            spec = settings.maps[result.name]
            same = {
                "fact": record.fact.fact_id,
                "relation": record.fact.relation,
                "map": result.name,
                "kind": spec.kind,
                "window": spec.window,
                "severed": spec.severed,
                "placebo": spec.source == "placebo",
                "everywhere": settings.covers_all_tokens(result.name),
                "low": record.low,
                "high": record.high,
            }
            spans = SITES[spec.kind].rows == "spans"
            columns = {name: [value] * len(positions) for name, value in same.items()} | {
                "position": positions,
                "token": [(SPANS if spans else record.tokens)[position] for position in positions],
                "role": [(SPANS if spans else record.roles)[position] for position in positions],
                "layer": layers,
                "score": result.scores[positions, layers],
                "standard_error": result.standard_error[positions, layers],
            }
            parts.append(pa.table(columns, schema=schema))
    return pa.concat_tables(parts) if parts else schema.empty_table()


def _schema(table: str) -> Any:
    import pyarrow as pa

    types = {"list<string>": pa.list_(pa.string())}
    return pa.schema([(name, types.get(kind, kind)) for kind, names in TABLES[table].items() for name in names])


def _table(name: str, rows: list[dict[str, Any]]) -> Any:
    """Return rows as a pyarrow table. Keys that are not columns are left out."""
    import pyarrow as pa

    return pa.Table.from_pylist(rows, schema=_schema(name))


def _path(study: Path, table: str) -> Path:
    return study / f"{table}.parquet"


def _from_tables(study: Path) -> list[FactRecord]:
    if not _path(study, "facts").exists():
        return []
    import pyarrow.parquet

    cells, audited, facts = (pyarrow.parquet.read_table(_path(study, name)) for name in TABLES)
    audits: dict[str, list[AuditedCell]] = defaultdict(list)
    for row in audited.to_pylist():
        audits[row.pop("fact")].append(AuditedCell(**row))
    rows = facts.to_pylist()
    maps = _maps(cells, {row["fact"]: len(row["tokens"]) for row in rows})
    records = []
    for row in rows:
        fact = Fact(*(row.pop(name) for name in ("fact", "prompt", "subject", "attribute", "relation")))
        row |= {name: tuple(row[name]) for name in ("tokens", "roles")}
        records.append(FactRecord(fact, maps=tuple(maps[fact.fact_id]), audit=tuple(audits[fact.fact_id]), **row))
    return records


def _maps(cells: Any, n_tokens: Mapping[str, int]) -> dict[str, list[MapResult]]:
    """Return the maps of each fact from the table of cells. Facts that are not in `n_tokens` are left out."""
    named = ("fact", "map", "position", "layer", "score", "standard_error")
    values = {name: cells.column(name).to_numpy(zero_copy_only=False) for name in named}
    maps: dict[str, list[MapResult]] = defaultdict(list)
    if not len(cells):
        return maps
    n_layers = int(values["layer"].max()) + 1
    changed = (values["fact"][1:] != values["fact"][:-1]) | (values["map"][1:] != values["map"][:-1])
    for start, end in pairwise([0, *(np.nonzero(changed)[0] + 1).tolist(), len(cells)]):
        (row,) = cells.slice(start, 1).to_pylist()
        if row["fact"] not in n_tokens:
            continue
        planes = []
        for name in ("score", "standard_error"):
            plane = np.full((n_tokens[row["fact"]], n_layers), np.nan, dtype=np.float32)
            plane[values["position"][start:end], values["layer"][start:end]] = values[name][start:end]
            planes.append(plane)
        maps[row["fact"]].append(MapResult(row["map"], *planes))
    return maps
