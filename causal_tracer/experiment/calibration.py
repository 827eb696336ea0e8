"""Noise calibration: the answer's corrupted probability P* at several noise levels, over some facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from causal_tracer.arguments import MOST_SAMPLES, as_list, real_number, whole_number
from causal_tracer.corruption import GaussianNoise
from causal_tracer.errors import SettingsError
from causal_tracer.experiment.base_run import base_run
from causal_tracer.experiment.noise_levels import embedding_scale
from causal_tracer.experiment.set_up import TracingContext, set_up
from causal_tracer.model.batch_size import default_batch_size
from causal_tracer.model.torch_state import in_standard_torch_state
from causal_tracer.request.records import HiddenFlowQuery, TraceRequest
from causal_tracer.results.noise_calibration import NoiseCalibration

MULTIPLIERS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)
"""The default noise levels, in standard deviations of the embedding's output."""


@in_standard_torch_state
def calibrate_noise(
    context: TracingContext,
    facts: Sequence[HiddenFlowQuery],
    multipliers: Sequence[float] = MULTIPLIERS,
    samples: int = 10,
    seed: int = 1,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> NoiseCalibration:
    """Measure the answer's probability in clean and corrupted runs of each fact at each noise level.

    Nothing is restored. For the arguments see `CausalTracer.calibrate_noise`.

    Raises:
        SettingsError: There are no facts, or a multiplier is not positive.
        PromptError, TokenizerError, NumericsError: A fact cannot be traced.
    """
    levels = sorted({real_number("multipliers", multiplier) for multiplier in as_list("multipliers", multipliers)})
    samples = whole_number("samples", samples, 1, MOST_SAMPLES)
    if not facts or not levels or levels[0] <= 0:
        raise SettingsError(
            f"A calibration needs at least one fact and multipliers above 0 (given: {len(facts)} facts, multipliers "
            f"{levels})."
        )
    sigma = embedding_scale(context.traced)
    clean, corrupted = [], []
    for number, fact in enumerate(facts):
        request = TraceRequest(fact.text, fact.subject, answer_id=fact.override_answer_id, samples=samples, seed=seed)
        experiment = set_up(context, request)
        rows = []
        for level in levels:
            noisy = replace(experiment, corruption=GaussianNoise(level * sigma, seed))
            batch_size = default_batch_size(context.traced, len(noisy.clean_input.sequence))
            base, _ = base_run(
                context.traced, noisy.clean_input.sequence, noisy.embeddings(0, samples), noisy.metric, batch_size
            )
            rows.append(float(base.scores.mean()))
        clean.append(experiment.high_score)
        corrupted.append(rows)
        progress(number + 1, len(facts))
    return NoiseCalibration(
        sigma,
        tuple(levels),
        torch.tensor(clean, dtype=torch.float32),
        torch.tensor(corrupted, dtype=torch.float32),
        samples,
    )
