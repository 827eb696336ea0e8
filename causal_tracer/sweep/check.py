"""The first-use check: which way of resuming gives the full sweep's scores on this model.

A few cells of every kind, on a short made-up prompt, are computed by the full sweep and in each way of resuming. The
first way that agrees is used.
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
from causal_tracer.model.quantization import quantizes_activations
from causal_tracer.model.runs import clean_run, run_model
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.sites import KINDS
from causal_tracer.sweep.base_state import takes_positions
from causal_tracer.sweep.caches import CannotResume, keeps_keys_and_values_only, snapshot
from causal_tracer.sweep.full import full_sweep
from causal_tracer.sweep.plan import Cell, Intervention, SweepChunk, SweepPlan
from causal_tracer.sweep.read_out import MOST_LOGITS
from causal_tracer.sweep.resumed import RESUME_MODES, ResumeMode, resumed_sweep

CHECK_TOKENS = 8
"""Length of the prompt that models with plain caches are checked on."""

_SUBJECT = (2, 4)
_SAMPLES = 2
# Positions checked where each may be a case of its own.
_MOST_POSITIONS = 16
_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)


@dataclass(frozen=True)
class EngineCheck:
    """How a model is swept.

    Attributes:
        mode: How it is resumed; None means the full sweep.
        tried: For each way that was not chosen, why, as a sentence.
        portable: Whether the verdict holds in other processes.
    """

    mode: ResumeMode | None
    tried: tuple[str, ...]
    portable: bool = True

    @property
    def name(self) -> str:
        """What results call it."""
        return "full" if self.mode is None else self.mode.name


_plain_caches: dict[str, bool] = {}


def has_plain_cache(traced: TracedModel, digest: str) -> bool:
    """Whether the model's cache holds keys and values only, or it has none; `digest` is its fingerprint's."""
    if digest not in _plain_caches:
        ids = torch.tensor([_ids(traced, 3)])
        try:
            output = run_model(traced, ids, {}, use_cache=True)
            _plain_caches[digest] = keeps_keys_and_values_only(snapshot(traced, output, shared=True))
        except (CannotResume, *_FAILURES):
            _plain_caches[digest] = True  # no way of resuming uses such a cache
    return _plain_caches[digest]


def check_resume_modes(traced: TracedModel, n_tokens: int, *, every_token: bool = False) -> EngineCheck:
    """Compare each way of resuming with the full sweep on a short made-up prompt of this model.

    Args:
        traced: The model.
        n_tokens: Length of the prompt.
        every_token: Check cells at every token, or at many spread ones of a long prompt.
    """
    ids = _ids(traced, n_tokens)
    prompt = Prompt("", ids, ("",) * n_tokens, "", _SUBJECT, True, 1)
    clean = clean_run(traced, ids)
    metric = LogProbability((clean.top_id,))
    with engine_mode(traced.model):
        scale = float(traced.embedding(torch.tensor([ids], device=traced.input_device)).float().std())
    noise = GaussianNoise(NOISE_MULTIPLIER * scale, seed=0)
    batch_size = max(1, min(64, MOST_LOGITS // traced.vocab_size, default_batch_size(traced, n_tokens)))
    corrupted = corrupted_run(traced, prompt, noise, _SAMPLES, metric, batch_size)
    plan = _check_plan(traced, n_tokens, every_token)
    expected = _scores(full_sweep(traced, clean, corrupted, plan, metric, batch_size), plan)
    limits = _allowed(traced, plan, (expected - corrupted.scores).abs().amax(dim=1))
    tried = []
    for mode in _modes_to_try(traced):
        try:
            found = _scores(resumed_sweep(traced, clean, corrupted, plan, metric, min(7, batch_size), mode=mode), plan)
        except torch.OutOfMemoryError:
            raise  # a RuntimeError too, but it says nothing of the way
        except (CannotResume, *_FAILURES) as error:
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


def _ids(traced: TracedModel, n_tokens: int) -> tuple[int, ...]:
    return tuple((traced.vocab_size // 3 + 17 * i) % traced.vocab_size for i in range(n_tokens))


def _modes_to_try(traced: TracedModel) -> Iterator[ResumeMode]:
    """The ways to try, the fastest first; those with a cache also with positions where the model can be told them."""
    for mode in RESUME_MODES:
        yield mode
        if mode.use_cache and takes_positions(traced):
            # Only then: a few models count positions from their padding token on, and take other ones.
            yield replace(mode, positions=True)


def tolerance(traced: TracedModel) -> tuple[float, float]:
    """How far a score may differ between two sweeps: by rounding, and by a share of the largest effect.

    Rounding differs with the batch; in half precisions also between cached and uncached runs. Products of 8-bit
    weights look for large columns in the whole batch.
    """
    exact = traced.dtype in (torch.float32, torch.float64) and not quantizes_activations(traced.model)
    return (1e-5, 1e-3) if exact else (0.05, 0.1)


def _allowed(traced: TracedModel, plan: SweepPlan, effects: torch.Tensor) -> torch.Tensor:
    """How far each cell may be off: by rounding and by a small share of the largest effect of its kind."""
    rounding, share = tolerance(traced)
    kinds = [cell.interventions[0].site for cell in plan.cells]
    largest = {kind: max(float(e) for e, k in zip(effects, kinds, strict=True) if k == kind) for kind in set(kinds)}
    return torch.tensor([rounding + share * largest[kind] for kind in kinds], dtype=torch.float32)


def _check_plan(traced: TracedModel, n_tokens: int, every_token: bool) -> SweepPlan:
    """Cells that show whether resuming is right: several layers and tokens of each kind.

    One token is before the subject, where nothing may change: in a model that looks ahead, it does.
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
    cells = []
    for kind in KINDS:
        present = {layer for layer in range(traced.n_layers) if traced.site_names[kind][layer]}
        for position, layer_sets in asked.items():
            for layers in layer_sets:
                restored = tuple(layer for layer in layers if layer in present)
                cells.append(Cell(position, middle[0], (Intervention(restored, kind, (position,)),)))
    return SweepPlan(tuple(cell for cell in cells if cell.interventions[0].layers))


def _scores(chunks: Iterator[SweepChunk], plan: SweepPlan) -> torch.Tensor:
    scores = torch.full((len(plan.cells), _SAMPLES), math.nan, dtype=torch.float32)
    for chunk in chunks:
        scores[chunk.cells, chunk.samples] = chunk.scores
    return scores
