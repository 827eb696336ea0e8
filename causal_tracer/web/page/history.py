"""The history of a browser's runs: a list of cards, as the browser keeps it and as links hold a part of it.

Both are untrusted, and checked like typed input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from causal_tracer.arguments import quoted
from causal_tracer.errors import CausalTracerError, SettingsError
from causal_tracer.web.page.card import LONGEST_ENTRY, Card
from causal_tracer.web.page.map_card import read_map_card
from causal_tracer.web.page.patch_card import read_patch_card

MOST_CARDS = 24
"""Cards of a history."""

MOST_LINKED = 4
"""Runs of one link, and of one comparison."""

LONGEST_LINK = 6000
"""Characters of a link to several runs: servers and chats cut longer addresses."""


@dataclass(frozen=True)
class History:
    """Cards from the oldest to the newest, and the problems of the list that they were read from."""

    cards: tuple[Card, ...] = ()
    problems: tuple[str, ...] = ()

    def find(self, key: str) -> Card | None:
        """Return the card with this key; None if there is none."""
        return next((card for card in self.cards if card.key == key), None)

    def added(self, card: Card) -> History:
        """Return the history with a finished run's card: as the newest, or in place of the same run's earlier card.

        A run that extends that of the newest card takes its place, unless that card is pinned or named. If the list is
        full, the oldest card that is not pinned is removed.
        """
        if (known := self.find(card.key)) is not None:
            return self.changed(card.key, replace(card, name=known.name or card.name, pinned=known.pinned))
        newest = self.cards[-1] if self.cards else None
        if newest is not None and card.extends(newest) and not (newest.pinned or newest.name):
            return self.changed(newest.key, card)
        cards = (*self.cards, card)
        if len(cards) <= MOST_CARDS:
            return replace(self, cards=cards)
        oldest = next((each for each in self.cards if not each.pinned), None)
        if oldest is None:
            words = f"All {MOST_CARDS} cards are pinned, so this run gets no card. Unpin or delete a card."
            return replace(self, problems=(*self.problems, words))
        return replace(self, cards=tuple(each for each in cards if each is not oldest))

    def changed(self, key: str, card: Card | None) -> History:
        """Return the history with another card, or none, in place of the card with this key."""
        new = (card if each.key == key else each for each in self.cards)
        return replace(self, cards=tuple(each for each in new if each is not None))

    def moved(self, card: Card, anew: Card) -> History:
        """Return the history with a card's place taken by the same run's card under another key.

        If the history has a card with that key already, the card is removed.
        """
        if anew.key == card.key:
            return self
        return self.changed(card.key, None if self.find(anew.key) else anew)

    def to_text(self) -> str:
        """Return the history as the text that the browser stores."""
        return json.dumps([card.to_data() for card in self.cards], ensure_ascii=True, separators=(",", ":"))


def read_history(text: Any, most: int = MOST_CARDS, place: str = "this browser's history") -> History:
    """Return the cards that a text holds. Never raises: unreadable entries are left out, and reported in `problems`.

    Args:
        text: JSON, as `History.to_text` or a link has it.
        most: The largest number of entries that are read.
        place: Where the text comes from, for messages.
    """
    if not text:
        return History()
    if not isinstance(text, str) or len(text) > most * LONGEST_ENTRY:
        return History(problems=(f"The list of {place} is too long to be read, and was left out.",))
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list):
        return History(problems=(f"The list of {place} cannot be read, and was left out.",))
    cards: dict[str, Card] = {}
    problems: list[str] = []
    for entry in entries[:most]:
        try:
            card = _read_card(entry)
            cards[card.key] = card
        except CausalTracerError as error:
            problems.append(f"An entry of {place} was left out: {error}")
    if len(entries) > most:
        problems.append(f"{place[:1].upper()}{place[1:]} has {len(entries)} entries. The first {most} were read.")
    return History(tuple(cards.values()), tuple(problems))


def _read_card(entry: Any) -> Card:
    if not isinstance(entry, Mapping):
        raise SettingsError(f"it must be an object (given: {quoted(entry)}).")
    return read_patch_card(entry) if "patch" in entry else read_map_card(entry)


def runs_link(cards: Sequence[Card], page: str) -> str:
    """Return a link that opens several runs: the page's address with the runs as its query.

    Raises:
        SettingsError: There are too many, an opened file is among them, or the link is too long.
    """
    if not 1 <= len(cards) <= MOST_LINKED:
        raise SettingsError(f"A link opens 1 to {MOST_LINKED} runs (given: {len(cards)}). Choose fewer cards.")
    if any(card.opened for card in cards):
        raise SettingsError("An opened file has no link. Leave out its card, or share the file.")
    text = json.dumps([card.linked_data() for card in cards], ensure_ascii=False, separators=(",", ":"))
    link = f"{page}?{urlencode({'runs': text})}"
    if len(link) > LONGEST_LINK:
        raise SettingsError(
            f"The link would have {len(link)} characters, and links have at most {LONGEST_LINK}. Choose fewer cards."
        )
    return link
