"""Corruptions without chance: the subject's embeddings set to one value, or left as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from causal_tracer.corruption.base import SubjectEmbeddings


@dataclass(frozen=True)
class ZeroEmbedding:
    """The subject's embeddings set to zero (zero ablation)."""

    @property
    def description(self) -> str:
        """What results call it."""
        return "embeddings set to zero"

    def __call__(self, subject: SubjectEmbeddings, samples: int) -> Tensor:
        """See `Corruption`: one sample."""
        return torch.zeros_like(subject.embedded)[None]


@dataclass(frozen=True)
class MeanEmbedding:
    """The subject's embeddings set to the mean of the embedding's output over the vocabulary (mean ablation)."""

    @property
    def description(self) -> str:
        """What results call it."""
        return "embeddings set to their mean over the vocabulary"

    def __call__(self, subject: SubjectEmbeddings, samples: int) -> Tensor:
        """See `Corruption`: one sample."""
        mean = subject.model.moments()[0].float()
        return mean.expand_as(subject.embedded)[None].clone()


@dataclass(frozen=True)
class NoCorruption:
    """The subject's embeddings as they are, for interventions in the clean run."""

    @property
    def description(self) -> str:
        """What results call it."""
        return "nothing"

    def __call__(self, subject: SubjectEmbeddings, samples: int) -> Tensor:
        """See `Corruption`: one sample."""
        return subject.embedded[None].clone()
