"""`TokenAlignment`: the alignment of a map's prompt with another prompt, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, repr=False)
class TokenAlignment:
    """The tokens of a prompt, each with its partner in another prompt.

    Attributes:
        tokens: The prompt's tokens.
        other_prompt: The other prompt.
        other_tokens: The other prompt's tokens.
        partners: For each of `tokens`, the position of its partner in `other_tokens`; None if it has no partner.
    """

    tokens: tuple[str, ...]
    other_prompt: str
    other_tokens: tuple[str, ...]
    partners: tuple[int | None, ...]

    @property
    def rows(self) -> tuple[tuple[int, str, int | None, str | None], ...]:
        """For each token: its position and text, then the position and text of its partner."""
        return tuple(
            (place, token, partner, None if partner is None else self.other_tokens[partner])
            for place, (token, partner) in enumerate(zip(self.tokens, self.partners, strict=True))
        )

    @property
    def without_partner(self) -> tuple[int, ...]:
        """The positions of the tokens without a partner."""
        return tuple(place for place, partner in enumerate(self.partners) if partner is None)

    def __repr__(self) -> str:
        """Return a table with a line for each token."""
        left = [f"{place:3} {token!r}" for place, token, _, _ in self.rows]
        right = ["–" if partner is None else f"{partner} {text!r}" for _, _, partner, text in self.rows]
        width = max(map(len, left), default=0)
        return "\n".join(f"{own:{width}}  {other}" for own, other in zip(left, right, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return the alignment as JSON types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TokenAlignment:
        """Return the alignment that `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: The data is not that of an alignment.
        """
        tokens, others = (tuple(str(token) for token in data[name]) for name in ("tokens", "other_tokens"))
        partners = tuple(None if partner is None else int(partner) for partner in data["partners"])
        if len(partners) != len(tokens) or any(not 0 <= each < len(others) for each in partners if each is not None):
            raise ValueError(f"{len(tokens)} and {len(others)} tokens do not fit the partners {partners}")
        return cls(tokens, str(data["other_prompt"]), others, partners)
