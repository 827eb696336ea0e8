"""Collects the most probable next tokens of restored runs as their logits are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from causal_tracer.experiment.base_run import RowLogits
from causal_tracer.metrics.metric import largest_and_log_total
from causal_tracer.results.top_tokens import TokenProbability, Tokens


class TopTokenCollector:
    """Averages each cell's next-token probabilities over samples, and keeps the most probable tokens.

    The rows of a cell follow each other, so at most one cell's distribution is incomplete at a time.
    """

    def __init__(self, count: int, samples: int, text: Callable[[int], str]):
        self._count = count
        self._samples = samples
        self._text = text
        self._open: dict[int, tuple[Tensor, int]] = {}
        self._found: dict[int, Tokens] = {}

    def __call__(self, computed: RowLogits) -> None:
        """Add the logits of some rows at the first position read; see `base_run.LogitsCallback`."""
        logits = computed.logits[:, 0]
        largest, log_total = largest_and_log_total(logits)
        numbers, counts = torch.unique_consecutive(computed.cells, return_counts=True)
        start = 0
        for number, rows in zip(numbers.tolist(), counts.tolist(), strict=True):
            part = slice(start, start + rows)
            start += rows
            total, seen = (logits[part] - largest[part, None] - log_total[part, None]).exp().sum(dim=0), rows
            if number in self._open:
                before, already = self._open.pop(number)
                total, seen = total + before, seen + already
            if seen < self._samples:
                self._open[number] = (total, seen)
            else:
                self._found[number] = self._top(total / seen)

    def discard_partial(self) -> None:
        """Discard a cell with only some of its samples, all of which will be recomputed."""
        self._open.clear()

    def of_cell(self, number: int) -> Tokens | None:
        """Return the top tokens of a cell of the plan, or None if samples are missing; -1 is the base run."""
        return self._found.get(number)

    def of_logits(self, logits: Tensor) -> Tokens:
        """Return the top tokens of a single run's logits [vocabulary]."""
        return self._top(logits.softmax(dim=-1))

    def _top(self, probabilities: Tensor) -> Tokens:
        best = probabilities.topk(min(self._count, len(probabilities)))
        pairs: Sequence[tuple[int, float]] = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return tuple(TokenProbability(token, self._text(token), value) for token, value in pairs)
