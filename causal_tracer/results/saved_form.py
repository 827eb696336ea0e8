"""The file format that all results share: JSON with the result's class name and a format version."""

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
    """Write a result's `to_dict` as JSON.

    Args:
        data: The JSON types.
        path: The file. Missing folders are created.

    Raises:
        ExportError: The result has infinite numbers, or the file cannot be written.
    """
    file = file_path(path)
    try:
        write_atomically(file, json.dumps(data, ensure_ascii=False, allow_nan=False))
    except (OSError, ValueError) as error:
        raise ExportError(f"The result could not be written to {str(file)!r}: {error}") from error


def load(path: str | PathLike[str], name: str) -> Any:
    """Return the JSON types in a file that `save` wrote.

    Args:
        path: The file.
        name: The result's class name, for the error message.

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


def format_header(name: str) -> dict[str, Any]:
    """Return the first entries of a result's `to_dict`: its class name and the format version."""
    return {"format": f"causal_tracer.{name}", "format_version": _FORMAT_VERSION}


@contextmanager
def checked_format(name: str, data: Any) -> Iterator[None]:
    """Check the header of a result's data, and turn errors of the `with` block into a `ResultFormatError`.

    Args:
        name: The result's class name.
        data: The data that the `with` block reads.

    Raises:
        ResultFormatError: The data is not a saved result of this class, is from a newer version, or is damaged.
    """
    if not isinstance(data, dict) or data.get("format") != format_header(name)["format"]:
        raise ResultFormatError(
            f'This is not a saved {name}: its "format" is not {format_header(name)["format"]!r}. '
            f"Give a file that {name}.save wrote."
        )
    if data.get("format_version") != _FORMAT_VERSION:
        raise ResultFormatError(
            f"This result has format version {data.get('format_version')!r}, and this version of causal_tracer "
            f"reads version {_FORMAT_VERSION}. Upgrade causal_tracer."
        )
    try:
        yield
    except ResultFormatError:
        raise
    except _DAMAGE as error:
        raise ResultFormatError(f"This saved {name} is incomplete or damaged ({error!r}).") from error


def nested_lists(tensor: Tensor) -> Any:
    """Return a tensor as nested lists, with None (JSON null) for NaN."""

    def without_nan(value: Any) -> Any:
        if isinstance(value, list):
            return [without_nan(item) for item in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return without_nan(tensor.tolist())


def float_tensor(value: Any) -> Tensor:
    """Return nested lists, as `nested_lists` writes them, as a float32 tensor."""

    def numbers(item: Any) -> Any:
        return [numbers(part) for part in item] if isinstance(item, list) else math.nan if item is None else item

    return torch.tensor(numbers(value), dtype=torch.float32, device="cpu")


def integer_tensor(value: Any) -> Tensor:
    """Return nested lists of integers as an int64 tensor.

    Raises:
        TypeError: An element is not an integer.
    """

    def require_integers(item: Any) -> None:
        if isinstance(item, list):
            for part in item:
                require_integers(part)
        elif type(item) is not int:
            raise TypeError(f"{item!r} is not an integer")

    require_integers(value)
    return torch.tensor(value, dtype=torch.long, device="cpu")
