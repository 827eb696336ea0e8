"""How much noise a model needs: P* of the answer against the noise, over some facts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from causal_tracer.corruption import GaussianNoise, embedding_scale
from causal_tracer.errors import SettingsError
from causal_tracer.experiment.base_run import base_run
from causal_tracer.experiment.set_up import TracingContext, set_up
from causal_tracer.model.torch_state import in_standard_torch_state
from causal_tracer.request.arguments import MOST_SAMPLES, real_number, several, whole_number
from causal_tracer.request.records import HiddenFlowQuery, TraceRequest
from causal_tracer.sweep.batch_size import default_batch_size

MULTIPLIERS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)
_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class NoiseCalibration:
    """The answer's probability against the noise.

    Attributes:
        sigma: One standard deviation of the embedding's output over the vocabulary.
        multipliers: Noise levels, in sigmas, ascending.
        clean: P of the answer in the clean run of each fact [facts].
        corrupted: P* of the answer, mean over samples [facts, multipliers].
        samples: Noise samples of each fact.
    """

    sigma: float
    multipliers: tuple[float, ...]
    clean: Tensor
    corrupted: Tensor
    samples: int

    @property
    def mean_clean(self) -> float:
        """Mean of P over facts."""
        return float(self.clean.mean())

    @property
    def mean_corrupted(self) -> Tensor:
        """Mean of P* over facts [multipliers]."""
        return self.corrupted.mean(dim=0)

    @property
    def standard_error(self) -> Tensor:
        """Standard error of the mean of P* over facts [multipliers]; NaN with a single fact."""
        facts = len(self.corrupted)
        return (
            self.corrupted.std(dim=0, correction=1) / math.sqrt(facts) if facts > 1 else self.mean_corrupted * math.nan
        )

    @property
    def recommended_multiplier(self) -> float:
        """The least noise that takes away 90 % of what the strongest noise effect among these takes away.

        More would not destroy more of the fact, and takes the model further from what it was trained on.
        """
        corrupted = self.mean_corrupted
        lowest = float(corrupted.min())
        enough = corrupted <= lowest + _SHARE * (self.mean_clean - lowest)
        return self.multipliers[int(enough.nonzero()[0])]

    @property
    def recommended_level(self) -> float:
        """The recommended noise, as `CausalTracer(noise=...)` takes it."""
        return self.recommended_multiplier * self.sigma


@in_standard_torch_state
def calibrate_noise(
    context: TracingContext,
    facts: Sequence[HiddenFlowQuery],
    multipliers: Sequence[float] = MULTIPLIERS,
    samples: int = 10,
    seed: int = 1,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> NoiseCalibration:
    """Measure P* of the answer over facts and noise levels; no restoration is computed.

    Raises:
        SettingsError: No facts, or multipliers that are not positive.
        PromptError, TokenizerError, NumericsError: As in a trace of one of the facts.
    """
    levels = sorted({real_number("multipliers", multiplier) for multiplier in several("multipliers", multipliers)})
    samples = whole_number("samples", samples, 1, MOST_SAMPLES)
    if not facts or not levels or levels[0] <= 0:
        raise SettingsError(
            f"{len(facts)} facts and multipliers {levels} give no calibration. Give at least one fact, and "
            "multipliers above 0."
        )
    sigma = embedding_scale(context.traced)
    clean, corrupted = [], []
    for number, fact in enumerate(facts):
        request = TraceRequest(fact.text, fact.subject, answer_id=fact.override_answer_id, samples=samples, seed=seed)
        experiment = set_up(context, request)
        rows = []
        for level in levels:
            noisy = replace(experiment, corruption=GaussianNoise(level * sigma, seed))
            batch_size = default_batch_size(context.traced, len(noisy.sequence))
            base, _ = base_run(context.traced, noisy.sequence, noisy.embeddings(0, samples), noisy.metric, batch_size)
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
