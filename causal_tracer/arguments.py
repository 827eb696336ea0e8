"""Checks of what callers give: each returns the value in its own type, or raises an error that names the argument."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from causal_tracer.errors import SettingsError

T = TypeVar("T")

MOST_SAMPLES = 100_000

_LONGEST_QUOTE = 200
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 160


def shown(value: Any) -> str:
    """Return a value as messages quote it: its repr, cut to a readable length."""
    try:
        text = _repr.repr(value)
    except ValueError:
        # Python writes no number of more than some thousand digits.
        return f"<{type(value).__name__} too long to write>"
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"


def whole_number(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """The value as an int.

    Raises:
        SettingsError: It is not an integer, or is out of range.
    """
    try:
        number = operator.index(value)
    except TypeError as error:
        raise SettingsError(f"{name} must be an integer (given: {shown(value)}).") from error
    if isinstance(value, bool):
        raise SettingsError(f"{name} must be an integer (given: {value}).")
    if least is not None and number < least:
        raise SettingsError(f"{name}={shown(number)} is too small. Give {least} or more.")
    if most is not None and number > most:
        raise SettingsError(f"{name}={shown(number)} is too large. Give at most {most}.")
    return number


def real_number(name: str, value: Any) -> float:
    """The value as a finite float.

    Raises:
        SettingsError: It is not a number, or is NaN or infinite.
    """
    try:
        number = math.nan if isinstance(value, str | bytes | bytearray) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise SettingsError(f"{name} must be a number (given: {shown(value)}).") from error
    if not math.isfinite(number):
        raise SettingsError(f"{name} must be a finite number (given: {shown(value)}).")
    return number


def flag(name: str, value: Any) -> bool:
    """The value as a bool.

    Raises:
        SettingsError: It is not True or False.
    """
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise SettingsError(f"{name} must be True or False (given: {shown(value)}).")


def text(name: str, value: Any) -> str:
    """The value, which must be a string.

    Raises:
        SettingsError: It is not one.
    """
    if not isinstance(value, str):
        raise SettingsError(f"{name} must be a text (given: {shown(value)}).")
    return value


def choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """The value, which must be one of the allowed strings.

    Raises:
        SettingsError: It is not.
    """
    allowed = list(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise SettingsError(f"{name}={shown(value)} is not known. Choose {' or '.join(map(repr, allowed))}.")
    return value


def function(name: str, value: T) -> T:
    """The value, which must be callable.

    Raises:
        SettingsError: It is not.
    """
    if not callable(value):
        raise SettingsError(f"{name} must be a function (given: {shown(value)}).")
    return value


def instance(name: str, value: Any, kinds: type[T]) -> T:
    """The value, which must be an instance of a class.

    Raises:
        SettingsError: It is not.
    """
    if not isinstance(value, kinds):
        raise SettingsError(f"{name} must be a {kinds.__name__} (given: {shown(value)}).")
    return value


def several(name: str, value: Any) -> Sequence[Any]:
    """The items of a value that holds several, which a text does not.

    Raises:
        SettingsError: It holds none.
    """
    if isinstance(value, str | bytes | bytearray):
        raise SettingsError(f"{name} must be a list (given: {shown(value)}).")
    try:
        return list(value)
    except (TypeError, RuntimeError) as error:
        raise SettingsError(f"{name} must be a list (given: {shown(value)}).") from error


def file_path(value: Any) -> Path:
    """The value as a path.

    Raises:
        SettingsError: It is not one.
    """
    try:
        return Path(value)
    except TypeError as error:
        raise SettingsError(f"path must be the name of a file (given: {shown(value)}).") from error


def optional(check: Callable[[str, Any], T]) -> Callable[[str, Any], T | None]:
    """A check that lets None pass."""
    return partial(_unless_none, check)


def _unless_none(check: Callable[[str, Any], T], name: str, value: Any) -> T | None:
    return None if value is None else check(name, value)
