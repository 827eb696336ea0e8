"""Choice of the engine that computes a map: the fastest sweep that passed the first-use check on the model.

Checks are remembered by the model's fingerprint, so a changed model is checked again. A model is also checked again for
the first prompt longer than its sliding window, and at each new prompt length if its cache holds more than keys and
values.
"""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
import transformers

from causal_tracer.errors import ModelStructureError
from causal_tracer.experiment.base_run import LogitsCallback, renumbered
from causal_tracer.model.fingerprint import fingerprint
from causal_tracer.model.knockout import why_not_blocked
from causal_tracer.model.layers import TracedModel
from causal_tracer.request.records import EngineChoice
from causal_tracer.request.sites import KINDS
from causal_tracer.sweep import check_files
from causal_tracer.sweep.check import CHECK_TOKENS, EngineCheck, check_resume_modes, has_plain_cache
from causal_tracer.sweep.full import full_sweep
from causal_tracer.sweep.plan import Sweep, SweepChunk
from causal_tracer.sweep.resume_mode import RESUME_MODES
from causal_tracer.sweep.resumed import resumed_sweep
from causal_tracer.version import __version__

logger = logging.getLogger(__name__)

# If the cache holds more than keys and values: each prompt length up to this is checked, longer ones in steps of it.
_SINGLE_LENGTHS = 16
_MOST_CHECKED = 48

# Threads share it without a lock, since each access is a single dict operation.
_engine_checks: dict[str, EngineCheck] = {}
# By the identity that a check is valid for: the reason why attention cannot be blocked, or None.
_knockout_faults: dict[tuple[Any, ...], str | None] = {}


def choose_engine(traced: TracedModel, choice: EngineChoice, n_tokens: int, *, knockout: bool = False) -> EngineCheck:
    """Return the engine for a prompt of this length. The model is checked first if necessary.

    Args:
        traced: The model.
        choice: The user's choice.
        n_tokens: Length of the prompt.
        knockout: Whether attention is blocked. If so, blocking itself is checked too, also for the full sweep.

    Raises:
        ModelStructureError: Attention cannot be blocked on this model.
    """
    if choice == "full" and not knockout:
        return EngineCheck(None, ())
    with traced.lock:
        found = fingerprint(traced.model)
        window = _shortest_window(traced)
        beyond = window is not None and n_tokens >= window
        length = window + CHECK_TOKENS if window is not None and beyond else CHECK_TOKENS
        every_token = not has_plain_cache(traced, found.digest)
        if every_token and not beyond:
            length = _checked_length(n_tokens)
        identity = (*_identity(traced), found.digest, length)
        if knockout:
            _require_knockout(traced, identity)
            identity = (*identity, "knockout")
        if choice == "full":
            return EngineCheck(None, ())
        key = hashlib.sha256(repr(identity).encode()).hexdigest()
        known = _engine_checks.get(key)
        if known is None:
            file = check_files.check_file(traced, key) if found.portable else None
            known = None if file is None else check_files.stored_check(file)
            if known is None:
                known = check_resume_modes(traced, length, every_token=every_token, knockout=knockout)
                # A failed mode is tried again by the next process: the cause may have been a lack of memory.
                if file is not None and not known.tried:
                    check_files.store_check(file, known)
            _engine_checks[key] = known
            if known.mode != RESUME_MODES[0]:
                logger.warning(
                    "%s uses the slower sweep %r: %s", type(traced.model).__name__, known.name, " ".join(known.tried)
                )
    return known


def _require_knockout(traced: TracedModel, identity: tuple[Any, ...]) -> None:
    """Check that blocking attention works on the model in its current state."""
    if identity not in _knockout_faults:
        modules = [module for layer in traced.knockout_sites.values() for module in layer]
        _knockout_faults[identity] = why_not_blocked(traced.model, modules, identity[-1])
    if (fault := _knockout_faults[identity]) is not None:
        raise ModelStructureError(
            f"Blocking attention failed its check on {type(traced.model).__name__}: {fault}. Undo changes made to the "
            "model since its tracer was created, or load it with attn_implementation='sdpa' or 'eager'."
        )


def _checked_length(n_tokens: int) -> int:
    """Return the prompt length to check for prompts of `n_tokens`, if the cache holds more than keys and values."""
    if n_tokens <= _SINGLE_LENGTHS:
        return max(n_tokens, CHECK_TOKENS)
    return min(-(-n_tokens // _SINGLE_LENGTHS) * _SINGLE_LENGTHS, _MOST_CHECKED)


def known_engine_checks() -> dict[str, Any]:
    """Return all checks so far as JSON types, so that another process can reuse them."""
    return {key: asdict(engine_check) for key, engine_check in _engine_checks.copy().items()}


def adopt_engine_checks(known: Mapping[str, Any]) -> None:
    """Add the checks that `known_engine_checks` returned in another process.

    A check is used only with the fingerprint, device type and library versions that it was made with.

    Raises:
        KeyError, TypeError, ValueError: The data does not have the form that `known_engine_checks` returns.
    """
    _engine_checks.update({key: check_files.check_from_data(data) for key, data in known.items()})


def run_sweep(
    engine_check: EngineCheck,
    sweep: Sweep,
    cancelled: Callable[[], bool],
    on_logits: LogitsCallback | None = None,
    on_halved_batch: Callable[[int], None] = lambda _size: None,
) -> Iterator[SweepChunk]:
    """Compute the plan's cells with the chosen engine; see `full_sweep` and `resumed_sweep`.

    If a batch does not fit in the device's memory, the sweep continues with half the batch size and calls
    `on_halved_batch` with it. No score is yielded twice. `on_logits` gets all samples of an unfinished cell again.

    Raises:
        torch.OutOfMemoryError: A single row does not fit in memory.
    """
    known = torch.zeros(len(sweep.plan.cells), sweep.base.samples, dtype=torch.bool)
    batch_size = sweep.batch_size
    while True:
        rest = (~known.all(dim=1)).nonzero()[:, 0]
        run = (replace(sweep.part(rest), batch_size=batch_size), cancelled, renumbered(on_logits, rest))
        try:
            for chunk in full_sweep(*run) if engine_check.mode is None else resumed_sweep(*run, engine_check.mode):
                cells = rest[chunk.cells]
                new = ~known[cells, chunk.samples]
                known[cells, chunk.samples] = True
                yield SweepChunk(cells[new], chunk.samples[new], chunk.scores[new])
            return
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
        # After the except block, since the exception keeps the tensors of the failed pass alive.
        gc.collect()
        torch.cuda.empty_cache()
        batch_size //= 2
        on_halved_batch(batch_size)


def halving_note(sizes: Sequence[int]) -> str:
    """Return the note for results whose batches did not fit in the device's memory, given all batch sizes tried."""
    return f"Out of memory with batches of {sizes[0]} rows. Computed with batches of {sizes[-1]}."


def _shortest_window(traced: TracedModel) -> int | None:
    config: Any = traced.model.config
    text = config.get_text_config()
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    return min((window for window in windows if isinstance(window, int) and window > 0), default=None)


def _identity(traced: TracedModel) -> tuple[Any, ...]:
    """Return what a check depends on besides the fingerprint: sites, device and library versions."""
    sites = tuple((kind, traced.site_names[kind]) for kind in KINDS)
    versions = (__version__, torch.__version__, transformers.__version__)
    return sites, traced.input_device.type, str(getattr(traced.model, "hf_device_map", None)), versions
