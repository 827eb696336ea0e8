"""Corruptions and metrics in a request: by name, as records with parameters, or as objects of the user's own.

An object of the user's own is stored by name only: the result opens anywhere, but its request cannot be run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from causal_tracer.arguments import choice, function, shown
from causal_tracer.corruption import CORRUPTION_RECORDS
from causal_tracer.errors import SettingsError

_CLASS = "class"
_OWN = "user's own"
_RECORDS: Mapping[str, type[Any]] = {each.__name__: each for each in CORRUPTION_RECORDS}


def is_own(value: Any) -> bool:
    """Return whether a corruption or a metric is an object of the user's own, which cannot be stored."""
    return not isinstance(value, str) and type(value) not in CORRUPTION_RECORDS


def _to_data(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if is_own(value):
        return {_CLASS: _OWN, "name": own_name(value)}
    return {_CLASS: type(value).__name__, **asdict(value)}


def _from_data(data: Mapping[str, Any]) -> Any:
    if data.get(_CLASS) == _OWN:
        raise SettingsError(
            f"The request has an object of the user's own ({data.get('name')}), and only its name is stored. Make the "
            "request again in Python, with that object."
        )
    made = _RECORDS.get(str(data.get(_CLASS)))
    if made is None:
        raise SettingsError(f"class={data.get(_CLASS)!r} is not known. It is one of {', '.join(_RECORDS)}.")
    values = {name: value for name, value in data.items() if name != _CLASS}
    try:
        return TypeAdapter(made).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), SettingsError):
            raise cause from error
        place = ".".join(str(part) for part in first["loc"])
        raise SettingsError(
            f"{place} of the {made.__name__} is wrong (given: {shown(first['input'])}): {first['msg']}."
        ) from error


def own_name(value: Any) -> str:
    """Return what a user's object is called; never its repr, which may hold an address in memory."""
    found = getattr(value, "description", None) or getattr(value, "__qualname__", None)
    return found if isinstance(found, str) else type(value).__qualname__


@dataclass(frozen=True)
class NameOrObject:
    """Marks the type of a field that holds a name, a record, or an object of the user's own."""

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> CoreSchema:
        """See pydantic."""
        to_data = core_schema.plain_serializer_function_ser_schema(_to_data)
        return core_schema.with_info_plain_validator_function(self._checked, serialization=to_data)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: Any) -> dict[str, Any]:
        """See pydantic."""
        return {"anyOf": [{"type": "string", "enum": list(self.names)}, {"type": "object", "required": [_CLASS]}]}

    def _checked(self, value: Any, info: core_schema.ValidationInfo[Any]) -> Any:
        name = str(info.field_name)
        if isinstance(value, Mapping):
            return _from_data(value)
        return choice(name, value, self.names) if isinstance(value, str) else function(name, value)
