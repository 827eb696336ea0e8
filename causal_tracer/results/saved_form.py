"""The saved form that all results share: JSON with the result's name and a format version, read and written whole."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from causal_tracer.arguments import file_path
from causal_tracer.errors import ExportError, ResultFormatError, SettingsError
from causal_tracer.files import write_atomically

_FORMAT_VERSION = 1
_DAMAGE = (KeyError, TypeError, ValueError, IndexError, OverflowError, RuntimeError, AttributeError, SettingsError)


def save(data: dict[str, Any], path: str | PathLike[str]) -> None:
    """Write a result's `to_dict` as JSON, into a folder that is made if needed.

    Raises:
        ExportError: The result has infinite numbers, or the file cannot be written.
    """
    file = file_path(path)
    try:
        write_atomically(file, json.dumps(data, ensure_ascii=False, allow_nan=False))
    except (OSError, ValueError) as error:
        raise ExportError(f"The result could not be written to {str(file)!r}: {error}") from error


def load(path: str | PathLike[str], name: str) -> Any:
    """Return the JSON types in a file that `save` wrote for a result of this name.

    Raises:
        ResultFormatError: The file cannot be read, or is not JSON.
    """
    file = file_path(path)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultFormatError(f"{str(file)!r} could not be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ResultFormatError(f"{path} is not JSON ({error}). Give a file that {name}.save wrote.") from error


def head(name: str) -> dict[str, Any]:
    """Return what a result's `to_dict` begins with."""
    return {"format": f"causal_tracer.{name}", "format_version": _FORMAT_VERSION}


@contextmanager
def reading(name: str, data: Any) -> Iterator[None]:
    """Check the head of a result's data, and report damage that the `with` block finds in the rest.

    Raises:
        ResultFormatError: The data is not such a result, is from a newer version, or is damaged.
    """
    if not isinstance(data, dict) or data.get("format") != head(name)["format"]:
        raise ResultFormatError(f"This is not a saved {name}: it has no format {head(name)['format']!r}.")
    if data.get("format_version") != _FORMAT_VERSION:
        raise ResultFormatError(
            f"This result has format version {data.get('format_version')!r}, and this version of causal_tracer "
            f"reads {_FORMAT_VERSION}. Upgrade causal_tracer."
        )
    try:
        yield
    except ResultFormatError:
        raise
    except _DAMAGE as error:
        raise ResultFormatError(f"This saved {name} is incomplete or damaged ({error!r}).") from error


def nested(tensor: Tensor) -> Any:
    """Return a tensor as lists; null stands for NaN."""

    def without_nan(value: Any) -> Any:
        if isinstance(value, list):
            return [without_nan(item) for item in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return without_nan(tensor.tolist())


def float_tensor(value: Any) -> Tensor:
    """Return what `nested` wrote as float32."""

    def numbers(item: Any) -> Any:
        return [numbers(part) for part in item] if isinstance(item, list) else math.nan if item is None else item

    return torch.tensor(numbers(value), dtype=torch.float32, device="cpu")


def whole_tensor(value: Any) -> Tensor:
    """Return lists of integers as int64.

    Raises:
        TypeError: One of them is not an integer.
    """

    def require_whole(item: Any) -> None:
        if isinstance(item, list):
            for part in item:
                require_whole(part)
        elif type(item) is not int:
            raise TypeError(f"{item!r} is not an integer")

    require_whole(value)
    return torch.tensor(value, dtype=torch.long, device="cpu")
