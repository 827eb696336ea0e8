"""The record of a map's audit: cells that the full sweep computed again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Audit:
    """The differences of some of a map's cells from the full sweep's scores.

    Attributes:
        cells: The cells that were computed again, as (row, layer), in one noise sample.
        sample: The index of this noise sample.
        largest_difference: The largest absolute difference of the cells' scores, in units of the metric; NaN if a cell
            has no score.
        allowed: The largest difference that rounding explains.
        recomputed: Whether the largest difference exceeded `allowed`. If so, the full sweep computed the whole map
            again, and the map holds those scores.
    """

    cells: tuple[tuple[int, int], ...]
    sample: int
    largest_difference: float
    allowed: float
    recomputed: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as JSON types."""
        largest = None if math.isnan(self.largest_difference) else self.largest_difference
        return {**asdict(self), "cells": [list(cell) for cell in self.cells], "largest_difference": largest}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Audit:
        """Return the audit that `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: The data is not that of an audit.
        """
        largest = data["largest_difference"]
        return cls(
            cells=tuple((int(token), int(layer)) for token, layer in data["cells"]),
            sample=int(data["sample"]),
            largest_difference=math.nan if largest is None else float(largest),
            allowed=float(data["allowed"]),
            recomputed=bool(data["recomputed"]),
        )
