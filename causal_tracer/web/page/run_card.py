"""The card of a run: its request, the summary shown without the result, and the differences between two cards."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from causal_tracer.arguments import quoted
from causal_tracer.errors import SettingsError
from causal_tracer.request.record import changed_fields, from_data, record_fields, to_data
from causal_tracer.request.records import MapSpec, RunOptions, StoredRequest, TraceRequest
from causal_tracer.request.sites import KINDS, SITES
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.labels import display_token, low_run_name, metric_of
from causal_tracer.web.page.thumbnails import is_picture, levels
from causal_tracer.web.service.links import linked_revision, read_revision, with_revision

LONGEST_NAME = 60
"""The most characters of a card's name."""

LONGEST_ENTRY = 16_000
"""The most characters of a card as JSON."""

_MOST_MAPS = 6
_LONGEST_TEXTS = {"model": 200, "revision": 100, "name": LONGEST_NAME, "answer": 80, "number": 40, "opened": 64}


@dataclass(frozen=True)
class Card:
    """One run of a history: its request, and the summary that its card shows without the result.

    Attributes:
        model: The model's name.
        asked: The stored request of each map of the run; all have the same request and options.
        name: The name that the user gave it.
        pinned: Whether it stays when the history is full.
        answer: The answer's text; empty for a run that was not computed yet.
        number: Its main number as text: "total effect 0.470".
        thumbnail: Each map as rows of levels (`thumbnails.levels`).
        opened: The digest of an opened file (`KeptResults.keep_file`); empty for runs of the app.
        revision: The revision of the model that the run was made with, or that a link names; empty if unknown.
    """

    model: str
    asked: tuple[StoredRequest, ...]
    name: str = ""
    pinned: bool = False
    answer: str = ""
    number: str = ""
    thumbnail: tuple[str, ...] = ()
    opened: str = ""
    revision: str = ""

    @cached_property
    def key(self) -> str:
        """A hash of the request: the same for the same run."""
        text = json.dumps([self._request_data(), self.opened], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The sites of the run's maps."""
        return tuple(each.map.kind for each in self.asked)

    @property
    def title(self) -> str:
        """The titles of the run's maps, as one text."""
        if self.kinds == KINDS:
            return "All three"
        return " and ".join(SITES[kind].title for kind in self.kinds)

    @property
    def prompt(self) -> str:
        """The prompt as text; for a conversation, its last message."""
        prompt = self.asked[0].request.prompt
        messages = getattr(prompt, "messages", None)
        return str(messages[-1]["content"] if messages else getattr(prompt, "text", prompt))

    def to_data(self) -> dict[str, Any]:
        """Return the card as JSON types, without empty values."""
        own = {name: getattr(self, name) for name in ("name", "pinned", "answer", "number", "opened", "revision")}
        own |= {"thumbnail": list(self.thumbnail)}
        return {**self._request_data(), **{name: value for name, value in own.items() if value}}

    def linked_data(self) -> dict[str, Any]:
        """Return the part of the card that a link holds: the request, the model's revision and the name."""
        return {**with_revision(self._request_data(), self.revision), **({"name": self.name} if self.name else {})}

    def _request_data(self) -> dict[str, Any]:
        first = self.asked[0]
        return {
            "model": self.model,
            "request": _short(first.request),
            "maps": [_short(each.map) for each in self.asked],
            "options": _short(first.options),
        }


def card_of(
    flows: Sequence[HiddenFlow], model: str = "", asked: Sequence[StoredRequest] = (), opened: str = ""
) -> Card:
    """Return the card of a finished run or of an opened file.

    Args:
        flows: The run's maps.
        model: The name by which the app knows the model; empty takes the result's own.
        asked: The stored requests, if they are known already.
        opened: The digest of the file.

    Raises:
        SettingsError: The result does not store its request.
    """
    flow = flows[0]
    metric = metric_of(flow)
    low = low_run_name(flow.settings)
    number = (
        f"clean {metric.format_value(flow.high_score)}"
        if low is None
        else f"total effect {metric.format_value(flow.total_effect)}"
    )
    return Card(
        model=printable(model or flow.settings.model, _LONGEST_TEXTS["model"]),
        asked=tuple(asked) or tuple(each.stored_request() for each in flows),
        answer=printable(display_token(flow.answer), _LONGEST_TEXTS["answer"]),
        number=printable(number, _LONGEST_TEXTS["number"]),
        thumbnail=levels(flows),
        opened=opened,
        revision=linked_revision(flow.settings.revision),
    )


def printable(text: str, most: int) -> str:
    """Return a text as a card holds it: at most this long, with blanks for characters that cannot be printed."""
    return "".join(character if character.isprintable() else " " for character in text)[:most].strip()


def read_card(entry: Any) -> Card:
    """Return the card of an untrusted entry of a list (`Card.to_data`).

    Raises:
        CausalTracerError: The entry is invalid or too long.
    """
    if not isinstance(entry, Mapping):
        raise SettingsError(f"it must be an object (given: {quoted(entry)}).")
    if len(json.dumps(entry)) > LONGEST_ENTRY:
        raise SettingsError(f"it has more than {LONGEST_ENTRY} characters.")
    texts = {name: _text(name, entry.get(name, ""), most) for name, most in _LONGEST_TEXTS.items()}
    maps, thumbnail = (_list(name, entry.get(name, [])) for name in ("maps", "thumbnail"))
    if not maps or not all(is_picture(grid) for grid in thumbnail):
        raise SettingsError("it has no maps, or its thumbnail is invalid.")
    if texts["opened"] and not re.fullmatch("[0-9a-f]{64}", texts["opened"]):
        raise SettingsError("its file has no valid digest.")
    if texts["revision"]:
        read_revision(texts["revision"])
    request, options = from_data(TraceRequest, entry.get("request")), from_data(RunOptions, entry.get("options", {}))
    asked = tuple(StoredRequest(request, from_data(MapSpec, spec), options) for spec in maps)
    return Card(asked=asked, thumbnail=tuple(thumbnail), pinned=entry.get("pinned") is True, **texts)


def differences(before: Card, after: Card) -> str:
    """Return the settings that changed from one run to another, as text: "samples 10 → 20".

    The sites of the maps are left out, since a card's title names them.
    """
    parts = [] if before.model == after.model else [f"model {after.model}"]
    pairs: list[tuple[Any, Any]] = [(before.asked[0].request, after.asked[0].request)]
    if before.kinds == after.kinds:
        pairs += [(old.map, new.map) for old, new in zip(before.asked, after.asked, strict=True)]
    else:
        pairs.append((before.asked[0].map, after.asked[0].map))
    pairs.append((before.asked[0].options, after.asked[0].options))
    found: dict[str, str] = {}
    for old, new in pairs:
        for name in changed_fields(old).keys() | changed_fields(new).keys():
            one, other = getattr(old, name), getattr(new, name)
            if name != "kind" and one != other:
                found[name] = _difference(name, one, other)
    if "prompt" in found:
        # Another fact has another subject and answer.
        found = {name: words for name, words in found.items() if name not in ("subject", "answer", "answer_id")}
    order = [name for record in (TraceRequest, MapSpec, RunOptions) for name in record_fields(record)]
    return ", ".join([*parts, *(found[name] for name in sorted(found, key=order.index))])


def _difference(name: str, one: Any, other: Any) -> str:
    label = name.replace("_", " ")
    plain = (str, int, float, bool, type(None))
    if name == "prompt" or not isinstance(one, plain) or not isinstance(other, plain):
        return f"other {label}"
    return f"{label} {_written(one)} → {_written(other)}"


def _written(value: Any) -> str:
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = value if isinstance(value, str) else f"{value:g}"
    return text if len(text) <= 24 else f"{text[:23]}…"


def _short(value: Any) -> dict[str, Any]:
    """Return a record as JSON types, without the fields that have their defaults."""
    changed = changed_fields(value)
    return {name: data for name, data in to_data(value).items() if name in changed}


def _text(name: str, value: Any, most: int) -> str:
    if not isinstance(value, str) or len(value) > most or not value.isprintable():
        raise SettingsError(f"its {name} must be a text of at most {most} printable characters.")
    return value


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > _MOST_MAPS:
        raise SettingsError(f"its {name} must be a list of at most {_MOST_MAPS} items.")
    return value
