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
        raise SettingsError(f"seed={seed} is out of range. Give an integer from 0 to {_HIGHEST_SEED - 1}.")


def _on(subject: SubjectEmbeddings, noise: Tensor, *, replace: bool) -> Tensor:
    return noise if replace else subject.embedded + noise


@dataclass(frozen=True)
class GaussianNoise:
    """Gaussian noise on the embedding's output at the subject's tokens. Every cell gets the same noise.

    Attributes:
        level: Standard deviation of the noise, in units of the embedding's output. 0 adds nothing.
        seed: Seed of numpy's Mersenne Twister, as in ROME's code and causal-tracer 1.1.0, so that the noise is equal.
        replace: Replace the embeddings by the noise instead of adding it.
    """

    level: float
    seed: int
    replace: bool = False

    def __post_init__(self) -> None:
        _check_level(self.level)
        _check_seed(self.seed)

    @property
    def description(self) -> str:
        """The corruption in a few words, for results."""
        return "Gaussian noise in place of the embeddings" if self.replace else "Gaussian noise"

    def draw(self, samples: int, tokens: int, d_model: int) -> Tensor:
        """Return the noise [samples, tokens, d_model], float32 on the CPU."""
        noise = np.random.RandomState(self.seed).randn(samples, tokens, d_model) * self.level
        return torch.from_numpy(noise.astype(np.float32))

    def __call__(self, subject: SubjectEmbeddings, samples: int) -> Tensor:
        """See `Corruption`."""
        return _on(subject, self.draw(samples, *subject.embedded.shape), replace=self.replace)


@dataclass(frozen=True)
class UniformNoise:
    """Noise drawn uniformly from -level to level (ROME, appendix B.4).

    Attributes:
        level: Half of the width of the range, in units of the embedding's output.
        seed: Seed of numpy's Mersenne Twister.
        replace: Replace the embeddings by the noise instead of adding it.
    """

    level: float
    seed: int
    replace: bool = False

    def __post_init__(self) -> None:
        _check_level(self.level)
        _check_seed(self.seed)

    @property
    def description(self) -> str:
        """The corruption in a few words, for results."""
        return "uniform noise in place of the embeddings" if self.replace else "uniform noise"

    def __call__(self, subject: SubjectEmbeddings, samples: int) -> Tensor:
        """See `Corruption`."""
        shape = (samples, *subject.embedded.shape)
        noise = np.random.RandomState(self.seed).uniform(-self.level, self.level, shape)
        return _on(subject, torch.from_numpy(noise.astype(np.float32)), replace=self.replace)


@dataclass(frozen=True)
class MultivariateNoise:
    """Gaussian noise with the covariance of the embedding's output over the vocabulary (ROME's "m").

    ROME computes the covariance over running text. Here it is computed over the vocabulary, which needs no data.

    Attributes:
        seed: Seed of numpy's Mersenne Twister.
        multiplier: Noise level in standard deviations of the embeddings; 1 in ROME.
        replace: Replace the embeddings by the noise instead of adding it.
    """

    seed: int
    multiplier: float = 1.0
    replace: bool = False

    def __post_init__(self) -> None:
        _check_level(self.multiplier)
        _check_seed(self.seed)

    @property
    def description(self) -> str:
        """The corruption in a few words, for results."""
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
        degrees: Degrees of freedom; 3 in ROME. Must be above 2, since the covariance is infinite otherwise.
        multiplier: Noise level in standard deviations of the embeddings.
        replace: Replace the embeddings by the noise instead of adding it.
    """

    seed: int
    degrees: float = 3.0
    multiplier: float = 1.0
    replace: bool = False

    def __post_init__(self) -> None:
        _check_level(self.multiplier)
        _check_seed(self.seed)
        if not self.degrees > 2:
            raise SettingsError(f"degrees={self.degrees} is too small: the covariance is infinite. Give more than 2.")

    @property
    def description(self) -> str:
        """The corruption in a few words, for results."""
        return f"Student-t noise ({self.degrees:g} degrees) with {self.multiplier:g} x the embedding's covariance"

    def __call__(self, subject: SubjectEmbeddings, samples: int) -> Tensor:
        """See `Corruption`."""
        random, (tokens, width) = np.random.RandomState(self.seed), subject.embedded.shape
        drawn = []
        for _ in range(samples):  # one by one, so that the first n samples do not depend on how many follow
            normal = random.randn(tokens, width)
            drawn.append(normal * np.sqrt((self.degrees - 2) / random.chisquare(self.degrees, (tokens, 1))))
        return _on(subject, _with_covariance(subject, np.stack(drawn) * self.multiplier), replace=self.replace)


def _with_covariance(subject: SubjectEmbeddings, noise: np.ndarray) -> Tensor:
    """Return noise [samples, tokens, width], given with unit covariance, with the embedding output's covariance."""
    values, vectors = torch.linalg.eigh(subject.model.moments()[1])
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    drawn: Tensor = torch.from_numpy(noise) @ root
    return drawn.float()
