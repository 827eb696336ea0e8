"""Corruptions by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from causal_tracer.corruption.base import Corruption
from causal_tracer.corruption.noise import GaussianNoise, MultivariateNoise, StudentTNoise, UniformNoise
from causal_tracer.corruption.replacing import MeanEmbedding, ZeroEmbedding
from causal_tracer.errors import SettingsError

CORRUPTIONS: Mapping[str, Callable[[float, int], Corruption]] = {
    "gaussian": GaussianNoise,
    "gaussian replacing": lambda level, seed: GaussianNoise(level, seed, replace=True),
    "uniform": UniformNoise,
    "uniform replacing": lambda level, seed: UniformNoise(level, seed, replace=True),
    "multivariate": lambda _level, seed: MultivariateNoise(seed),
    "student-t": lambda _level, seed: StudentTNoise(seed),
    "zero": lambda _level, _seed: ZeroEmbedding(),
    "mean": lambda _level, _seed: MeanEmbedding(),
}
"""From (noise level, seed) to a corruption; those with a scale of their own take no level."""


def corruption_named(name: str, level: float, seed: int) -> Corruption:
    """The corruption of this name.

    Raises:
        SettingsError: There is none, or the level or seed is out of range.
    """
    if name not in CORRUPTIONS:
        raise SettingsError(
            f"corruption={name!r} is not known. The corruptions are {', '.join(map(repr, CORRUPTIONS))}."
        )
    return CORRUPTIONS[name](level, seed)
