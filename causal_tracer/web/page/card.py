"""A card of the history of runs: what the cards of all experiments have."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from causal_tracer.errors import SettingsError
from causal_tracer.request.record import changed_fields, to_data
from causal_tracer.web.page.thumbnails import is_picture
from causal_tracer.web.service.links import read_revision, with_revision

LONGEST_NAME = 60
"""The most characters of a card's name."""

LONGEST_ENTRY = 16_000
"""The most characters of a card as JSON."""

LONGEST_TEXTS = {"model": 200, "revision": 100, "name": LONGEST_NAME, "answer": 80, "number": 40, "opened": 64}
"""The most characters of each text of a card."""

_MOST_LISTED = 6


@dataclass(frozen=True, kw_only=True)
class Card(ABC):
    """One run of a history: its request, and the summary that its card shows without the result.

    Attributes:
        model: The model's name.
        name: The name that the user gave it.
        pinned: Whether it stays when the history is full.
        answer: The answer's text; empty for a run that was not computed yet.
        number: Its main number as text: "total effect 0.470", or "P 0.00 → 0.47" for base run and patched run.
        thumbnail: Each map as rows of levels (`thumbnails.levels`).
        opened: The digest of an opened file (`KeptResults.keep_file`); empty for runs of the app.
        revision: The revision of the model that the run was made with, or that a link names; empty if unknown.
    """

    model: str
    name: str = ""
    pinned: bool = False
    answer: str = ""
    number: str = ""
    thumbnail: tuple[str, ...] = ()
    opened: str = ""
    revision: str = ""

    @property
    @abstractmethod
    def kinds(self) -> tuple[str, ...]:
        """The site of each picture of the thumbnail."""

    @property
    @abstractmethod
    def title(self) -> str:
        """A name for the run, if the user gave none."""

    @property
    @abstractmethod
    def prompt(self) -> str:
        """The prompt as text; for a conversation, its last message."""

    @abstractmethod
    def change_from(self, before: Card | None) -> str:
        """Return the settings that changed since the run before, if there is one, as text: "samples 10 → 20"."""

    @abstractmethod
    def extends(self, other: Card) -> bool:
        """Return whether this run continues that of an earlier card, whose place its card takes."""

    @abstractmethod
    def _request_data(self) -> dict[str, Any]:
        """Return the model and the request as JSON types: what a link holds, and what the key is made of."""

    @cached_property
    def key(self) -> str:
        """A hash of the request: the same for the same run."""
        text = json.dumps([self._request_data(), self.opened], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_data(self) -> dict[str, Any]:
        """Return the card as JSON types, without empty values."""
        own = {name: getattr(self, name) for name in ("name", "pinned", "answer", "number", "opened", "revision")}
        own |= {"thumbnail": list(self.thumbnail)}
        return {**self._request_data(), **{name: value for name, value in own.items() if value}}

    def linked_data(self) -> dict[str, Any]:
        """Return the part of the card that a link holds: the request, the model's revision and the name."""
        return {**with_revision(self._request_data(), self.revision), **({"name": self.name} if self.name else {})}


def read_summary(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `Card` that an untrusted entry of a list holds.

    Raises:
        CausalTracerError: The entry is invalid or too long.
    """
    if len(json.dumps(entry)) > LONGEST_ENTRY:
        raise SettingsError(f"it has more than {LONGEST_ENTRY} characters.")
    texts = {name: _text(name, entry.get(name, ""), most) for name, most in LONGEST_TEXTS.items()}
    thumbnail = short_list("thumbnail", entry)
    if not all(is_picture(grid) for grid in thumbnail):
        raise SettingsError("its thumbnail is invalid.")
    if texts["opened"] and not re.fullmatch("[0-9a-f]{64}", texts["opened"]):
        raise SettingsError("its file has no valid digest.")
    if texts["revision"]:
        read_revision(texts["revision"])
    return {**texts, "thumbnail": tuple(thumbnail), "pinned": entry.get("pinned") is True}


def short_list(name: str, entry: Mapping[str, Any]) -> list[Any]:
    """Return a list of an entry; empty if the entry has none.

    Raises:
        SettingsError: The value is not a list, or too long.
    """
    value = entry.get(name, [])
    if not isinstance(value, list) or len(value) > _MOST_LISTED:
        raise SettingsError(f"its {name} must be a list of at most {_MOST_LISTED} items.")
    return value


def short_data(value: Any) -> dict[str, Any]:
    """Return a record as JSON types, without the fields that have their defaults."""
    changed = changed_fields(value)
    return {name: data for name, data in to_data(value).items() if name in changed}


def printable(text: str, most: int) -> str:
    """Return a text as a card holds it: at most this long, with blanks for characters that cannot be printed."""
    return "".join(character if character.isprintable() else " " for character in text)[:most].strip()


def difference(name: str, before: Any, after: Any) -> str:
    """Return the change of a setting as text: "samples 10 → 20"; "other prompt" for values other than short texts."""
    label = name.replace("_", " ")
    plain = (str, int, float, bool, type(None))
    if name == "prompt" or not isinstance(before, plain) or not isinstance(after, plain):
        return f"other {label}"
    return f"{label} {_written(before)} → {_written(after)}"


def _written(value: Any) -> str:
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = value if isinstance(value, str) else f"{value:g}"
    return text if len(text) <= 24 else f"{text[:23]}…"


def _text(name: str, value: Any, most: int) -> str:
    if not isinstance(value, str) or len(value) > most or not value.isprintable():
        raise SettingsError(f"its {name} must be a text of at most {most} printable characters.")
    return value
