"""Corruptions that are not random: the subject's embeddings set to a constant, or left unchanged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from causal_tracer.corruption.base import SubjectEmbeddings


@dataclass(frozen=True)
class NoCorruption:
    """Leaves the subject's embeddings unchanged, for interventions in the clean run."""

    @property
    def description(self) -> str:
        """The corruption in a few words, for results."""
        return "nothing"

    def __call__(self, subject: SubjectEmbeddings, samples: int) -> Tensor:
        """See `Corruption`. There is one sample."""
        return subject.embedded[None].clone()


@dataclass(frozen=True)
class ZeroEmbedding:
    """Sets the subject's embeddings to zero (zero ablation)."""

    @property
    def description(self) -> str:
        """The corruption in a few words, for results."""
        return "embeddings set to zero"

    def __call__(self, subject: SubjectEmbeddings, samples: int) -> Tensor:
        """See `Corruption`. There is one sample."""
        return torch.zeros_like(subject.embedded)[None]


@dataclass(frozen=True)
class MeanEmbedding:
    """Sets the subject's embeddings to the mean of the embedding's output over the vocabulary (mean ablation)."""

    @property
    def description(self) -> str:
        """The corruption in a few words, for results."""
        return "embeddings set to their mean over the vocabulary"

    def __call__(self, subject: SubjectEmbeddings, samples: int) -> Tensor:
        """See `Corruption`. There is one sample."""
        mean = subject.model.moments()[0].float()
        return mean.expand_as(subject.embedded)[None].clone()
