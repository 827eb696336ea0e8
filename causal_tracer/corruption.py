"""What corrupts the subject: noise on the output of the embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from causal_tracer.errors import NumericsError, SettingsError
from causal_tracer.hooks import evaluation_mode
from causal_tracer.layers import TracedModel

NOISE_MULTIPLIER = 3.0
"""Automatic noise in standard deviations of the embedding's output, as in ROME (arXiv 2202.05262, section 2.1)."""


@dataclass(frozen=True)
class GaussianNoise:
    """Gaussian noise, added to the embedding's output at the subject's tokens; the same draws for every cell.

    Attributes:
        level: Standard deviation of the noise, in units of the embedding's output. 0 adds nothing.
        seed: Seed of numpy's Mersenne Twister, so that draws equal those of ROME's code and causal-tracer 1.1.0.
    """

    level: float
    seed: int

    def __post_init__(self) -> None:
        if not math.isfinite(self.level) or self.level < 0:
            raise SettingsError(f"noise={self.level} is not a noise level. Give 0 or a positive number.")
        if not 0 <= self.seed < 2**32:
            raise SettingsError(f"patch_seed={self.seed} is not a seed. Give a whole number from 0 to 2**32 - 1.")

    def draw(self, samples: int, tokens: int, d_model: int) -> Tensor:
        """The noise [samples, tokens, d_model], float32 on the CPU."""
        noise = np.random.RandomState(self.seed).randn(samples, tokens, d_model) * self.level
        return torch.from_numpy(noise.astype(np.float32))


def embedding_scale(traced: TracedModel, chunk: int = 8192) -> float:
    """Standard deviation of the embedding module's output over the whole vocabulary.

    Of the output, not of the weight: some models scale their embedding in the module (Gemma by the root of d_model).

    Raises:
        NumericsError: The embedding gives values that are not finite.
    """
    total, squares, count = 0.0, 0.0, 0
    size = getattr(traced.embedding, "num_embeddings", traced.vocab_size)
    with traced.lock, evaluation_mode(traced.model):
        for start in range(0, size, chunk):
            ids = torch.arange(start, min(start + chunk, size), device=traced.input_device)
            output = traced.embedding(ids[None]).double()
            total += float(output.sum())
            squares += float(output.square().sum())
            count += output.numel()
    mean = total / count
    variance = (squares - count * mean * mean) / (count - 1)
    if not math.isfinite(variance):
        raise NumericsError(
            f"The embedding {traced.embedding_name!r} gives values that are not finite, so no noise level can be taken "
            "from it. Check the model's weights, or give a noise level."
        )
    return math.sqrt(max(0.0, variance))


def automatic_noise_level(traced: TracedModel) -> float:
    """Three standard deviations of the embedding's output."""
    return NOISE_MULTIPLIER * embedding_scale(traced)
