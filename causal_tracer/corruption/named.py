"""The built-in corruptions by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from causal_tracer.corruption.base import Corruption
from causal_tracer.corruption.counterfactual import CounterfactualSubjects
from causal_tracer.corruption.noise import GaussianNoise, MultivariateNoise, StudentTNoise, UniformNoise
from causal_tracer.corruption.replacing import MeanEmbedding, NoCorruption, ZeroEmbedding
from causal_tracer.errors import SettingsError


@dataclass(frozen=True)
class NamedCorruption:
    """A built-in corruption.

    Attributes:
        label: Its name in lists.
        make: Returns the corruption for a noise level and a seed.
        takes_level: Whether it depends on the noise level.
        is_random: Whether it depends on the seed. Only random corruptions can have any number of samples.
        corrupts: Whether it changes the embeddings at all.
    """

    label: str
    make: Callable[[float, int], Corruption]
    takes_level: bool = True
    is_random: bool = True
    corrupts: bool = True


CORRUPTIONS: Mapping[str, NamedCorruption] = {
    "gaussian": NamedCorruption("Gaussian noise, added", GaussianNoise),
    "gaussian replacing": NamedCorruption(
        "Gaussian noise instead", lambda level, seed: GaussianNoise(level, seed, replace=True)
    ),
    "uniform": NamedCorruption("Uniform noise, added", UniformNoise),
    "uniform replacing": NamedCorruption(
        "Uniform noise instead", lambda level, seed: UniformNoise(level, seed, replace=True)
    ),
    "multivariate": NamedCorruption(
        "Gaussian, embeddings' covariance", lambda _level, seed: MultivariateNoise(seed), takes_level=False
    ),
    "student-t": NamedCorruption(
        "Student-t, embeddings' covariance", lambda _level, seed: StudentTNoise(seed), takes_level=False
    ),
    "zero": NamedCorruption("Zero embeddings", lambda *_: ZeroEmbedding(), takes_level=False, is_random=False),
    "mean": NamedCorruption("Mean embedding", lambda *_: MeanEmbedding(), takes_level=False, is_random=False),
    "none": NamedCorruption("Nothing", lambda *_: NoCorruption(), takes_level=False, is_random=False, corrupts=False),
}
"""The built-in corruptions by name, in the order of lists."""

CORRUPTION_RECORDS: tuple[type, ...] = (
    *{type(named.make(1.0, 0)): None for named in CORRUPTIONS.values()},
    CounterfactualSubjects,
)
"""The classes of the corruptions that a stored request can hold."""


def corruption_named(name: str, level: float, seed: int) -> Corruption:
    """Return a built-in corruption.

    Raises:
        SettingsError: The name is not known, or the level or seed is out of range.
    """
    if name not in CORRUPTIONS:
        raise SettingsError(
            f"corruption={name!r} is not known. The corruptions are {', '.join(map(repr, CORRUPTIONS))}."
        )
    return CORRUPTIONS[name].make(level, seed)
