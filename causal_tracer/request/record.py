"""The decorator of the records of a request: frozen, validated when created, written as JSON and read again.

A field is defined in one place: type, bounds, default, title, and its help, which is the docstring under the field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, dataclass_transform, get_args

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from causal_tracer import arguments
from causal_tracer.errors import CausalTracerError, SettingsError

T = TypeVar("T")

_CONFIG = ConfigDict(use_attribute_docstrings=True, arbitrary_types_allowed=True, extra="forbid")


@dataclass_transform(frozen_default=True, field_specifiers=(Field, dataclasses.field))
def record(cls: type[T]) -> type[T]:
    """Make a class a frozen record with validated fields and a repr that omits default values.

    Creating an instance with an invalid value raises `SettingsError`.
    """
    made = dataclass(frozen=True, repr=False, config=_CONFIG)(cls)
    checked = made.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            checked(self, *args, **kwargs)
        except ValidationError as error:
            raise _own_error(cls.__name__, error) from error

    init.__wrapped__ = checked  # type: ignore[attr-defined]
    made.__init__ = init  # type: ignore[method-assign]
    made.__repr__ = _short_repr  # type: ignore[method-assign]
    return made  # type: ignore[return-value]


def changed_fields(value: Any) -> dict[str, Any]:
    """Return the fields of a record that are required or differ from their defaults."""
    given = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    before: dict[str, Any] = {}
    changed = {}
    for name, own in given.items():
        field = record_fields(type(value))[name]
        default = field.get_default(call_default_factory=True, validated_data=before)
        before[name] = own
        if field.is_required() or (own is not default and own != default):
            changed[name] = own
    return changed


def record_fields(record: type[Any]) -> Mapping[str, FieldInfo]:
    """Return a record's fields by name, each with its type, default, title and help."""
    found: Mapping[str, FieldInfo] = record.__pydantic_fields__
    return found


def to_data(value: Any) -> Any:
    """Return a record as JSON types."""
    return TypeAdapter(type(value)).dump_python(value, mode="json")


def from_data(kind: type[T], data: Any) -> T:
    """Return the record that `to_data` wrote.

    Raises:
        SettingsError: The data is not such a record, or the record has a user-defined object.
    """
    if not isinstance(data, Mapping):
        raise SettingsError(f"A {kind.__name__} must be a JSON object (given: {arguments.quoted(data)}).")
    try:
        return kind(**data)
    except SettingsError:
        raise
    except (TypeError, CausalTracerError, RecursionError) as error:
        raise SettingsError(f"This {kind.__name__} cannot be read ({error}).") from error


@dataclasses.dataclass(frozen=True)
class Check:
    """Annotation of a field's type: how its values are checked.

    Attributes:
        check: Called with the field's name and value; returns the value or raises an error that names the field.
        schema: Entries added to the JSON Schema of integer fields.
    """

    check: Callable[[str, Any], Any]
    schema: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the field's validator (called by pydantic)."""

        def run(value: Any, info: core_schema.ValidationInfo[Any]) -> Any:
            return self.check(str(info.field_name), value)

        return core_schema.with_info_before_validator_function(run, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the field's JSON Schema (called by pydantic)."""
        found = handler(schema)
        return {**found, **self.schema} if found.get("type") == "integer" else found


def integer(least: int | None = None, most: int | None = None) -> Check:
    """Return a check for integers from `least` to `most`."""
    bounds = {name: bound for name, bound in (("minimum", least), ("maximum", most)) if bound is not None}
    return Check(lambda name, value: arguments.whole_number(name, value, least, most), bounds)


def or_none(check: Check) -> Check:
    """Return a check that also accepts None."""
    return Check(arguments.optional(check.check), check.schema)


def one_of(words: Any) -> Check:
    """Return a check for the strings of a `Literal`."""
    return Check(lambda name, value: arguments.choice(name, value, get_args(words)))


def _short_repr(self: Any) -> str:
    required = [name for name, field in record_fields(type(self)).items() if field.is_required()]
    parts = [repr(value) if name in required else f"{name}={value!r}" for name, value in changed_fields(self).items()]
    return f"{type(self).__name__}({', '.join(parts)})"


def _own_error(name: str, error: ValidationError) -> CausalTracerError:
    """Return the error for the first invalid field of a record."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    return cause if isinstance(cause, CausalTracerError) else SettingsError(_words(name, first))


def _words(name: str, first: Any) -> str:
    place = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    if first["type"] == "unexpected_keyword_argument":
        return f"{name} has no field {place!r}."
    if first["type"] in ("missing", "missing_argument"):
        return f"{name} needs a value for its field {place!r}."
    return f"{place} is not valid (given: {arguments.quoted(first['input'])}): {first['msg']}."
