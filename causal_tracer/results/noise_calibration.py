"""`NoiseCalibration`: the answer's probability in the corrupted run (P*) at several noise levels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from causal_tracer.results.intervals import standard_error

_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class NoiseCalibration:
    """The answer's probability at several noise levels, over some facts.

    Attributes:
        sigma: The standard deviation of the embedding's output over the vocabulary.
        multipliers: The noise levels in units of `sigma`, ascending.
        clean: P of the answer in each fact's clean run [facts].
        corrupted: P* of the answer in the corrupted run, as the mean over samples [facts, multipliers].
        samples: Number of noise samples of each fact.
    """

    sigma: float
    multipliers: tuple[float, ...]
    clean: Tensor
    corrupted: Tensor
    samples: int

    @property
    def mean_clean(self) -> float:
        """The mean of P over facts."""
        return float(self.clean.mean())

    @property
    def mean_corrupted(self) -> Tensor:
        """The mean of P* over facts [multipliers]."""
        return self.corrupted.mean(dim=0)

    @property
    def standard_error(self) -> Tensor:
        """The standard error of the mean of P* over facts [multipliers]; NaN with a single fact."""
        return standard_error(self.corrupted)

    @property
    def recommended_multiplier(self) -> float:
        """The smallest multiplier whose drop in P is at least 90 % of the largest drop at any of the multipliers.

        Stronger noise hardly lowers P further, and moves the embeddings further from those that the model was trained
        on.
        """
        corrupted = self.mean_corrupted
        lowest = float(corrupted.min())
        enough = corrupted <= lowest + _SHARE * (self.mean_clean - lowest)
        return self.multipliers[int(enough.nonzero()[0])]

    @property
    def recommended_level(self) -> float:
        """The recommended noise level, as `CausalTracer(noise=...)` takes it."""
        return self.recommended_multiplier * self.sigma
