"""Checking that an object can be pickled, without copying its weights."""

from __future__ import annotations

import os
import pickle
from typing import Any

from torch import Tensor

from causal_tracer.errors import PicklingError


class _Structure(pickle.Pickler):
    """Pickles everything but tensors, which can always be pickled."""

    def persistent_id(self, obj: Any) -> str | None:
        """Name a tensor instead of writing its values."""
        return "tensor" if isinstance(obj, Tensor) else None


def require_picklable(state: dict[str, Any], name: str) -> None:
    """Check that the parts of an object can be pickled, apart from tensors.

    Raises:
        PicklingError: A part cannot; the message names it and the cause.
    """
    with open(os.devnull, "wb") as nowhere:
        for part, value in state.items():
            try:
                _Structure(nowhere).dump(value)
            except Exception as error:
                raise PicklingError(
                    f"This {name} cannot be pickled: its {part.lstrip('_')} holds something that cannot be "
                    f"({type(error).__name__}: {error}). Pickle what it was made of, or write functions at the top "
                    "of a module."
                ) from error
