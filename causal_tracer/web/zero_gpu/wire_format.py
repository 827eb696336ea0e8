"""Requests as JSON text, for a trace that is computed in another process."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from causal_tracer.errors import SettingsError
from causal_tracer.request.data import from_data, to_data


def to_json(value: Any) -> str:
    """Return a request, or a mapping with requests in it, as text for `from_json`.

    Raises:
        SettingsError: It has an object of the user's own, such as a metric.
    """
    return json.dumps(to_data(value, _refuse), ensure_ascii=False)


def from_json(text: str) -> Any:
    """Return what `to_json` was given, with tuples for lists."""
    return from_data(json.loads(text))


def _refuse(value: Any) -> NoReturn:
    raise SettingsError(
        f"{value!r} cannot be sent to the process that has the GPU. Give a name, a number or a text in its place."
    )
