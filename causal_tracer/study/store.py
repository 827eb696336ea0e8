"""A study's folder: journals while it runs, three Parquet files and a manifest to keep.

- manifest.json: what was asked for, what it was done with, and what came of it;
- cells.parquet: one row per cell;
- facts.parquet: one row per fact, those left out too;
- audit.parquet: one row per cell that was computed once more;
- journal/: what is not in the Parquet files yet.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from causal_tracer.errors import StudyError
from causal_tracer.study.facts import Fact
from causal_tracer.study.journal import journal_files, read_journal, write_atomically
from causal_tracer.study.records import AuditedCell, FactRecord, MapResult, MapSettings, latest_records
from causal_tracer.study.settings import StudySettings

_FORMAT = "causal_tracer.study"
_FORMAT_VERSION = 1
_FACT_COLUMNS = ("status", "cause", "high", "low", "seed", "engine", "batch_size", "seconds")
_ROW_GROUP = 2**20


def require_tables() -> None:
    """Fail at once, rather than after days of work, where Parquet files cannot be written.

    Raises:
        StudyError: pyarrow is not installed.
    """
    if find_spec("pyarrow") is None:
        raise StudyError("Studies are kept in Parquet files, which need pyarrow: pip install pyarrow")


def read_manifest(study: Path) -> dict[str, Any] | None:
    """The manifest of a study's folder, or None where there is none.

    Raises:
        StudyError: It is damaged, or of a newer version.
    """
    path = study / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(f"{path} is no JSON ({error}). Give the folder of a study.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise StudyError(f"{path} is not a study's manifest. Give the folder of a study, or one that is not there yet.")
    if manifest.get("format_version") != _FORMAT_VERSION:
        raise StudyError(
            f"{path} has format version {manifest.get('format_version')!r}, and this version of causal_tracer reads "
            f"{_FORMAT_VERSION}. Upgrade causal_tracer."
        )
    return manifest


def write_manifest(study: Path, settings: StudySettings, parts: Mapping[str, Any]) -> None:
    """Write the manifest: settings, and whatever else there is to know."""
    data = {"format": _FORMAT, "format_version": _FORMAT_VERSION, "settings": settings.to_dict(), **parts}
    write_atomically(study / "manifest.json", json.dumps(data, indent=1, ensure_ascii=False).encode())


def study_settings(study: Path) -> StudySettings:
    """The settings of the study in a folder.

    Raises:
        StudyError: There is no study.
    """
    manifest = read_manifest(study)
    if manifest is None:
        raise StudyError(f"There is no study in {str(study)!r}: it has no manifest.json. Run one into it first.")
    return StudySettings.from_dict(manifest["settings"])


def read_records(study: Path) -> tuple[FactRecord, ...]:
    """All that is known of a study's facts, one record each, from its Parquet files and its journals."""
    records = list(_from_tables(study))
    for path in journal_files(study):
        records += [FactRecord.from_dict(data) for data in read_journal(path)]
    return latest_records(records)


def compact(study: Path) -> tuple[FactRecord, ...]:
    """Move what the journals hold into the Parquet files, and hand back all records.

    The facts' table is replaced last and the journals go after that: killed in between, nothing is lost or doubled.
    """
    done = journal_files(study)
    records = read_records(study)
    if done or not (study / "facts.parquet").exists():
        for name, table in (
            ("cells", cells_table(records)),
            ("audit", _audit_table(records)),
            ("facts", _facts_table(records)),
        ):
            _write_table(study / f"{name}.parquet", table)
        for path in done:
            path.unlink()
    return records


