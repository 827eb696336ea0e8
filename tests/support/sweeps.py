"""Any sweep run on a tiny model: its base run, cells and maps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causal_tracer.corruption import GaussianNoise
from causal_tracer.experiment.base_run import BaseRun, corrupted_run
from causal_tracer.metrics.metric import AnswerProbability, Metric
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.runs import CleanRun, clean_run
from causal_tracer.prompts.prompt import Prompt, make_prompt
from causal_tracer.request.sites import LayerKind
from causal_tracer.sweep.plan import Cell, Sweep, SweepChunk, SweepPlan, map_plan
from tests.support.tiny_models import (
    PROMPT,
    SUBJECT,
    tiny_tracer,
)

Engine = Callable[[Sweep], Iterable[SweepChunk]]


SAMPLES = 2


TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Base:
    """Everything that a sweep is given but its plan."""

    traced: TracedModel
    prompt: Prompt
    clean: CleanRun
    corrupted: BaseRun
    metric: Metric
    noise: float

    @property
    def high(self) -> float:
        return float(self.clean.probabilities[self.clean.top_id])

    @property
    def n_tokens(self) -> int:
        return len(self.prompt)


@functools.cache
def base_runs(name: str, noise: float | None = None, text: str = PROMPT, subject: str = SUBJECT, seed: int = 1) -> Base:
    tracer = tiny_tracer(name)
    traced = tracer.context.traced
    level = tracer.noise if noise is None else noise
    prompt = make_prompt(tracer.tokenizer, text, subject)
    clean = clean_run(traced, prompt.input_ids)
    metric = AnswerProbability((clean.top_id,))
    corrupted = corrupted_run(traced, prompt, GaussianNoise(level, seed), SAMPLES, metric, 64)
    return Base(traced, prompt, clean, corrupted, metric, level)


def sweep_cells(engine: Engine, base: Base, cells: Sequence[Cell], batch_size: int = 64) -> Tensor:
    """Scores [samples, cells]; every one must have been yielded exactly once."""
    scores = torch.full((SAMPLES, len(cells)), torch.nan)
    sweep = Sweep(base.traced, base.clean, base.corrupted, SweepPlan(tuple(cells)), base.metric, batch_size)
    for chunk in engine(sweep):
        assert scores[chunk.samples, chunk.cells].isnan().all(), "a score was yielded twice"
        scores[chunk.samples, chunk.cells] = chunk.scores
    assert not scores.isnan().any(), "a score was never yielded"
    return scores


def sweep_map(
    engine: Engine,
    base: Base,
    kind: LayerKind,
    window: int,
    batch_size: int = 64,
    positions: Sequence[int] | None = None,
) -> Tensor:
    """Scores [samples, tokens, layers]; NaN at positions not asked for."""
    positions = range(base.n_tokens) if positions is None else positions
    plan = map_plan(base.traced, base.prompt, kind, window, positions, range(base.traced.n_layers))
    found = sweep_cells(engine, base, plan.cells, batch_size)
    scores = torch.full((SAMPLES, base.n_tokens, base.traced.n_layers), torch.nan)
    for number, cell in enumerate(plan.cells):
        scores[:, cell.position, cell.layer] = found[:, number]
    return scores
