"""Corruptions and metrics in a request: names, records with parameters, or user-defined objects.

Of a user-defined object only the name is stored: the result opens anywhere, but its request cannot be run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from causal_tracer.arguments import choice, function, quoted
from causal_tracer.corruption import CORRUPTION_RECORDS
from causal_tracer.errors import SettingsError

_CLASS = "class"
_USER_DEFINED = "user's own"
_RECORDS: Mapping[str, type[Any]] = {each.__name__: each for each in CORRUPTION_RECORDS}


def is_user_defined(value: Any) -> bool:
    """Return whether a corruption or a metric is a user-defined object, which cannot be stored."""
    return not isinstance(value, str) and type(value) not in CORRUPTION_RECORDS


def _to_data(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if is_user_defined(value):
        return {_CLASS: _USER_DEFINED, "name": user_defined_name(value)}
    return {_CLASS: type(value).__name__, **asdict(value)}


def _from_data(data: Mapping[str, Any]) -> Any:
    if data.get(_CLASS) == _USER_DEFINED:
        raise SettingsError(
            f"The request has a user-defined object ({data.get('name')}), of which only the name is stored. Make the "
            "request again in Python, with that object."
        )
    made = _RECORDS.get(str(data.get(_CLASS)))
    if made is None:
        raise SettingsError(f"class={data.get(_CLASS)!r} is not known. Choose one of {', '.join(_RECORDS)}.")
    values = {name: value for name, value in data.items() if name != _CLASS}
    try:
        return TypeAdapter(made).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), SettingsError):
            raise cause from error
        place = ".".join(str(part) for part in first["loc"])
        raise SettingsError(
            f"{place} of the {made.__name__} is not valid (given: {quoted(first['input'])}): {first['msg']}."
        ) from error


def user_defined_name(value: Any) -> str:
    """Return the name of a user-defined object. Its repr is not used, as it may hold a memory address."""
    found = getattr(value, "description", None) or getattr(value, "__qualname__", None)
    return found if isinstance(found, str) else type(value).__qualname__


@dataclass(frozen=True)
class NameOrObject:
    """Annotation of a field that holds a name, a record, or a user-defined object.

    Attributes:
        names: The names that the field accepts.
    """

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> CoreSchema:
        """Return the field's validator and serializer (called by pydantic)."""
        to_data = core_schema.plain_serializer_function_ser_schema(_to_data)
        return core_schema.with_info_plain_validator_function(self._checked, serialization=to_data)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: Any) -> dict[str, Any]:
        """Return the field's JSON Schema (called by pydantic)."""
        return {"anyOf": [{"type": "string", "enum": list(self.names)}, {"type": "object", "required": [_CLASS]}]}

    def _checked(self, value: Any, info: core_schema.ValidationInfo[Any]) -> Any:
        name = str(info.field_name)
        if isinstance(value, Mapping):
            return _from_data(value)
        return choice(name, value, self.names) if isinstance(value, str) else function(name, value)
