"""The first-use check of a model: find the fastest resume mode that gives the full sweep's scores.

A few cells of every kind on a short made-up prompt are computed by the full sweep and in each resume mode. The first
mode whose scores agree is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from causal_tracer.corruption import NOISE_MULTIPLIER, GaussianNoise
from causal_tracer.experiment.base_run import corrupted_run
from causal_tracer.metrics.metric import LogProbability
from causal_tracer.model.batch_size import default_batch_size
from causal_tracer.model.engine_mode import engine_mode
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.probing import probe_ids, takes_argument
from causal_tracer.model.quantization import quantizes_activations
from causal_tracer.model.runs import clean_run, run_model
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.sites import KINDS
from causal_tracer.sweep.caches import keeps_keys_and_values_only, snapshot
from causal_tracer.sweep.full import full_sweep
from causal_tracer.sweep.plan import BlockedAttention, Cell, Intervention, Sweep, SweepChunk, SweepPlan
from causal_tracer.sweep.read_out import MOST_LOGITS
from causal_tracer.sweep.resume_mode import RESUME_MODES, CannotResume, ResumeMode
from causal_tracer.sweep.resumed import resumed_sweep

CHECK_TOKENS = 8
"""Length of the check's prompt for models whose cache holds keys and values only."""

_SUBJECT = (2, 4)
_SAMPLES = 2
# Number of positions checked in models where each position may behave differently.
_MOST_POSITIONS = 16
FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)
"""Exceptions that models raise when they do not support a way of running them."""


@dataclass(frozen=True)
class EngineCheck:
    """The result of checking a model: the engine that computes its maps.

    Attributes:
        mode: The resume mode; None means the full sweep.
        tried: A sentence with the reason for each resume mode that failed.
    """

    mode: ResumeMode | None
    tried: tuple[str, ...]

    @property
    def name(self) -> str:
        """The engine's name in results."""
        return "full" if self.mode is None else self.mode.name


_plain_caches: dict[str, bool] = {}


def has_plain_cache(traced: TracedModel, digest: str) -> bool:
    """Return whether the model has no cache, or one that holds keys and values only.

    The answer is remembered by `digest`, the digest of the model's fingerprint.
    """
    if digest not in _plain_caches:
        try:
            output = run_model(traced, probe_ids(traced.model, 3), {}, use_cache=True)
            _plain_caches[digest] = keeps_keys_and_values_only(snapshot(traced, output, shared=True))
        except (CannotResume, *FAILURES):
            _plain_caches[digest] = True  # resume modes do not use such a cache
    return _plain_caches[digest]


