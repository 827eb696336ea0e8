"""What the check of a model's sweep has found, kept by model and revision: a later start need not check again."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from causal_tracer.loading.converted import cache_root
from causal_tracer.sweep.engine import adopt_verdicts

_logger = logging.getLogger(__name__)


def adopt_stored_verdicts(model: str, revision: str | None) -> None:
    """Take over what an earlier process has found; nothing where there is none, or the file cannot be read."""
    path = _path(model, revision)
    if path is None:
        return
    try:
        adopt_verdicts(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        _logger.warning(
            "The stored check %s could not be read (%s): the model is checked again.", path.name, type(error).__name__
        )


def store_verdicts(model: str, revision: str | None, found: Mapping[str, Any]) -> None:
    """Keep the portable ones of `known_verdicts` for later starts; a disk that cannot be written to does not matter."""
    path = _path(model, revision)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, json.dumps({key: verdict for key, verdict in found.items() if verdict["portable"]}))
    except OSError as error:
        _logger.warning("The check of a model could not be stored in %s: %s.", path.name, error)


def _path(model: str, revision: str | None) -> Path | None:
    """The file of a model; none for a model without a revision, whose weights may change under its name."""
    if revision is None:
        return None
    return cache_root() / "verdicts" / (re.sub(r"[^A-Za-z0-9.-]+", "-", f"{model}-{revision}") + ".json")


def _replace(path: Path, text: str) -> None:
    """Write in one step: another process may read or write the same file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
