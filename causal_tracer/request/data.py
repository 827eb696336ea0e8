"""Requests as JSON types: what a result stores of its request, and what is sent to another process.

    data = request_data(request, spec)          # {"trace": {...}, "map": {...}}
    request, spec = read_request(data)

A record is written with its class and all its fields, so that a new field is stored without a change here. An object
of the user's own, such as a metric, is stored by name only: the result opens anywhere, but its request cannot be run
again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, get_args

from causal_tracer.corruption import (
    CounterfactualSubjects,
    GaussianNoise,
    MeanEmbedding,
    MultivariateNoise,
    StudentTNoise,
    UniformNoise,
    ZeroEmbedding,
)
from causal_tracer.errors import CausalTracerError, SettingsError
from causal_tracer.prompts.chat import ChatText
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.prompts.subject import Occurrence
from causal_tracer.request.records import HiddenFlowQuery, MapSpec, SamplesUntil, TraceRequest

_CLASSES: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        ChatText,
        CounterfactualSubjects,
        GaussianNoise,
        HiddenFlowQuery,
        MapSpec,
        MeanEmbedding,
        MultivariateNoise,
        Prompt,
        SamplesUntil,
        StudentTNoise,
        TraceRequest,
        UniformNoise,
        ZeroEmbedding,
    )
}
_CLASS = "class"
_OWN = "user's own"


def request_data(request: TraceRequest, spec: MapSpec) -> dict[str, Any]:
    """Return the request of one map as JSON types, for `read_request`."""
    # The sweep takes kind and window from the map: two requests of the same map are stored alike.
    request = replace(request, kind=spec.kind, window=spec.window)
    return {"trace": to_data(request), "map": to_data(spec)}


def read_request(data: Mapping[str, Any]) -> tuple[TraceRequest, MapSpec]:
    """Return the request that `request_data` stored.

    Raises:
        SettingsError: The request has an object of the user's own, is from a newer version, or is damaged.
    """
    try:
        request, spec = from_data(data["trace"]), from_data(data["map"])
        if not isinstance(request, TraceRequest) or not isinstance(spec, MapSpec):
            raise TypeError("it has no TraceRequest or no MapSpec")
        _check_types(request)
    except SettingsError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, CausalTracerError) as error:
        raise SettingsError(f"The stored request cannot be read ({error}).") from error
    return request, spec


def to_data(value: Any, own: Callable[[Any], Any] | None = None) -> Any:
    """Return a request, or a collection with requests in it, as JSON types.

    Args:
        value: Plain values, the package's records, and collections of these.
        own: Called with each object that is neither; None stores the object's name.
    """
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        return [to_data(item, own) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_data(item, own) for key, item in value.items()}
    if _CLASSES.get(type(value).__name__) is type(value):
        return {
            _CLASS: type(value).__name__,
            **{item.name: to_data(getattr(value, item.name), own) for item in fields(value)},
        }
    return {_CLASS: _OWN, "name": _name(value)} if own is None else own(value)


def from_data(data: Any) -> Any:
    """Return what `to_data` was given, with tuples for lists.

    Raises:
        SettingsError: There is an object of the user's own in it.
    """
    if isinstance(data, list):
        return tuple(from_data(item) for item in data)
    if not isinstance(data, dict):
        return data
    if data.get(_CLASS) == _OWN:
        raise SettingsError(
            f"The request has an object of the user's own ({data.get('name')}), and only its name is stored. Make the "
            "request again in Python, with that object."
        )
    built = {key: from_data(item) for key, item in data.items() if key != _CLASS}
    return _CLASSES[data[_CLASS]](**built) if _CLASS in data else built


def _name(value: Any) -> str:
    """What a user's object is called; never its repr, which may hold an address in memory."""
    found = getattr(value, "description", None) or getattr(value, "__qualname__", None)
    return found if isinstance(found, str) else type(value).__qualname__


_TYPES: Mapping[str, tuple[Any, ...]] = {
    "bool": (bool,),
    "str | None": (str, type(None)),
    "Text": (str, ChatText, Prompt),
    "HiddenFlowQuery | None": (HiddenFlowQuery, type(None)),
    "Occurrence": get_args(Occurrence),
}


def _check_types(request: TraceRequest) -> None:
    """Check what `TraceRequest` leaves to the trace.

    Raises:
        TypeError: A field has a value of another type.
    """
    for item in fields(request):
        value, allowed = getattr(request, item.name), _TYPES.get(str(item.type), (object,))
        fits = value in allowed if item.type == "Occurrence" else isinstance(value, allowed)
        if not fits:
            raise TypeError(f"{item.name} is {value!r}")
