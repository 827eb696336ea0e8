"""The cards of patched runs without a browser: what they hold, which one they replace, and what a click fills in."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from typing import Any
from urllib.parse import unquote_plus

import pytest

pytest.importorskip("gradio")

import gradio as gr
import torch

from causal_tracer.prompts.chat import ChatText
from causal_tracer.request.records import MapSpec, RunOptions, StoredRequest, TraceRequest
from causal_tracer.web.page.comparing import CompareEvents
from causal_tracer.web.page.fields import FIELD_NAMES, Picked, field_values
from causal_tracer.web.page.history import History, read_history, runs_link
from causal_tracer.web.page.history_events import HistoryEvents
from causal_tracer.web.page.map_card import MapCard
from causal_tracer.web.page.patch_card import PatchAsked, PatchCard, patch_card_of
from causal_tracer.web.page.patch_tab import PatchEvents
from causal_tracer.web.page.stopping import RunButtons
from causal_tracer.web.page.thumbnails import change_levels
from tests.support.lenses import some_lens, some_patched_run
from tests.support.tiny_models import OTHER_PROMPT, PROMPT
from tests.support.web_tiny import all_of, app_fields, load_tiny_chat, tiny_service

PAGE = gr.Request(headers={"referer": "http://127.0.0.1:7860/"}, query_params={}, session_hash="a")
FIRST, SECOND = ((5, 1), (7, 0)), ((5, 1), (6, 2))
TABS = {"hidden": ("hidden",)}
MARKUP = "<img src=x onerror=alert(1)>"


def asked(*pairs: Any, **changes: Any) -> PatchAsked:
    return replace(PatchAsked(TraceRequest(PROMPT, answer_id=3), OTHER_PROMPT, pairs or (FIRST,)), **changes)


def card(*pairs: Any, **changes: Any) -> PatchCard:
    summary = {"answer": "Seattle", "number": "P 0.1 → 0.4", "thumbnail": ("08/w0",)}
    own = {name: changes.pop(name) for name in ("name", "pinned", "model") if name in changes}
    return PatchCard(asked=asked(*pairs, **changes), **{"model": "tiny", **summary, **own})


def map_card() -> MapCard:
    return MapCard(model="tiny", asked=(StoredRequest(TraceRequest(PROMPT), MapSpec(), RunOptions()),))


class TestRecord:
    @pytest.mark.parametrize(
        "own",
        [
            card(),
            card(FIRST, SECOND, site="mlp", answers=(3, 5), name="Mine", pinned=True),
            card(source=TraceRequest(ChatText.from_user(PROMPT)), base=ChatText.from_user(OTHER_PROMPT)),
        ],
        ids=["plain", "more", "chat"],
    )
    def test_it_is_read_as_it_was_written(self, own: PatchCard) -> None:
        history = History((map_card(), own))
        again = read_history(history.to_text())
        assert again == history
        assert again.cards[1].key == own.key

    @pytest.mark.parametrize(
        "patch",
        [
            None,
            7,
            {},
            {"source": {"prompt": PROMPT}, "base": OTHER_PROMPT},
            {"source": {"prompt": PROMPT}, "base": OTHER_PROMPT, "pairs": []},
            {"source": {"prompt": PROMPT}, "base": OTHER_PROMPT, "pairs": [[[1, 2]]]},
            {"source": {"prompt": PROMPT}, "base": OTHER_PROMPT, "pairs": [[[1, 2], [1, 2, 3]]]},
            {"source": {"prompt": PROMPT}, "base": OTHER_PROMPT, "pairs": [[[1, 2], [1, -1]]]},
            {"source": {"prompt": PROMPT}, "base": OTHER_PROMPT, "pairs": [[[1, 2], [1, 10**30]]]},
            {"source": {"prompt": 7}, "base": OTHER_PROMPT, "pairs": [[[1, 2], [1, 2]]]},
            {"source": {"prompt": PROMPT}, "base": 7, "pairs": [[[1, 2], [1, 2]]]},
            {"source": {"prompt": PROMPT}, "base": OTHER_PROMPT, "pairs": [[[1, 2], [1, 2]]], "site": "head"},
            {"source": {"prompt": PROMPT}, "base": OTHER_PROMPT, "pairs": [[[1, 2], [1, 2]]], "no": 1},
        ],
        ids=str,
    )
    def test_a_malformed_entry_is_left_out_and_reported(self, patch: Any) -> None:
        history = read_history(json.dumps([card().to_data(), {**card(SECOND).to_data(), "patch": patch}]))
        assert history.cards == (card(),)
        assert history.problems[0].startswith("An entry of this browser's history was left out: ")

    def test_it_says_what_changed_from_the_run_before(self) -> None:
        first = card()
        changes = {
            "hidden states, other pairs": card(SECOND),
            "MLP, other base": card(base=PROMPT, site="mlp"),
            "hidden states, other source": card(source=TraceRequest(OTHER_PROMPT, answer_id=3)),
            "hidden states, other answer": card(source=TraceRequest(PROMPT, answer_id=4)),
            "hidden states, model other, other pairs": card(SECOND, model="other"),
        }
        assert {words: after.change_from(first) for words, after in changes.items()} == {each: each for each in changes}
        assert card().change_from(map_card()) == card().change_from(None) == "hidden states"
        assert map_card().change_from(card()) == map_card().change_from(None) == ""

    def test_its_title_names_the_number_of_pairs(self) -> None:
        assert [each.title for each in (card(), card(FIRST, SECOND))] == ["Patch: 1 pair", "Patch: 2 pairs"]

    def test_its_summary_is_of_the_sources_answer(self) -> None:
        run, base = some_patched_run(), some_lens()
        made = patch_card_of("tiny", TraceRequest(PROMPT), OTHER_PROMPT, run, base)
        assert (made.answer, made.number) == ("Seattle", "P 0.25 → 0.50")
        assert made.asked.answers == tuple(each.token_id for each in run.answers)
        change = torch.zeros(3, 2)
        change[1, 1], change[2, 0] = 0.4, -0.4
        assert change_levels(change) == "00/08/w0"
        assert change_levels(change / 1000) == "00/00/00"


class TestPlace:
    def test_a_run_with_pairs_added_takes_the_newest_cards_place(self) -> None:
        history = History((map_card(), card())).added(card(FIRST, SECOND))
        assert history.cards == (map_card(), card(FIRST, SECOND))

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (card(), card(SECOND)),
            (card(FIRST, SECOND), card()),
            (card(), card(FIRST, SECOND, site="mlp")),
            (card(), card(FIRST, SECOND, base=PROMPT)),
            (card(), card(FIRST, SECOND, model="other")),
            (card(pinned=True), card(FIRST, SECOND)),
            (card(name="Mine"), card(FIRST, SECOND)),
        ],
        ids=["other pairs", "fewer pairs", "site", "base", "model", "pinned", "named"],
    )
    def test_any_other_run_has_a_card_of_its_own(self, before: PatchCard, after: PatchCard) -> None:
        assert History((before,)).added(after).cards == (before, after)

    def test_a_run_in_between_ends_the_series(self) -> None:
        assert len(History((card(), map_card())).added(card(FIRST, SECOND)).cards) == 3


def fields(**changes: Any) -> tuple[Any, ...]:
    values = dict(zip(FIELD_NAMES, field_values(app_fields(PROMPT, model="tiny")), strict=True))
    return tuple({**values, **changes}.values())


def finished(events: PatchEvents, **changes: Any) -> PatchCard:
    """The card of a run of one pair, made as the page makes it."""
    read = all_of(events.read(gr.Request(), OTHER_PROMPT, None, Picked(), *fields(**changes)))[-1][2]
    made = all_of(events.show_patched(gr.Request(), read, (FIRST,), "mlp"))[-1][-1]
    assert isinstance(made, PatchCard)
    return made


def click(own: PatchCard) -> gr.SelectData:
    return gr.SelectData(None, {"index": 0, "value": own.key})


class TestEvents:
    def test_a_finished_run_gets_a_card_and_one_that_failed_gets_none(self) -> None:
        service = tiny_service()
        events, own = HistoryEvents(service, TABS), finished(PatchEvents(service))
        strip = unescape(events.patched(own, ""))
        key = replace(own, revision="r1").key
        assert f'data-current="{key}"' in strip
        assert f"“{own.answer}” · {own.number.removeprefix('P ')}" in strip
        assert "No longer kept" not in strip
        assert events.patched(None, "") == gr.skip()

    @pytest.mark.parametrize("changes", [{}, {"chat": True}, {"answer": " Rome"}], ids=str)
    def test_a_click_fills_in_what_makes_the_same_run(self, changes: dict[str, Any]) -> None:
        service = tiny_service(load_tiny_chat)
        patch = PatchEvents(service)
        own = finished(patch, **changes)
        outputs = HistoryEvents(service, {}).open(PAGE, click(own), History((own,)).to_text())
        values, (picked, base, site, wanted, tabs, _, again) = outputs[:-7], outputs[-7:]
        assert (base, site, tabs.selected, again) == (OTHER_PROMPT, "mlp", "patch", "patch")
        # The experiment's fields stay as they are.
        kept = {name for name, value in zip(FIELD_NAMES, values, strict=True) if value == gr.skip()}
        assert kept == set(FIELD_NAMES) - {"model", "prompt", "answer", "chat"}
        filled = (
            value if value != gr.skip() else usual for value, usual in zip(values, fields(samples=7), strict=True)
        )
        *_, (_, _, read, pairs, used), (*_, asked_pairs, _) = all_of(
            patch.read(gr.Request(), base, wanted, picked, *filled)
        )
        assert (pairs, used, asked_pairs) == ((), None, (FIRST,))
        again_made = all_of(patch.show_patched(gr.Request(), read, asked_pairs, site))[-1][-1]
        assert again_made == own

    def test_pairs_of_an_opened_card_are_not_made_in_other_prompts(self) -> None:
        patch = PatchEvents(tiny_service())
        steps = all_of(patch.read(gr.Request(), PROMPT, asked(), Picked(), *fields()))
        assert [step[3] for step in steps if step[3] != gr.skip()] == [()]

    def test_a_lost_run_says_so(self) -> None:
        own = finished(PatchEvents(tiny_service()))
        strip = HistoryEvents(tiny_service(), TABS).redraw(History((own,)).to_text())
        assert "No longer kept: a click computes it again." in strip

    @pytest.mark.parametrize(
        ("own", "words"),
        [
            (card(model="elsewhere"), "is not available here"),
            (card(source=TraceRequest(PROMPT, read=3)), "only the package has"),
            (card(base=ChatText.from_user(PROMPT)), "cannot be typed into the page"),
        ],
        ids=["model", "source", "base"],
    )
    def test_one_that_the_page_cannot_ask_for_is_refused_with_words(self, own: PatchCard, words: str) -> None:
        outputs = HistoryEvents(tiny_service(), TABS).open(PAGE, click(own), History((own,)).to_text())
        assert words in outputs[-2]
        assert outputs[-1] == ""

    def test_a_link_brings_it_to_another_browser(self) -> None:
        own = card(name="Mine")
        query = runs_link([own], "http://x/").partition("?runs=")[2]
        strip = HistoryEvents(tiny_service(), TABS).load(gr.Request(query_params={"runs": unquote_plus(query)}), "")
        kept = re.search(r'data-kept="([^"]*)"', strip)
        assert kept is not None
        bare = replace(own, answer="", number="", thumbnail=())
        assert read_history(unescape(kept[1])).cards == (bare,)
        assert "Not computed here yet" in strip

    def test_it_cannot_be_compared_with_maps(self) -> None:
        history = History((map_card(), card(name=MARKUP)))
        compare = CompareEvents(HistoryEvents(tiny_service(), TABS), RunButtons())
        event = gr.EventData(None, {"keys": [each.key for each in history.cards]})
        _, to_compute, again, _, words, *_ = compare.compare(PAGE, event, history.to_text())
        assert (to_compute, again) == ((), "")
        assert "Only maps can be compared" in words
        assert "<img" not in words
