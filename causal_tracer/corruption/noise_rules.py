"""Rules for the noise level: a number, a multiple of a standard deviation, or the automatic level."""

from __future__ import annotations

from dataclasses import dataclass

NOISE_MULTIPLIER = 3.0
"""The automatic noise level, in standard deviations of the embedding's output (ROME, arXiv 2202.05262, section 2.1)."""

AUTOMATIC_NOISE_RULE = f"{NOISE_MULTIPLIER:g} sd of the embedding output"
"""The description of the automatic noise level in results."""


@dataclass(frozen=True)
class SubjectsNoise:
    """A noise level that is a multiple of the standard deviation of given subjects' embeddings: ROME's "s3" rule.

    Attributes:
        subjects: The subjects of some facts.
        multiplier: Noise level in standard deviations of the subjects' embeddings.
    """

    subjects: tuple[str, ...]
    multiplier: float = NOISE_MULTIPLIER


NoiseRule = float | str | SubjectsNoise | None
"""A noise level. A number is the level itself. A text such as "2 sigma" is a multiple of the standard deviation of the
embedding's output over the vocabulary. None is "3 sigma"."""
