"""Requests as JSON text, for a trace that is computed in another process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from causal_tracer.chat import ChatText
from causal_tracer.errors import SettingsError
from causal_tracer.prompts import Prompt
from causal_tracer.request import HiddenFlowQuery, MapSpec, SamplesUntil, TraceRequest

_CLASSES: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (ChatText, HiddenFlowQuery, MapSpec, Prompt, SamplesUntil, TraceRequest)
}
_CLASS = "class"


def to_json(value: Any) -> str:
    """A request, or a mapping with requests in it, as text that `from_json` reads.

    Raises:
        SettingsError: It holds something that is no plain value, such as a corruption or a metric of one's own.
    """
    return json.dumps(_plain(value), ensure_ascii=False)


def from_json(text: str) -> Any:
    """What `to_json` was given: dataclasses again, and tuples for lists."""
    return _built(json.loads(text))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if type(value).__name__ in _CLASSES:
        return {
            _CLASS: type(value).__name__,
            **{item.name: _plain(getattr(value, item.name)) for item in fields(value)},
        }
    raise SettingsError(
        f"{value!r} cannot be handed to the process that has the GPU. Give a name, a number or a text in its place."
    )


def _built(data: Any) -> Any:
    if isinstance(data, list):
        return tuple(_built(item) for item in data)
    if isinstance(data, dict):
        built = {key: _built(item) for key, item in data.items()}
        name = built.pop(_CLASS, None)
        return built if name is None else _CLASSES[name](**built)
    return data
