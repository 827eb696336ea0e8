"""Metrics: functions from the logits at the positions read to one number per row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from causal_tracer.errors import SettingsError
from causal_tracer.metrics.descriptions import MetricDescription

LOGITS_IN_CACHE = 4096
"""Number of logits of a row that are reduced at a time, so that they stay in the processor's cache."""


class Metric(Protocol):
    """Computes one number per row from logits.

    A metric may have an attribute `description`, a `MetricDescription`, which figures and reports then use.
    """

    def __call__(self, logits: Tensor) -> Tensor:
        """Return values [rows] for float32 logits [rows, reads, vocabulary]."""
        ...


@dataclass(frozen=True, eq=False)
class Target:
    """The values a metric is made from: answer, foil, and the clean run's logits.

    Attributes:
        answer_ids: The answer's token ids. The i-th token is read at the i-th position.
        clean_logits: The clean run's logits [reads, vocabulary], float32.
        foil_id: The token id that the answer is compared with, if there is one.
    """

    answer_ids: tuple[int, ...]
    clean_logits: Tensor
    foil_id: int | None = None


def largest_and_log_total(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum m of logits [..., vocabulary], and log sum exp(logits - m), each [...].

    A log-probability is a logit minus both, one after the other: subtracting their sum would lose two digits. The sum
    is computed in parts, which is twice as fast as at once and does not copy the logits.
    """
    largest = logits.amax(dim=-1)
    parts = [(part - largest[..., None]).exp_().sum(dim=-1) for part in torch.split(logits, LOGITS_IN_CACHE, dim=-1)]
    return largest, torch.stack(parts).sum(dim=0).log()


def log_probabilities(logits: Tensor, token_ids: tuple[int, ...]) -> Tensor:
    """Return the i-th token's log-probability at the i-th position read [rows, reads].

    Args:
        logits: Logits [rows, reads, vocabulary].
        token_ids: One token id for each position read.
    """
    reads = torch.arange(len(token_ids), device=logits.device)
    largest, log_total = largest_and_log_total(logits)
    return logits[:, reads, torch.tensor(token_ids, device=logits.device)] - largest - log_total


@dataclass(frozen=True)
class AnswerProbability:
    """The probability of the answer, as in ROME (arXiv 2202.05262, section 2.1).

    For several tokens it is the product of their probabilities, each given the tokens before it.
    """

    answer_ids: tuple[int, ...]

    def __call__(self, logits: Tensor) -> Tensor:
        """Return probabilities [rows] for float32 logits [rows, reads, vocabulary]."""
        return log_probabilities(logits, self.answer_ids).sum(dim=-1).exp()


@dataclass(frozen=True)
class LogProbability:
    """The natural logarithm of the answer's probability (all of its tokens)."""

    answer_ids: tuple[int, ...]

    def __call__(self, logits: Tensor) -> Tensor:
        """Return log-probabilities [rows] for float32 logits [rows, reads, vocabulary]."""
        return log_probabilities(logits, self.answer_ids).sum(dim=-1)


@dataclass(frozen=True)
class AnswerLogit:
    """The logit of the answer's first token."""

    answer_id: int

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the answer's logits [rows] for float32 logits [rows, reads, vocabulary]."""
        return logits[:, 0, self.answer_id]


@dataclass(frozen=True)
class LogitDifference:
    """The answer's logit minus the foil's, at the first position read (Zhang & Nanda, arXiv 2309.16042)."""

    answer_id: int
    foil_id: int

    def __call__(self, logits: Tensor) -> Tensor:
        """Return differences [rows] for float32 logits [rows, reads, vocabulary]."""
        return logits[:, 0, self.answer_id] - logits[:, 0, self.foil_id]


@dataclass(frozen=True)
class AnswerRank:
    """The rank of the answer's first token: the number of more probable tokens, plus one."""

    answer_id: int

    def __call__(self, logits: Tensor) -> Tensor:
        """Return ranks [rows] for float32 logits [rows, reads, vocabulary]."""
        first = logits[:, 0]
        return (first > first[:, self.answer_id, None]).sum(dim=-1).float() + 1


@dataclass(frozen=True, eq=False)
class DivergenceFromClean:
    """KL(clean || run) of the next token at the first position read, in nats. 0 where both runs predict the same.

    Attributes:
        clean_logits: The clean run's logits at that position [vocabulary].
    """

    clean_logits: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        """Return divergences [rows] for float32 logits [rows, reads, vocabulary]."""
        clean, first = self.clean_logits.to(logits.device), logits[:, 0]
        weights = clean.softmax(dim=-1)
        clean_largest, clean_total = largest_and_log_total(clean)
        largest, log_total = largest_and_log_total(first)
        # Both terms are computed alike, so that they cancel where the runs predict the same.
        entropy = weights @ (clean - clean_largest) - clean_total
        return (entropy - (first @ weights - largest - log_total)).clamp(min=0)


def _difference(target: Target) -> Metric:
    if target.foil_id is None:
        raise SettingsError("The metric 'logit difference' needs a foil, and none is given. Give one.")
    if target.foil_id == target.answer_ids[0]:
        raise SettingsError(
            f"The answer and the foil begin with the same token ({target.foil_id}), so their logits do not differ. "
            "Give another foil, or trace the probability of the whole answer."
        )
    return LogitDifference(target.answer_ids[0], target.foil_id)


METRICS: Mapping[str, Callable[[Target], Metric]] = {
    "probability": lambda target: AnswerProbability(target.answer_ids),
    "log-probability": lambda target: LogProbability(target.answer_ids),
    "logit": lambda target: AnswerLogit(target.answer_ids[0]),
    "logit difference": _difference,
    "rank": lambda target: AnswerRank(target.answer_ids[0]),
    "KL from clean": lambda target: DivergenceFromClean(target.clean_logits[0]),
}
"""Functions that return a metric for a `Target`, by the metric's name."""


def metric_named(name: str, target: Target) -> Metric:
    """Return a built-in metric.

    Raises:
        SettingsError: The name is not known, or the metric needs a foil and the target has none that differs.
    """
    if name not in METRICS:
        raise SettingsError(f"metric={name!r} is not known. The metrics are {', '.join(map(repr, METRICS))}.")
    return METRICS[name](target)


def user_metric_description(metric: Metric) -> MetricDescription:
    """Return the description of a user-defined metric: its `description`, else one with its name as the label."""
    described = getattr(metric, "description", None)
    if isinstance(described, MetricDescription):
        return described
    name = getattr(metric, "__name__", type(metric).__name__)
    return MetricDescription(name, described if isinstance(described, str) else name)
