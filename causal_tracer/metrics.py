"""What is read off the logits at the read position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Metric(Protocol):
    """Turns logits into one number a row."""

    def __call__(self, logits: Tensor) -> Tensor:
        """From float32 logits [rows, vocabulary] to values [rows]."""
        ...


@dataclass(frozen=True)
class AnswerProbability:
    """The probability of the answer, as in ROME (arXiv 2202.05262, section 2.1)."""

    answer_id: int

    def __call__(self, logits: Tensor) -> Tensor:
        """From float32 logits [rows, vocabulary] to probabilities [rows]."""
        return logits.softmax(dim=-1)[:, self.answer_id]


@dataclass(frozen=True)
class LogProbability:
    """The natural logarithm of the answer's probability."""

    answer_id: int

    def __call__(self, logits: Tensor) -> Tensor:
        """From float32 logits [rows, vocabulary] to log-probabilities [rows]."""
        return logits.log_softmax(dim=-1)[:, self.answer_id]
