"""Lenses and patched runs as files to download."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from causal_tracer.arguments import quoted
from causal_tracer.errors import ExportError
from causal_tracer.files import write_atomically
from causal_tracer.results.lens import COLUMNS, LogitLens
from causal_tracer.results.patched import PatchedRun
from causal_tracer.results.tables import csv_text

FORMATS = ("json", "csv")


def single_run_file(result: LogitLens | PatchedRun, format: str) -> Path:
    """Write a result into a new temporary folder, and return the file.

    The file name is the same for the same numbers, and contains no text that a user typed.

    Args:
        result: The result.
        format: One of `FORMATS`: "json" opens again with identical numbers; "csv" has a row for each token, layer and
            top token of the lens (for a patched run, of that run's lens).

    Raises:
        ExportError: The format is not known, or the file cannot be written.
    """
    # The page's event names the format: it must not become a part of a path unchecked.
    if format not in FORMATS:
        raise ExportError(f"format={quoted(format)} is not known. Choose one of {', '.join(FORMATS)}.")
    lens, what = (result, "logit-lens") if isinstance(result, LogitLens) else (result.lens, "patched-run")
    text = json.dumps(result.to_dict(), sort_keys=True)
    name = f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.{format}"
    path = Path(tempfile.mkdtemp(prefix="causal-tracer-")) / name
    if format == "json":
        result.save(path)
    else:
        write_atomically(path, csv_text(COLUMNS, lens.rows()))
    return path
