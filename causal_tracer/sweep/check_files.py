"""First-use checks on disk, so that a later process need not check an equal model again.

A file is named by a hash of everything its check depends on: the key of the check in memory (`sweep/engine.py`), a
sample of the weights, the device and this package's source code.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from causal_tracer.files import cache_root, write_atomically
from causal_tracer.model.layers import TracedModel
from causal_tracer.sweep.check import FAILURES, EngineCheck
from causal_tracer.sweep.resume_mode import ResumeMode

_logger = logging.getLogger(__name__)
_PACKAGE = Path(__file__).parents[1]
_VALUES_A_WEIGHT = 8


def check_file(traced: TracedModel, key: str) -> Path | None:
    """Return the file of a check; None if the weights cannot be read, such as those that are loaded for each call."""
    try:
        weights = _sample(traced.model)
    except FAILURES:
        return None
    identity = hashlib.sha256(repr((key, weights, _device(traced), _source_digest())).encode()).hexdigest()
    return cache_root() / "engine_checks" / f"{identity}.json"


def stored_check(path: Path) -> EngineCheck | None:
    """Return the check that an earlier process stored, or None; an unreadable file is logged."""
    try:
        return check_from_data(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError) as error:
        _logger.warning(
            "The stored first-use check %s could not be read (%s). The model is checked again.",
            path,
            type(error).__name__,
        )
        return None


def store_check(path: Path, check: EngineCheck) -> None:
    """Store a check for later processes; a failed write is logged only."""
    try:
        write_atomically(path, json.dumps(asdict(check)))
    except OSError as error:
        _logger.warning("The first-use check of a model could not be stored in %s: %s.", path, error)


def check_from_data(data: Mapping[str, Any]) -> EngineCheck:
    """Return a check from the JSON types of `dataclasses.asdict`.

    Raises:
        KeyError, TypeError, ValueError: The data does not have that form.
    """
    mode = data["mode"]
    return EngineCheck(None if mode is None else ResumeMode(**mode), tuple(str(reason) for reason in data["tried"]))


def _device(traced: TracedModel) -> str:
    """Return what the device's kernels depend on: machines with other processors may share a cache folder."""
    device = traced.input_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def _sample(model: nn.Module) -> str:
    """Return a hash of a few values of each weight and buffer, spread over it. Some quantised weights are buffers."""
    digest = hashlib.sha256()
    for weight in chain(model.parameters(), model.buffers()):
        flat = weight.detach().flatten()
        spread = flat[:: max(1, len(flat) // _VALUES_A_WEIGHT)]
        digest.update(repr(spread.to("cpu", torch.float64).tolist()).encode())
    return digest.hexdigest()


@functools.cache
def _source_digest() -> str:
    """Return a hash of this package's code: a check holds for the code that made it."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
