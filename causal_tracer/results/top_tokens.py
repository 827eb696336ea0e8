"""The most probable next tokens of restored runs, beside those of the clean and the corrupted run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
        restored: In the restored run of each cell known, by (row, layer).
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
