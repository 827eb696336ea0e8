"""Checking that an object can be pickled, without copying its weights."""

from __future__ import annotations

import os
import pickle
from typing import Any

from torch import Tensor

from causal_tracer.errors import PicklingError


class _Structure(pickle.Pickler):
    """Pickles everything except tensors, which can always be pickled."""

    def persistent_id(self, obj: Any) -> str | None:
        """Return a placeholder for a tensor, so that its values are not written."""
        return "tensor" if isinstance(obj, Tensor) else None


def require_picklable(state: dict[str, Any], name: str) -> None:
    """Check that the attributes of an object can be pickled, apart from tensors.

    Args:
        state: The attributes, by name.
        name: The object's name in the error message.

    Raises:
        PicklingError: An attribute cannot be pickled; the message names it and the cause.
    """
    with open(os.devnull, "wb") as nowhere:
        for part, value in state.items():
            try:
                _Structure(nowhere).dump(value)
            except Exception as error:
                raise PicklingError(
                    f"This {name} cannot be pickled, because its {part.lstrip('_')} cannot be pickled "
                    f"({type(error).__name__}: {error}). Pickle the arguments that it was created from, or define "
                    "functions at the top level of a module."
                ) from error
