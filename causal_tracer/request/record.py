"""The form of the records that a request consists of: checked when made, frozen, written as JSON and read again.

A field is defined once: its type with its bounds, its default, its title, and its help, which is the text under it.
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
    """Make a class a frozen record whose fields are validated, and whose repr has only what differs from the defaults.

    Raises, when a record is made:
        SettingsError: A field has a value that it cannot have.
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
    """Return the fields of a record that are required, or differ from their defaults."""
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
    """Return the record that `to_data` described.

    Raises:
        SettingsError: The data describe no such record, or one with an object of the user's own.
    """
    if not isinstance(data, Mapping):
        raise SettingsError(f"This is no {kind.__name__}: {arguments.shown(data)}.")
    try:
        return kind(**data)
    except SettingsError:
        raise
    except (TypeError, CausalTracerError, RecursionError) as error:
        raise SettingsError(f"This {kind.__name__} cannot be read ({error}).") from error


@dataclasses.dataclass(frozen=True)
class Check:
    """Marks a field's type: values pass `check`, which names the field where one does not; `schema` is JSON Schema."""

    check: Callable[[str, Any], Any]
    schema: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """See pydantic."""

        def run(value: Any, info: core_schema.ValidationInfo[Any]) -> Any:
            return self.check(str(info.field_name), value)

        return core_schema.with_info_before_validator_function(run, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """See pydantic."""
        found = handler(schema)
        return {**found, **self.schema} if found.get("type") == "integer" else found


def whole(least: int | None = None, most: int | None = None) -> Check:
    """Return the check of integers in a range."""
    bounds = {name: bound for name, bound in (("minimum", least), ("maximum", most)) if bound is not None}
    return Check(lambda name, value: arguments.whole_number(name, value, least, most), bounds)


def maybe(check: Check) -> Check:
    """Return a check that lets None pass."""
    return Check(arguments.optional(check.check), check.schema)


def one_of(words: Any) -> Check:
    """Return the check of a `Literal`."""
    return Check(lambda name, value: arguments.choice(name, value, get_args(words)))


def _short_repr(self: Any) -> str:
    required = [name for name, field in record_fields(type(self)).items() if field.is_required()]
    parts = [repr(value) if name in required else f"{name}={value!r}" for name, value in changed_fields(self).items()]
    return f"{type(self).__name__}({', '.join(parts)})"


def _own_error(name: str, error: ValidationError) -> CausalTracerError:
    """The first thing that is wrong with a record."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    return cause if isinstance(cause, CausalTracerError) else SettingsError(_words(name, first))


def _words(name: str, first: Any) -> str:
    place = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    if first["type"] == "unexpected_keyword_argument":
        return f"{name} has no field {place!r}."
    if first["type"] in ("missing", "missing_argument"):
        return f"{name} lacks its field {place!r}."
    return f"{place} has a value that it cannot have (given: {arguments.shown(first['input'])}): {first['msg']}."
