"""The record of a map's audit: cells that the full sweep computed again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Audit:
    """How far some cells of a map are from the full sweep's scores.

    Attributes:
        cells: The cells computed again, as (row, layer), in one noise sample.
        sample: That sample.
        largest_difference: The largest absolute difference of their scores, in units of the metric; NaN where the sweep
            gave one of them no score.
        allowed: The largest difference that rounding explains.
        recomputed: Whether the difference was larger than allowed, so that the whole map was computed again by the full
            sweep. The map then holds the full sweep's scores.
    """

    cells: tuple[tuple[int, int], ...]
    sample: int
    largest_difference: float
    allowed: float
    recomputed: bool

    def to_dict(self) -> dict[str, Any]:
        """The audit as JSON types."""
        largest = None if math.isnan(self.largest_difference) else self.largest_difference
        return {**asdict(self), "cells": [list(cell) for cell in self.cells], "largest_difference": largest}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Audit:
        """The audit that `to_dict` described.

        Raises:
            KeyError, TypeError, ValueError: The data is something else.
        """
        largest = data["largest_difference"]
        return cls(
            cells=tuple((int(token), int(layer)) for token, layer in data["cells"]),
            sample=int(data["sample"]),
            largest_difference=math.nan if largest is None else float(largest),
            allowed=float(data["allowed"]),
            recomputed=bool(data["recomputed"]),
        )
