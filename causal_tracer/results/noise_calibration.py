"""What a noise calibration found: P* of the answer against the noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from causal_tracer.results.intervals import standard_error

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
        return standard_error(self.corrupted)

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
