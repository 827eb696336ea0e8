"""The history of runs as HTML: a card for each run. `static/history.js` handles its buttons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from causal_tracer.web.page.card import LONGEST_NAME, Card
from causal_tracer.web.page.history import MOST_LINKED, History
from causal_tracer.web.page.thumbnails import thumbnail_svg

Keeps = Callable[[Card], bool | None]
"""Returns whether the app still has a card's result; None while that is not known."""

_EMPTY = "Each finished run gets a card here, which this browser keeps. Two to four cards can be compared."
_UNDO = ' <button type="button" data-undo>Undo</button>'
_COMPUTES = "No longer kept: a click computes it again."
_NOT_YET = "Not computed here yet: a click computes it."
_OPENS = "No longer kept: open the file again."


def strip_html(
    history: History,
    keeps: Keeps,
    *,
    current: str = "",
    chosen: Sequence[str] = (),
    said: str = "",
    link: str = "",
    undo: bool = False,
) -> str:
    """Return the strip: pinned cards first, then the newest first. User's text is escaped.

    Args:
        history: The cards, and problems to report.
        keeps: Returns whether a card's result is kept.
        current: The key of the card whose run is shown now; empty leaves the script's own.
        chosen: The keys of the ticked cards; empty leaves the script's own.
        said: A sentence on the last change.
        link: A link to chosen runs, to be copied.
        undo: Whether the last change can be undone.
    """
    cards = history.cards
    before = dict(zip((card.key for card in cards[1:]), cards, strict=False))
    order = sorted(cards, key=lambda card: (card.pinned, cards.index(card)), reverse=True)
    items = "".join(_card_html(card, before.get(card.key), keeps(card), at == 0) for at, card in enumerate(order))
    body = f'<ol class="ct-past-cards">{items}</ol>' if items else f'<p class="ct-hint">{_EMPTY}</p>'
    buttons = (
        f'<button type="button" data-compare disabled>Compare</button>'
        f'<button type="button" data-share disabled>Link</button>'
        f'<span class="ct-hint" data-count data-most="{MOST_LINKED}"></span>'
    )
    return (
        f'<section class="ct-past" aria-label="Runs so far" data-current="{current}" data-chosen="{" ".join(chosen)}" '
        f'data-longest-name="{LONGEST_NAME}" data-kept="{escape(history.to_text())}">'
        f'<div class="ct-past-head"><h2>Runs</h2>{buttons if items else ""}</div>'
        f"{_messages(history.problems, said, link, undo)}{body}</section>"
    )


def _messages(problems: Sequence[str], said: str, link: str, undo: bool) -> str:
    warned = "".join(f'<div class="ct-warning" role="status">{escape(words)}</div>' for words in problems)
    told = f'<p class="ct-hint" role="status">{escape(said)}{_UNDO if undo else ""}</p>' if said else ""
    box = f'<input class="ct-past-link" data-link readonly aria-label="Link" value="{escape(link)}">' if link else ""
    return warned + told + box


def _card_html(card: Card, before: Card | None, kept: bool | None, first: bool) -> str:
    what = card.name or card.title
    change = "opened from a file" if card.opened else card.change_from(before)
    if card.name:
        change = f"{card.title}, {change}" if change else card.title
    lost = _lost_words(card, kept)
    numbers = f"“{card.answer}” · {card.number}" if card.number else "–"
    short = escape(numbers.replace("total effect", "TE").replace("· P ", "· "))
    spoken = ". ".join(part for part in (what, card.prompt, numbers, change, lost) if part)
    stop = 0 if first else -1
    pin = ("pin", "Unpin", "★") if card.pinned else ("pin", "Pin", "☆")
    tools = "".join(
        f'<button type="button" tabindex="{stop}" data-do="{do}" title="{title}" aria-label="{title}: {escape(what)}"'
        f"{pressed}>{sign}</button>"
        for do, title, sign, pressed in (
            (*pin, f' aria-pressed="{str(card.pinned).lower()}"'),
            ("name", "Name", "✎", ""),
            ("delete", "Delete", "×", ""),
        )
    )
    last = f'<span class="ct-past-lost">{lost}</span>' if lost else f'<span dir="auto">{escape(change)}</span>'
    return (
        f'<li data-card="{card.key}" data-name="{escape(card.name)}"{" data-pinned" if card.pinned else ""}>'
        f'<button type="button" class="ct-past-open" data-open tabindex="{stop}" title="{escape(spoken)}" '
        'aria-keyshortcuts="P N Delete X">'
        f'{thumbnail_svg(card.thumbnail, card.kinds)}<b dir="auto">{escape(what)}</b>'
        f'<span dir="auto">{short}</span><span dir="auto">{escape(card.prompt)}</span>{last}</button>'
        f'<span class="ct-past-tools"><input type="checkbox" data-choose tabindex="{stop}" '
        f'title="Choose for comparing" aria-label="Choose: {escape(what)}">{tools}</span></li>'
    )


def _lost_words(card: Card, kept: bool | None) -> str:
    if kept is not False and (kept or card.number):
        return ""
    if card.opened:
        return _OPENS
    return _COMPUTES if card.number else _NOT_YET
