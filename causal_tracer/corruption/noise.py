"""Noise on the subject's embeddings: Gaussian, uniform, or with the covariance of the model's embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from causal_tracer.corruption.base import SubjectEmbeddings
from causal_tracer.errors import SettingsError

_HIGHEST_SEED = 2**32


def _check_level(level: float) -> None:
    if not math.isfinite(level) or level < 0:
        raise SettingsError(f"noise={level} is not a noise level. Give 0 or a positive number.")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < _HIGHEST_SEED:
        raise SettingsError(f"seed={seed} is not a seed. Give a whole number from 0 to 2**32 - 1.")


def _on(subject: SubjectEmbeddings, noise: Tensor, *, replace: bool) -> Tensor:
    return noise if replace else subject.embedded + noise


@dataclass(frozen=True)
class GaussianNoise:
    """Gaussian noise on the embedding's output at the subject's tokens; the same draws for every cell.

    Attributes:
        level: Standard deviation of the noise, in units of the embedding's output. 0 adds nothing.
        seed: Seed of numpy's Mersenne Twister, so that draws equal those of ROME's code and causal-tracer 1.1.0.
        replace: Put the noise in the embeddings' place instead of adding it.
    """

    level: float
    seed: int
    replace: bool = False

    def __post_init__(self) -> None:
        _check_level(self.level)
        _check_seed(self.seed)

    @property
    def description(self) -> str:
        """What results call it."""
        return "Gaussian noise in place of the embeddings" if self.replace else "Gaussian noise"

    def draw(self, samples: int, tokens: int, d_model: int) -> Tensor:
        """The noise [samples, tokens, d_model], float32 on the CPU."""
        noise = np.random.RandomState(self.seed).randn(samples, tokens, d_model) * self.level
        return torch.from_numpy(noise.astype(np.float32))

    def __call__(self, subject: SubjectEmbeddings, samples: int) -> Tensor:
        """See `Corruption`."""
        return _on(subject, self.draw(samples, *subject.embedded.shape), replace=self.replace)


@dataclass(frozen=True)
class UniformNoise:
    """Noise drawn evenly from -level to level (ROME, appendix B.4).

    Attributes:
        level: Half of the range, in units of the embedding's output.
        seed: Seed of numpy's Mersenne Twister.
        replace: Put the noise in the embeddings' place instead of adding it.
    """

    level: float
    seed: int
    replace: bool = False

    def __post_init__(self) -> None:
        _check_level(self.level)
        _check_seed(self.seed)

    @property
    def description(self) -> str:
        """What results call it."""
        return "uniform noise in place of the embeddings" if self.replace else "uniform noise"

    def __call__(self, subject: SubjectEmbeddings, samples: int) -> Tensor:
        """See `Corruption`."""
        shape = (samples, *subject.embedded.shape)
        noise = np.random.RandomState(self.seed).uniform(-self.level, self.level, shape)
        return _on(subject, torch.from_numpy(noise.astype(np.float32)), replace=self.replace)


@dataclass(frozen=True)
class MultivariateNoise:
    """Gaussian noise with the covariance of the embedding's output over the vocabulary (ROME's "m").

    ROME takes the covariance over running text; here it is that over the vocabulary, which needs no data.

    Attributes:
        seed: Seed of numpy's Mersenne Twister.
        multiplier: Times the standard deviation of the embeddings; ROME takes 1.
        replace: Put the noise in the embeddings' place instead of adding it.
    """

    seed: int
    multiplier: float = 1.0
    replace: bool = False

    def __post_init__(self) -> None:
        _check_level(self.multiplier)
        _check_seed(self.seed)

    @property
    def description(self) -> str:
        """What results call it."""
        return f"Gaussian noise with {self.multiplier:g} x the embedding's covariance"

    def __call__(self, subject: SubjectEmbeddings, samples: int) -> Tensor:
        """See `Corruption`."""
        noise = np.random.RandomState(self.seed).randn(samples, *subject.embedded.shape) * self.multiplier
        return _on(subject, _with_covariance(subject, noise), replace=self.replace)


@dataclass(frozen=True)
class StudentTNoise:
    """Multivariate Student-t noise with the covariance of the embedding's output (ROME's "t"): heavier tails.

    Attributes:
        seed: Seed of numpy's Mersenne Twister.
        degrees: Degrees of freedom, above 2, so that there is a covariance to match; ROME takes 3.
        multiplier: Times the standard deviation of the embeddings.
        replace: Put the noise in the embeddings' place instead of adding it.
    """

    seed: int
    degrees: float = 3.0
    multiplier: float = 1.0
    replace: bool = False

    def __post_init__(self) -> None:
        _check_level(self.multiplier)
        _check_seed(self.seed)
        if not self.degrees > 2:
            raise SettingsError(f"degrees={self.degrees} leaves the noise no covariance. Give more than 2.")

    @property
    def description(self) -> str:
        """What results call it."""
        return f"Student-t noise ({self.degrees:g} degrees) with {self.multiplier:g} x the embedding's covariance"

    def __call__(self, subject: SubjectEmbeddings, samples: int) -> Tensor:
        """See `Corruption`."""
        random, (tokens, width) = np.random.RandomState(self.seed), subject.embedded.shape
        drawn = []
        for _ in range(samples):  # one by one, so that the first samples of many are those of few
            normal = random.randn(tokens, width)
            drawn.append(normal * np.sqrt((self.degrees - 2) / random.chisquare(self.degrees, (tokens, 1))))
        return _on(subject, _with_covariance(subject, np.stack(drawn) * self.multiplier), replace=self.replace)


def _with_covariance(subject: SubjectEmbeddings, noise: np.ndarray) -> Tensor:
    """Standard noise [samples, tokens, width] with the covariance of the embedding's output."""
    values, vectors = torch.linalg.eigh(subject.model.moments()[1])
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    drawn: Tensor = torch.from_numpy(noise) @ root
    return drawn.float()
