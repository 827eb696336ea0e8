"""Engine checks stored by model and revision, so that a later start need not check the model again."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from causal_tracer.files import cache_root, write_atomically
from causal_tracer.sweep.engine import adopt_engine_checks

_logger = logging.getLogger(__name__)


def adopt_stored_engine_checks(model: str, revision: str | None) -> None:
    """Take over the checks that an earlier process stored; a missing or unreadable file is ignored."""
    path = _path(model, revision)
    if path is None:
        return
    try:
        adopt_engine_checks(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        _logger.warning(
            "The stored engine check %s could not be read (%s). The model is checked again.",
            path.name,
            type(error).__name__,
        )


def store_engine_checks(model: str, revision: str | None, found: Mapping[str, Any]) -> None:
    """Store the portable checks of `known_engine_checks` for later starts; a failed write is only logged."""
    path = _path(model, revision)
    if path is None:
        return
    try:
        write_atomically(path, json.dumps({key: check for key, check in found.items() if check["portable"]}))
    except OSError as error:
        _logger.warning("The engine check of a model could not be stored in %s: %s.", path.name, error)


def _path(model: str, revision: str | None) -> Path | None:
    """Return a model's file; None for a model without a revision, whose weights may change under its name."""
    if revision is None:
        return None
    return cache_root() / "engine_checks" / (re.sub(r"[^A-Za-z0-9.-]+", "-", f"{model}-{revision}") + ".json")
