"""How strong noise may be asked to be."""

from __future__ import annotations

from dataclasses import dataclass

NOISE_MULTIPLIER = 3.0
"""Automatic noise in standard deviations of the embedding's output, as in ROME (arXiv 2202.05262, section 2.1)."""

AUTOMATIC_NOISE_RULE = f"{NOISE_MULTIPLIER:g} sd of the embedding output"
"""How results name the rule of automatic noise."""


@dataclass(frozen=True)
class SubjectsNoise:
    """Noise as a multiple of the standard deviation of given subjects' embeddings: ROME's "s3" rule.

    Attributes:
        subjects: The subjects of some facts.
        multiplier: Times their standard deviation.
    """

    subjects: tuple[str, ...]
    multiplier: float = NOISE_MULTIPLIER


NoiseRule = float | str | SubjectsNoise | None
"""A level; "2 sigma" or the like, of the embedding's output over the vocabulary; of subjects; None is 3 sigma."""
