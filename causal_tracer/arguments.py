"""Checks of arguments: each returns the value in the expected type, or raises an error that names the argument."""

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


def quoted(value: Any) -> str:
    """Return the repr of a value for a message, cut to a readable length."""
    try:
        text = _repr.repr(value)
    except ValueError:
        # Python does not convert integers of more than 4300 digits to text.
        return f"<{type(value).__name__} too long to write>"
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"


def whole_number(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """Return the value as an int from `least` to `most`.

    Raises:
        SettingsError: The value is not an integer, or is out of range.
    """
    try:
        number = operator.index(value)
    except TypeError as error:
        raise SettingsError(f"{name} must be an integer (given: {quoted(value)}).") from error
    if isinstance(value, bool):
        raise SettingsError(f"{name} must be an integer (given: {value}).")
    if least is not None and number < least:
        raise SettingsError(f"{name}={quoted(number)} is too small. Give {least} or more.")
    if most is not None and number > most:
        raise SettingsError(f"{name}={quoted(number)} is too large. Give at most {most}.")
    return number


def real_number(name: str, value: Any) -> float:
    """Return the value as a finite float.

    Raises:
        SettingsError: The value is not a number, or is NaN or infinite.
    """
    try:
        number = math.nan if isinstance(value, str | bytes | bytearray) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise SettingsError(f"{name} must be a number (given: {quoted(value)}).") from error
    if not math.isfinite(number):
        raise SettingsError(f"{name} must be a finite number (given: {quoted(value)}).")
    return number


def flag(name: str, value: Any) -> bool:
    """Return the value as a bool.

    Raises:
        SettingsError: The value is not True or False.
    """
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise SettingsError(f"{name} must be True or False (given: {quoted(value)}).")


def text(name: str, value: Any) -> str:
    """Return the value if it is a string.

    Raises:
        SettingsError: The value is not a string.
    """
    if not isinstance(value, str):
        raise SettingsError(f"{name} must be a text (given: {quoted(value)}).")
    return value


def choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Return the value if it is one of the allowed strings.

    Raises:
        SettingsError: The value is not one of them.
    """
    allowed = list(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise SettingsError(f"{name}={quoted(value)} is not known. Choose {' or '.join(map(repr, allowed))}.")
    return value


def function(name: str, value: T) -> T:
    """Return the value if it is callable.

    Raises:
        SettingsError: The value is not callable.
    """
    if not callable(value):
        raise SettingsError(f"{name} must be a function (given: {quoted(value)}).")
    return value


def instance(name: str, value: Any, kinds: type[T]) -> T:
    """Return the value if it is an instance of a class.

    Raises:
        SettingsError: The value is not an instance of the class.
    """
    if not isinstance(value, kinds):
        raise SettingsError(f"{name} must be a {kinds.__name__} (given: {quoted(value)}).")
    return value


def as_list(name: str, value: Any) -> Sequence[Any]:
    """Return the items of an iterable as a list. Strings and bytes are rejected.

    Raises:
        SettingsError: The value is a string, is bytes, or is not iterable.
    """
    if isinstance(value, str | bytes | bytearray):
        raise SettingsError(f"{name} must be a list (given: {quoted(value)}).")
    try:
        return list(value)
    except (TypeError, RuntimeError) as error:
        raise SettingsError(f"{name} must be a list (given: {quoted(value)}).") from error


def file_path(value: Any) -> Path:
    """Return the value as a path.

    Raises:
        SettingsError: The value is not a path.
    """
    try:
        return Path(value)
    except TypeError as error:
        raise SettingsError(f"path must be a file path (given: {quoted(value)}).") from error


def optional(check: Callable[[str, Any], T]) -> Callable[[str, Any], T | None]:
    """Return a check that also accepts None."""
    return partial(_unless_none, check)


def _unless_none(check: Callable[[str, Any], T], name: str, value: Any) -> T | None:
    return None if value is None else check(name, value)
