"""Cards whose results are lost are computed again before they are compared."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from typing import Any

import pytest

pytest.importorskip("gradio")

import gradio as gr

from causal_tracer.request.sites import KINDS
from causal_tracer.web.page.comparing import CompareEvents
from causal_tracer.web.page.history import History, read_history
from causal_tracer.web.page.history_events import HistoryEvents
from causal_tracer.web.page.map_card import map_card_of
from causal_tracer.web.page.stopping import RunButtons
from tests.support.web_tiny import ASKED, all_of, flow_of, tiny_flow, tiny_service

PAGE = gr.Request(headers={"referer": "http://127.0.0.1:7860/"}, query_params={}, session_hash="a")
TABS = {kind: (kind,) for kind in KINDS}


def two_cards(service: Any) -> History:
    """Return the cards of a kept result and of a lost one."""
    kept = flow_of(service, {**ASKED, "noise": 0.5})
    lost = flow_of(tiny_service(), {**ASKED, "noise": 0.5, "seed": 5})
    return History((map_card_of([kept], "tiny"), map_card_of([lost], "tiny")))


def chosen(history: History) -> gr.EventData:
    return gr.EventData(None, {"keys": [card.key for card in history.cards]})


def events_of(service: Any) -> CompareEvents:
    return CompareEvents(HistoryEvents(service, TABS), RunButtons())


def test_a_lost_result_is_computed_compared_and_put_into_its_card() -> None:
    service = tiny_service()
    events, history = events_of(service), two_cards(service)
    tab, cards, again, stop, words, *_ = events.compare(PAGE, chosen(history), history.to_text())
    assert (tab.selected, cards, again, stop.visible) == ("compare", history.cards, "compare", True)
    assert "1 chosen result is no longer kept, and will be computed again" in words
    first, *filling, last = all_of(events.compute(PAGE, cards))
    assert first[0] == ()
    assert "Run 2 of 2, Hidden states: " in filling[-1][2]
    assert "Difference of the" in last[2]
    assert last[1].visible is False
    named = replace(history.cards[1], name="Second", number="")
    strip = events.fill_cards(last[0], History((history.cards[0], named)).to_text())
    found = re.search(r'data-kept="([^"]*)"', strip)
    assert found is not None
    second = read_history(unescape(found[1])).cards[1]
    assert (second.name, second.number) == ("Second", history.cards[1].number)
    # A card that was deleted meanwhile does not come back.
    assert named.key not in events.fill_cards(last[0], History(history.cards[:1]).to_text())
    # Now both are kept, and compared at once.
    _, cards, again, stop, words, *_ = events.compare(PAGE, chosen(history), history.to_text())
    assert (cards, again, stop.visible) == ((), "", False)
    assert "Difference of the" in words


def test_a_result_that_cannot_be_computed_is_reported() -> None:
    service = tiny_service(max_samples=4)
    events, history = events_of(service), two_cards(service)
    opened = replace(history.cards[1], opened="0" * 64)
    with_file = History((history.cards[0], opened))
    _, cards, again, _, words, *_ = events.compare(PAGE, chosen(with_file), with_file.to_text())
    assert (cards, again) == ((), "")
    assert "The opened file is no longer kept. Open it again." in words
    over = replace(history.cards[1].asked[0], request=replace(history.cards[1].asked[0].request, samples=99))
    last = all_of(events.compute(PAGE, (history.cards[0], replace(history.cards[1], asked=(over,)))))[-1]
    assert "over this app&#x27;s limit" in last[2]
    assert last[:1] == ((),)


def test_an_earlier_run_does_not_replace_a_later_comparison() -> None:
    service = tiny_service()
    events, history = events_of(service), two_cards(service)
    _, cards, *_ = events.compare(PAGE, chosen(history), history.to_text())
    steps = events._steps(PAGE, cards, lambda: False)
    next(steps)
    kept = History((history.cards[0], map_card_of([flow_of(service, {**ASKED, "noise": 0.5, "seed": 6})], "tiny")))
    assert "Difference of the" in events.compare(PAGE, chosen(kept), kept.to_text())[4]
    *_, last = steps
    assert [card for card, _ in last[0]] == [history.cards[1]]
    assert all(part == gr.skip() for part in last[1:])


def test_a_stopped_run_is_reported_as_stopped() -> None:
    events = events_of(tiny_service())
    assert "Stopping" in events.stop(PAGE)[0]
    stop, words, *_ = events.ended(PAGE)
    assert stop.visible is False
    assert "Stopped. Nothing was compared." in words
    assert events.fill_cards((), History((map_card_of([tiny_flow()], "tiny"),)).to_text()) == gr.skip()