def check_resume_modes(
    traced: TracedModel, n_tokens: int, *, every_token: bool = False, knockout: bool = False
) -> EngineCheck:
    """Compare each resume mode with the full sweep on a short made-up prompt, and choose the first that agrees.

    Args:
        traced: The model.
        n_tokens: Length of the prompt.
        every_token: Whether to check cells at every token, or at evenly spaced tokens of a long prompt.
        knockout: Whether to check cells that block attention as well.
    """
    ids = tuple(probe_ids(traced.model, n_tokens)[0].tolist())
    prompt = Prompt("", ids, ("",) * n_tokens, "", _SUBJECT, True, 1)
    clean = clean_run(traced, ids)
    metric = LogProbability((clean.top_id,))
    with engine_mode(traced.model):
        scale = float(traced.embedding(torch.tensor([ids], device=traced.input_device)).float().std())
    noise = GaussianNoise(NOISE_MULTIPLIER * scale, seed=0)
    batch_size = max(1, min(64, MOST_LOGITS // traced.vocab_size, default_batch_size(traced, n_tokens)))
    corrupted = corrupted_run(traced, prompt, noise, _SAMPLES, metric, batch_size)
    sweep = Sweep(traced, clean, corrupted, _check_plan(traced, n_tokens, every_token, knockout), metric, batch_size)
    expected = _scores(full_sweep(sweep), sweep)
    limits = _allowed(sweep, (expected - corrupted.scores).abs().amax(dim=1))
    tried = []
    for mode in _modes_to_try(traced):
        try:
            found = _scores(resumed_sweep(replace(sweep, batch_size=min(7, batch_size)), mode=mode), sweep)
        except torch.OutOfMemoryError:
            raise  # a RuntimeError too, but not caused by the mode
        except (CannotResume, *FAILURES) as error:
            reason = str(error).splitlines()[0][:200] if str(error) else ""
            tried.append(f"The sweep {mode.name!r} failed on this model ({type(error).__name__}: {reason}).")
            continue
        errors = (found - expected).abs().amax(dim=1)
        if bool((errors <= limits).all()):  # false for NaN as well
            return EngineCheck(mode, tuple(dict.fromkeys(tried)))
        tried.append(
            f"The sweep {mode.name!r} differs from the full sweep by {float(errors.max()):.2g} in log-probability."
        )
    return EngineCheck(None, tuple(dict.fromkeys(tried)))


def _modes_to_try(traced: TracedModel) -> Iterator[ResumeMode]:
    """Yield the modes to try, the fastest first. Modes with a cache are also tried with `position_ids` if possible."""
    for mode in RESUME_MODES:
        yield mode
        if mode.use_cache and takes_argument(type(traced.model).forward, "position_ids"):
            # Second, since the positions of a few models do not start from 0.
            yield replace(mode, positions=True)


def tolerance(traced: TracedModel) -> tuple[float, float]:
    """Return the allowed difference of a score between two sweeps: an absolute part, and a share of the largest effect.

    Rounding depends on the batch, and in half precision also on whether a cache is used. Products of 8-bit weights
    depend on the largest columns of the whole batch.
    """
    exact = traced.dtype in (torch.float32, torch.float64) and not quantizes_activations(traced.model)
    return (1e-5, 1e-3) if exact else (0.05, 0.1)


def _allowed(sweep: Sweep, effects: torch.Tensor) -> torch.Tensor:
    """Return each cell's allowed difference: rounding, plus a small share of the largest effect of its kind."""
    rounding, share = tolerance(sweep.traced)
    kinds = [cell.interventions[0].site for cell in sweep.plan.cells]
    largest = {kind: max(float(e) for e, k in zip(effects, kinds, strict=True) if k == kind) for kind in set(kinds)}
    return torch.tensor([rounding + share * largest[kind] for kind in kinds], dtype=torch.float32)


def _check_plan(traced: TracedModel, n_tokens: int, every_token: bool, knockout: bool) -> SweepPlan:
    """Return the cells that are compared: several layers and tokens of each kind.

    One token is before the subject. Its scores change only in a model that attends to later tokens.
    """
    first, middle, last = (0,), (traced.n_layers // 2,), (traced.n_layers - 1,)
    everywhere = tuple(dict.fromkeys((first, middle, last, (*range(middle[0] - 1, middle[0] + 1),))))
    start, end = _SUBJECT
    asked: dict[int, tuple[tuple[int, ...], ...]] = {}
    if every_token:
        step = max(1, n_tokens // _MOST_POSITIONS)
        nearby = range(start, min(n_tokens, start + _MOST_POSITIONS // 2))
        asked = dict.fromkeys((*nearby, *range(start, n_tokens, step)), (first, middle))
    asked |= {start - 1: (first,), start: (middle,)}
    asked |= dict.fromkeys((end - 1, n_tokens - 2, n_tokens - 1), everywhere)
    cells: list[Cell] = []
    for kind in KINDS:
        present = {layer for layer in range(traced.n_layers) if traced.site_names[kind][layer]}
        for position, layer_sets in asked.items():
            for layers in layer_sets:
                restored = tuple(layer for layer in layers if layer in present)
                cells.append(Cell(position, middle[0], (Intervention(restored, kind, (position,)),)))
    for position, layer_sets in asked.items() if knockout else ():
        for layers in layer_sets:
            blocked = tuple(layer for layer in layers if layer in traced.knockout_sites)
            for keys in ((position,), tuple(range(position))):
                cells.append(Cell(position, middle[0], (BlockedAttention(blocked, (position,), keys),)))
    return SweepPlan(tuple(cell for cell in cells if cell.interventions[0].layers))


def _scores(chunks: Iterator[SweepChunk], sweep: Sweep) -> torch.Tensor:
    scores = torch.full((len(sweep.plan.cells), _SAMPLES), math.nan, dtype=torch.float32)
    for chunk in chunks:
        scores[chunk.cells, chunk.samples] = chunk.scores
    return scores