def cells_table(records: Sequence[FactRecord]) -> Any:
    """The cells of all traced facts as a pyarrow table, one row each; cells that were not computed have none."""
    import pyarrow as pa

    columns: dict[str, list[Any]] = defaultdict(list)
    for record in records:
        roles, tokens = np.array(record.roles, dtype=object), np.array(record.tokens, dtype=object)
        for result in record.maps:
            positions, layers = np.nonzero(~np.isnan(result.scores))
            count, asked = len(positions), result.settings
            for name, value in (
                ("fact", record.fact.fact_id),
                ("relation", record.fact.relation),
                ("map", asked.name),
                ("kind", asked.kind),
                ("window", asked.window),
                ("severed", asked.severed),
                ("placebo", asked.placebo),
                ("everywhere", asked.everywhere),
                ("low", record.low),
                ("high", record.high),
            ):
                columns[name].append(np.full(count, value, dtype=object))
            columns["position"].append(positions)
            columns["token"].append(tokens[positions])
            columns["role"].append(roles[positions])
            columns["layer"].append(layers)
            columns["score"].append(result.scores[positions, layers])
            columns["standard_error"].append(result.standard_error[positions, layers])
    schema = pa.schema(
        [
            ("fact", pa.string()),
            ("relation", pa.string()),
            ("map", pa.string()),
            ("kind", pa.string()),
            ("window", pa.int16()),
            ("severed", pa.string()),
            ("placebo", pa.bool_()),
            ("everywhere", pa.bool_()),
            ("position", pa.int16()),
            ("token", pa.string()),
            ("role", pa.string()),
            ("layer", pa.int16()),
            ("score", pa.float32()),
            ("low", pa.float64()),
            ("high", pa.float64()),
            ("standard_error", pa.float32()),
        ]
    )
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    arrays = [pa.array(whole.get(field.name, []), type=field.type, from_pandas=False) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _facts_table(records: Sequence[FactRecord]) -> Any:
    import pyarrow as pa

    rows = [
        {
            "fact": record.fact.fact_id,
            "prompt": record.fact.prompt,
            "subject": record.fact.subject,
            "attribute": record.fact.attribute,
            "relation": record.fact.relation,
            **{name: getattr(record, name) for name in _FACT_COLUMNS},
            "tokens": list(record.tokens),
            "roles": list(record.roles),
        }
        for record in records
    ]
    text, real, whole, texts = pa.string(), pa.float64(), pa.int64(), pa.list_(pa.string())
    types = {"high": real, "low": real, "seconds": real, "seed": whole, "batch_size": whole}
    names = ("fact", "prompt", "subject", "attribute", "relation", *_FACT_COLUMNS, "tokens", "roles")
    schema = pa.schema([(n, texts if n in ("tokens", "roles") else types.get(n, text)) for n in names])
    return pa.Table.from_pylist(rows, schema=schema)


def _audit_table(records: Sequence[FactRecord]) -> Any:
    import pyarrow as pa

    rows = [{"fact": record.fact.fact_id, **asdict(cell)} for record in records for cell in record.audit]
    text, whole, real = pa.string(), pa.int64(), pa.float64()
    types = {"position": whole, "layer": whole, "score": real, "full_score": real}
    names = ("fact", *(item.name for item in fields(AuditedCell)))
    schema = pa.schema([(name, types.get(name, text)) for name in names])
    return pa.Table.from_pylist(rows, schema=schema)


def _write_table(path: Path, table: Any) -> None:
    import pyarrow.parquet

    buffer = BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd", row_group_size=_ROW_GROUP)
    write_atomically(path, buffer.getvalue())


def _from_tables(study: Path) -> list[FactRecord]:
    if not (study / "facts.parquet").exists():
        return []
    import pyarrow.parquet

    facts = pyarrow.parquet.read_table(study / "facts.parquet").to_pylist()
    audits: dict[str, list[AuditedCell]] = defaultdict(list)
    for row in pyarrow.parquet.read_table(study / "audit.parquet").to_pylist():
        audits[row.pop("fact")].append(AuditedCell(**row))
    shapes = {row["fact"]: len(row["tokens"]) for row in facts}
    maps = _maps(pyarrow.parquet.read_table(study / "cells.parquet"), shapes)
    return [
        FactRecord(
            fact=Fact(row["fact"], row["prompt"], row["subject"], row["attribute"], row["relation"]),
            tokens=tuple(row["tokens"]),
            roles=tuple(row["roles"]),
            maps=tuple(maps.get(row["fact"], ())),
            audit=tuple(audits[row["fact"]]),
            **{name: row[name] for name in _FACT_COLUMNS},
        )
        for row in facts
    ]


def _maps(cells: Any, n_tokens: Mapping[str, int]) -> dict[str, list[MapResult]]:
    """The maps of each fact, from the cells' table; facts that are not in `n_tokens` are left out."""
    named = ("fact", "map", "kind", "window", "severed", "placebo", "everywhere", "position", "layer")
    values = {name: cells.column(name).to_numpy(zero_copy_only=False) for name in (*named, "score", "standard_error")}
    if not len(values["fact"]):
        return {}
    n_layers = int(values["layer"].max()) + 1
    changed = (values["fact"][1:] != values["fact"][:-1]) | (values["map"][1:] != values["map"][:-1])
    bounds = [0, *(np.nonzero(changed)[0] + 1).tolist(), len(values["fact"])]
    maps: dict[str, list[MapResult]] = defaultdict(list)
    for start, end in pairwise(bounds):
        fact = values["fact"][start]
        if fact not in n_tokens:
            continue
        place = (values["position"][start:end], values["layer"][start:end])
        planes = []
        for name in ("score", "standard_error"):
            plane = np.full((n_tokens[fact], n_layers), np.nan, dtype=np.float32)
            plane[place] = values[name][start:end]
            planes.append(plane)
        asked = MapSettings(
            name=values["map"][start],
            kind=values["kind"][start],
            window=int(values["window"][start]),
            severed=values["severed"][start],
            placebo=bool(values["placebo"][start]),
            everywhere=bool(values["everywhere"][start]),
        )
        maps[fact].append(MapResult(asked, *planes))
    return maps
