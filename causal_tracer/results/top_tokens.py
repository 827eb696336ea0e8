"""`TopTokens`: the most probable next tokens of the clean, the corrupted and the restored runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TokenProbability:
    """One next token with its probability.

    Attributes:
        token_id: The token's id.
        text: The token's text.
        probability: The probability, as the mean over samples.
    """

    token_id: int
    text: str
    probability: float


Tokens = tuple[TokenProbability, ...]


@dataclass(frozen=True, eq=False)
class TopTokens:
    """The most probable next tokens of each run, most probable first.

    Attributes:
        clean: Those of the clean run.
        corrupted: Those of the corrupted run, by the mean probability over samples.
        restored: Those of each computed cell's restored run, by (row, layer).
    """

    clean: Tokens
    corrupted: Tokens
    restored: Mapping[tuple[int, int], Tokens]

    def cells(self, position: int, layer: int) -> Tokens:
        """Return the tokens of a cell's restored run; empty if the cell was not computed."""
        return self.restored.get((position, layer), ())

    def to_dict(self) -> dict[str, Any]:
        """Return the tokens as JSON types. The text of each token id is stored once."""
        every = [self.clean, self.corrupted, *self.restored.values()]
        texts = {str(token.token_id): token.text for tokens in every for token in tokens}

        def pairs(tokens: Tokens) -> list[list[float]]:
            return [[token.token_id, token.probability] for token in tokens]

        cells = [[position, layer, pairs(tokens)] for (position, layer), tokens in self.restored.items()]
        return {"texts": texts, "clean": pairs(self.clean), "corrupted": pairs(self.corrupted), "restored": cells}

    @classmethod
    def from_dict(cls, data: Any) -> TopTokens:
        """Return the record that `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: The data is not that of top tokens.
        """
        texts = {int(token): str(text) for token, text in data["texts"].items()}

        def tokens(pairs: Any) -> Tokens:
            return tuple(TokenProbability(int(token), texts[int(token)], float(p)) for token, p in pairs)

        restored = {(int(position), int(layer)): tokens(pairs) for position, layer, pairs in data["restored"]}
        return cls(tokens(data["clean"]), tokens(data["corrupted"]), restored)
