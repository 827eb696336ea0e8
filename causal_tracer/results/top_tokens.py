"""The most probable next tokens of restored runs, beside those of the clean and the corrupted run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causal_tracer.experiment.base_run import Watched
from causal_tracer.metrics.metric import largest_and_log_total


@dataclass(frozen=True)
class TokenProbability:
    """A token that may come next.

    Attributes:
        token_id: Its id.
        text: Its text.
        probability: Its mean probability over samples.
    """

    token_id: int
    text: str
    probability: float


Tokens = tuple[TokenProbability, ...]


@dataclass(frozen=True, eq=False)
class TopTokens:
    """What a model would say next, most probable first.

    Attributes:
        clean: In the clean run.
        corrupted: In the corrupted run, mean over samples.
        restored: In the restored run of each cell known, by (position, layer).
    """

    clean: Tokens
    corrupted: Tokens
    restored: Mapping[tuple[int, int], Tokens]

    def cells(self, position: int, layer: int) -> Tokens:
        """Those of a cell; the corrupted run's where a cell changes nothing, none where it was not computed."""
        return self.restored.get((position, layer), ())

    def to_dict(self) -> dict[str, Any]:
        """The tokens as JSON types; each token's text stands once."""
        every = [self.clean, self.corrupted, *self.restored.values()]
        texts = {str(token.token_id): token.text for tokens in every for token in tokens}

        def pairs(tokens: Tokens) -> list[list[float]]:
            return [[token.token_id, token.probability] for token in tokens]

        cells = [[position, layer, pairs(tokens)] for (position, layer), tokens in self.restored.items()]
        return {"texts": texts, "clean": pairs(self.clean), "corrupted": pairs(self.corrupted), "restored": cells}

    @classmethod
    def from_dict(cls, data: Any) -> TopTokens:
        """What `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: The data is something else.
        """
        texts = {int(token): str(text) for token, text in data["texts"].items()}

        def tokens(pairs: Any) -> Tokens:
            return tuple(TokenProbability(int(token), texts[int(token)], float(p)) for token, p in pairs)

        restored = {(int(position), int(layer)): tokens(pairs) for position, layer, pairs in data["restored"]}
        return cls(tokens(data["clean"]), tokens(data["corrupted"]), restored)


class TopTokenWatch:
    """Takes the logits of a sweep's rows and keeps each cell's most probable tokens, averaged over samples.

    Rows of one cell come after each other, so at most one cell's distribution is unfinished at a time.
    """

    def __init__(self, count: int, samples: int, text: Callable[[int], str]):
        self._count = count
        self._samples = samples
        self._text = text
        self._open: dict[int, tuple[Tensor, int]] = {}
        self._found: dict[int, Tokens] = {}

    def __call__(self, watched: Watched) -> None:
        """See `base_run.Watch`; looks at the first position read."""
        logits = watched.logits[:, 0]
        largest, log_total = largest_and_log_total(logits)
        numbers, counts = torch.unique_consecutive(watched.cells, return_counts=True)
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

    def begin_again(self) -> None:
        """Forget the cell whose samples have come in part: all of them will come again."""
        self._open.clear()

    def of_cell(self, number: int) -> Tokens | None:
        """Those of a cell of the plan, once all its samples have come; -1 is the base run."""
        return self._found.get(number)

    def of_logits(self, logits: Tensor) -> Tokens:
        """Those of a single run's logits [vocabulary]."""
        return self._top(logits.softmax(dim=-1))

    def _top(self, probabilities: Tensor) -> Tokens:
        best = probabilities.topk(min(self._count, len(probabilities)))
        pairs: Sequence[tuple[int, float]] = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return tuple(TokenProbability(token, self._text(token), value) for token, value in pairs)
