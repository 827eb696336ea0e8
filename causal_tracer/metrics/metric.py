"""What is read off the logits at the read positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from causal_tracer.errors import SettingsError
from causal_tracer.metrics.descriptions import MetricDescription

LOGITS_IN_CACHE = 4096
"""Logits of a row that are reduced together: more would leave the processor's cache."""


class Metric(Protocol):
    """Turns logits into one number a row.

    A metric may have an attribute `description`, a `MetricDescription`, which figures and reports then read.
    """

    def __call__(self, logits: Tensor) -> Tensor:
        """From float32 logits [rows, reads, vocabulary] to values [rows]."""
        ...


@dataclass(frozen=True, eq=False)
class Target:
    """What a metric may look at.

    Attributes:
        answer_ids: The answer's tokens: the i-th is read at the i-th position.
        clean_logits: The clean run's logits [reads, vocabulary], float32.
        foil_id: The token that the answer is set against, where there is one.
    """

    answer_ids: tuple[int, ...]
    clean_logits: Tensor
    foil_id: int | None = None


def largest_and_log_total(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of logits [..., vocabulary], and the log of the sum of exp of all less the largest.

    A log-probability is a logit less both, in this order: subtracting their sum would lose two digits. In parts, which
    is twice as fast as at once and makes no copy of the logits.
    """
    largest = logits.amax(dim=-1)
    parts = [(part - largest[..., None]).exp_().sum(dim=-1) for part in torch.split(logits, LOGITS_IN_CACHE, dim=-1)]
    return largest, torch.stack(parts).sum(dim=0).log()


def log_probabilities(logits: Tensor, token_ids: tuple[int, ...]) -> Tensor:
    """The log of a token's probability at each position read, from logits [rows, reads, vocabulary]: [rows, reads]."""
    reads = torch.arange(len(token_ids), device=logits.device)
    largest, log_total = largest_and_log_total(logits)
    return logits[:, reads, torch.tensor(token_ids, device=logits.device)] - largest - log_total


@dataclass(frozen=True)
class AnswerProbability:
    """The probability of the answer, as in ROME (arXiv 2202.05262, section 2.1).

    Of several tokens it is the product of each one's probability after those before it.
    """

    answer_ids: tuple[int, ...]

    def __call__(self, logits: Tensor) -> Tensor:
        """From float32 logits [rows, reads, vocabulary] to probabilities [rows]."""
        return log_probabilities(logits, self.answer_ids).sum(dim=-1).exp()


@dataclass(frozen=True)
class LogProbability:
    """The natural logarithm of the answer's probability; of several tokens, of all of them."""

    answer_ids: tuple[int, ...]

    def __call__(self, logits: Tensor) -> Tensor:
        """From float32 logits [rows, reads, vocabulary] to log-probabilities [rows]."""
        return log_probabilities(logits, self.answer_ids).sum(dim=-1)


@dataclass(frozen=True)
class AnswerLogit:
    """The logit of the answer's first token."""

    answer_id: int

    def __call__(self, logits: Tensor) -> Tensor:
        """From float32 logits [rows, reads, vocabulary] to logits [rows]."""
        return logits[:, 0, self.answer_id]


@dataclass(frozen=True)
class LogitDifference:
    """The answer's logit less the foil's, at the first position (Zhang & Nanda, arXiv 2309.16042)."""

    answer_id: int
    foil_id: int

    def __call__(self, logits: Tensor) -> Tensor:
        """From float32 logits [rows, reads, vocabulary] to differences [rows]."""
        return logits[:, 0, self.answer_id] - logits[:, 0, self.foil_id]


@dataclass(frozen=True)
class AnswerRank:
    """How many tokens are more probable than the answer's first token, plus one: 1 is the top."""

    answer_id: int

    def __call__(self, logits: Tensor) -> Tensor:
        """From float32 logits [rows, reads, vocabulary] to ranks [rows]."""
        first = logits[:, 0]
        return (first > first[:, self.answer_id, None]).sum(dim=-1).float() + 1


@dataclass(frozen=True, eq=False)
class DivergenceFromClean:
    """KL(clean || run) of the next token at the first position, in nats: 0 where the run says what the clean one does.

    Attributes:
        clean_logits: The clean run's logits there [vocabulary].
    """

    clean_logits: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        """From float32 logits [rows, reads, vocabulary] to divergences [rows]."""
        clean, first = self.clean_logits.to(logits.device), logits[:, 0]
        weights = clean.softmax(dim=-1)
        clean_largest, clean_total = largest_and_log_total(clean)
        largest, log_total = largest_and_log_total(first)
        # Entropies cancel to rounding where both runs say the same.
        entropy = weights @ (clean - clean_largest) - clean_total
        return (entropy - (first @ weights - largest - log_total)).clamp(min=0)


def _difference(target: Target) -> Metric:
    if target.foil_id is None:
        raise SettingsError("The metric 'logit difference' sets the answer against a foil, and none is given.")
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
"""From a `Target` to each metric, by its name."""


def metric_named(name: str, target: Target) -> Metric:
    """The metric of this name.

    Raises:
        SettingsError: There is none, or it lacks the foil that it needs.
    """
    if name not in METRICS:
        raise SettingsError(f"metric={name!r} is not known. The metrics are {', '.join(map(repr, METRICS))}.")
    return METRICS[name](target)


def own_description(metric: Metric) -> MetricDescription:
    """Return how results present a metric of the user's: its `description`, else its class's name as the label."""
    described = getattr(metric, "description", None)
    if isinstance(described, MetricDescription):
        return described
    name = getattr(metric, "__name__", type(metric).__name__)
    return MetricDescription(name, described if isinstance(described, str) else name)
