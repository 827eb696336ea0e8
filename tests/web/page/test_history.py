"""The history of runs without a browser: its records, what is checked, its HTML, and what its events return."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from html import unescape
from typing import Any
from urllib.parse import unquote_plus

import pytest

pytest.importorskip("gradio")

import gradio as gr

from causal_tracer import MapSpec, TraceRequest
from causal_tracer.errors import SettingsError
from causal_tracer.request.records import OtherPrompt, RunOptions, SamplesUntil, StoredRequest
from causal_tracer.request.sites import KINDS, SITES
from causal_tracer.web.page.compare import compare_runs
from causal_tracer.web.page.history import LONGEST_LINK, MOST_CARDS, MOST_LINKED, History, read_history, runs_link
from causal_tracer.web.page.history_events import HistoryEvents
from causal_tracer.web.page.map_card import MapCard, differences, map_card_of
from causal_tracer.web.page.stopping import RunButtons
from causal_tracer.web.page.strip import strip_html
from causal_tracer.web.page.thumbnails import is_picture, levels, thumbnail_svg
from causal_tracer.web.service.stored import stored_map
from tests.support.flows import some_flow
from tests.support.tiny_models import OTHER_PROMPT, PROMPT, SUBJECT, tiny_tracer
from tests.support.web_tiny import ASKED, flow_of, tiny_flow, tiny_service

MARKUP = "<img src=x onerror=alert(1)>"
PAGE = gr.Request(headers={"referer": "http://127.0.0.1:7860/"}, query_params={})
TABS = {**{kind: (kind,) for kind in KINDS}, "all": KINDS}


def card(seed: int = 1, *kinds: str, **more: Any) -> MapCard:
    """A card of maps of these sites, hidden states where none is given."""
    request = TraceRequest(PROMPT, SUBJECT, seed=seed)
    asked = tuple(StoredRequest(request, MapSpec(kind=kind), RunOptions()) for kind in kinds or ("hidden",))
    return MapCard(
        model="tiny",
        asked=asked,
        **{"answer": "Seattle", "number": "total effect 0.5", "thumbnail": ("08/w.",), **more},
    )


def changed(**changes: Any) -> MapCard:
    """The first card with other fields of its request, map or options."""
    stored = card().asked[0]
    parts = {
        part: replace(record, **{name: value for name, value in changes.items() if hasattr(record, name)})
        for part, record in vars(stored).items()
    }
    return replace(card(), asked=(StoredRequest(**parts),))


class TestList:
    def test_it_is_read_as_it_was_written(self) -> None:
        history = History((card(1, pinned=True, name="First"), card(2, *KINDS), card(3, "head")))
        again = read_history(history.to_text())
        assert again == history
        assert [each.key for each in again.cards] == [each.key for each in history.cards]

    @pytest.mark.parametrize(
        "request_",
        [
            TraceRequest(PROMPT, SUBJECT, samples=SamplesUntil(0.1), metric="logit"),
            TraceRequest(PROMPT, SUBJECT, second=OtherPrompt("The Big Ben is in the city of", "Big Ben")),
            TraceRequest(PROMPT, SUBJECT, noise="2 sigma", direction="corrupt", mean_over=("a", "b")),
        ],
        ids=["samples", "second", "noise"],
    )
    @pytest.mark.parametrize("kind", SITES)
    def test_requests_that_links_do_not_have_are_kept_too(self, request_: TraceRequest, kind: str) -> None:
        own = MapCard(model="tiny", asked=(StoredRequest(request_, MapSpec(kind=kind), RunOptions(batch_size=4)),))
        assert read_history(History((own,)).to_text()).cards == (own,)

    def test_a_full_list_loses_its_oldest_card_that_is_not_pinned(self) -> None:
        history = History(tuple(card(seed, pinned=seed == 1) for seed in range(1, MOST_CARDS + 1)))
        added = history.added(card(100))
        assert len(added.cards) == MOST_CARDS
        assert [each.asked[0].request.seed for each in added.cards] == [1, *range(3, MOST_CARDS + 1), 100]

    def test_where_all_are_pinned_a_run_has_no_card_and_that_is_reported(self) -> None:
        history = History(tuple(card(seed, pinned=True) for seed in range(1, MOST_CARDS + 1))).added(card(100))
        assert history.find(card(100).key) is None
        assert "Unpin or delete" in history.problems[0]

    def test_the_same_run_has_one_card_which_keeps_name_and_pin(self) -> None:
        history = History((card(1, name="First", pinned=True), card(2))).added(card(1, number="total effect 0.6"))
        assert [(each.name, each.pinned, each.number) for each in history.cards] == [
            ("First", True, "total effect 0.6"),
            ("", False, "total effect 0.5"),
        ]


class TestChecks:
    @pytest.mark.parametrize(
        "changes",
        [
            {"model": 7},
            {"request": {"prompt": 7}},
            {"request": {"prompt": "a", "samples": 10**9}},
            {"request": {"prompt": "a", "no": 1}},
            {"request": {"prompt": "a", "corruption": {"class": "user's own", "name": "x"}}},
            {"request": None},
            {"maps": []},
            {"maps": [{}] * 7},
            {"maps": [{"kind": "head", "subject_tokens_only": True}]},
            {"options": {"batch_size": -1}},
            {"thumbnail": ["0/00"]},
            {"thumbnail": ["<b>"]},
            {"thumbnail": ["0" * 25]},
            {"answer": "x" * 81},
            {"name": "a\u202eb"},
            {"opened": "../../etc"},
            {"revision": "<b>"},
            {"extra": "x" * 16_000},
        ],
        ids=str,
    )
    def test_a_malformed_entry_is_left_out_and_reported(self, changes: dict[str, Any]) -> None:
        good, bad = card(1).to_data(), {**card(2).to_data(), **changes}
        history = read_history(json.dumps([good, bad]))
        assert history.cards == (card(1),)
        assert len(history.problems) == 1
        assert history.problems[0].startswith("An entry of this browser's history was left out: ")

    @pytest.mark.parametrize(
        "text", ["{", "7", "{}", "[" * 100_000, "x" * 10**6, 7, None, ""], ids=lambda t: str(t)[:9]
    )
    def test_what_is_no_list_is_an_empty_one(self, text: Any) -> None:
        assert read_history(text).cards == ()

    def test_only_so_many_entries_are_read(self) -> None:
        text = json.dumps([card(seed).to_data() for seed in range(1, MOST_CARDS + 6)])
        history = read_history(text)
        assert len(history.cards) == MOST_CARDS
        assert "29 entries" in history.problems[0]

    def test_damaged_entries_never_raise(self) -> None:
        chance = random.Random(0)
        odd = [
            None,
            True,
            -1,
            1e308,
            float("nan"),
            10**400,
            "",
            "\ud800",
            "\u0000",
            [],
            {},
            [[]],
            {"messages": []},
            "x" * 500,
        ]
        for _ in range(400):
            entry = json.loads(json.dumps(card(2, *KINDS).to_data()))
            for _ in range(chance.randint(1, 3)):
                place = chance.choice([entry, entry["request"] if isinstance(entry.get("request"), dict) else entry])
                place[chance.choice([*place, "second", "placebo", "metric", "corruption", "mean_over"])] = (
                    chance.choice(odd)
                )
            strip_html(read_history(json.dumps([entry])), lambda _: False)


class TestDifferences:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"samples": 20}, "samples 10 → 20"),
            ({"noise": 0.5}, "noise auto → 0.5"),
            ({"prompt": OTHER_PROMPT, "subject": None}, "other prompt"),
            ({"subject": "Needle"}, "subject Space Needle → Needle"),
            ({"seed": 2, "window": 3, "batch_size": 8}, "seed 1 → 2, window 1 → 3, batch size auto → 8"),
            ({"metric": "logit", "direction": "corrupt"}, "metric probability → logit, direction restore → corrupt"),
            ({"subject_tokens_only": True}, "subject tokens only off → on"),
            ({"placebo": OtherPrompt("The Big Ben is in", "Big Ben")}, "other placebo"),
            ({}, ""),
        ],
        ids=str,
    )
    def test_they_are_said_in_a_few_words(self, changes: dict[str, Any], words: str) -> None:
        assert differences(card(), changed(**changes)) == words

    def test_another_site_s_own_window_is_no_difference(self) -> None:
        assert differences(card(1), card(1, "mlp")) == ""
        assert differences(card(1), card(2, *KINDS)) == "seed 1 → 2"
        assert differences(card(1), replace(card(1), model="other")) == "model other"


class TestStrip:
    def test_it_holds_the_list_and_shows_pinned_cards_first_then_the_newest(self) -> None:
        history = History((card(1), card(2, pinned=True), card(3)))
        html = strip_html(history, lambda _: True)
        assert re.findall(r'data-card="(\w+)"', html) == [history.cards[at].key for at in (1, 2, 0)]
        kept = re.search(r'data-kept="([^"]*)"', html)
        assert kept is not None
        assert read_history(kept[1].replace("&quot;", '"')) == history
        assert "seed 2 → 3" in html

    def test_a_lost_result_says_so(self) -> None:
        words = "No longer kept: a click computes it again."
        for kept, shown in ((True, False), (None, False), (False, True)):
            assert (words in strip_html(History((card(),)), lambda _, kept=kept: kept)) == shown  # type: ignore[misc]
        assert "open the file again" in strip_html(History((card(opened="0" * 64),)), lambda _: False)
        assert "Not computed here yet" in strip_html(History((card(number=""),)), lambda _: None)

    def test_markup_is_text(self) -> None:
        asked = (StoredRequest(TraceRequest(MARKUP, MARKUP), MapSpec(), RunOptions()),)
        own = MapCard(model=MARKUP, asked=asked, name=MARKUP, answer=MARKUP, number=MARKUP)
        other = MapCard(model="tiny", asked=(replace(asked[0], request=TraceRequest(PROMPT, SUBJECT)),))
        history = History((other, own), (MARKUP,))
        assert "<img" not in strip_html(history, lambda _: True, said=MARKUP, link=MARKUP)


class TestThumbnails:
    def test_the_strongest_cells_are_seen(self) -> None:
        flow = stored_map("hidden")
        (grid,) = levels([flow])
        rows = grid.split("/")
        for peak in flow.peaks(2):
            assert rows[peak.position][peak.layer] >= "6"
        assert rows[0] == "0" * flow.scores.shape[1]

    def test_cells_that_were_not_computed_and_long_maps_have_pictures(self) -> None:
        flow = some_flow()
        assert all(row.endswith(".") for row in levels([flow])[0].split("/"))
        long = replace(flow, scores=flow.scores[:, :1].repeat(30, 50))
        assert is_picture(levels([long])[0])
        assert len(levels([long])[0].split("/")) == 16

    def test_it_is_small_and_draws_each_level_in_one_path(self) -> None:
        html = thumbnail_svg(levels([stored_map(kind) for kind in KINDS]), KINDS)
        assert 'width="48" height="32"' in html
        assert html.count("<path") <= 30
        assert len(html) < 6000


class TestLinks:
    def test_a_link_brings_the_requests_and_the_names_and_nothing_else(self) -> None:
        cards = [card(1, name="First"), card(2, *KINDS)]
        events = HistoryEvents(tiny_service(), TABS)
        query = runs_link(cards, "http://x/").partition("?runs=")[2]
        html = events.load(gr.Request(query_params={"runs": unquote_plus(query)}), "")
        kept = re.search(r'data-kept="([^"]*)"', html)
        assert kept is not None
        bare = tuple(replace(each, answer="", number="", thumbnail=()) for each in cards)
        assert read_history(kept[1].replace("&quot;", '"')).cards == bare
        assert f'data-chosen="{cards[0].key} {cards[1].key}"' in html
        assert "The link has added 2 runs" in html

    def test_it_has_the_revision_as_a_link_to_one_run_has_it(self) -> None:
        service = tiny_service()
        flow = flow_of(service, {**ASKED, "noise": 0.5})
        own = map_card_of([flow], "tiny")
        assert own.revision == "r1"
        assert read_history(History((own,)).to_text()).cards == (own,)
        # A card that an earlier version stored has none: the app's own is taken.
        older, unknown = replace(own, revision=""), replace(card(9), model="elsewhere")
        events, kept = HistoryEvents(service, TABS), History((older, unknown)).to_text()
        html = events.share(PAGE, gr.EventData(None, {"keys": [older.key, unknown.key]}), kept)
        found = re.search(r'runs=([^"]*)"', html)
        assert found is not None
        entries = json.loads(unquote_plus(unescape(found[1])))
        assert [entry.get("revision") for entry in entries] == ["r1", None]
        words = "The link was made with revision r0 of the model, and this app has r1. Numbers may differ."
        for revision, said in (("r0", True), ("r1", False), ("", False)):
            linked = json.dumps([replace(own, revision=revision).linked_data()])
            opened = HistoryEvents(service, TABS).load(gr.Request(query_params={"runs": linked}), "")
            assert (words in opened) == said

    def test_its_limits_are_reported(self) -> None:
        with pytest.raises(SettingsError, match=r"1 to 4 runs \(given: 5\)"):
            runs_link([card(seed) for seed in range(5)], "")
        with pytest.raises(SettingsError, match=f"links have at most {LONGEST_LINK}"):
            runs_link([changed(prompt="東" * 800)], "")
        with pytest.raises(SettingsError, match="opened file"):
            runs_link([card(opened="0" * 64)], "")
        many = json.dumps([card(seed).linked_data() for seed in range(MOST_LINKED + 1)])
        assert "The link has 5 entries" in HistoryEvents(tiny_service(), TABS).load(
            gr.Request(query_params={"runs": many}), ""
        )


def opened_values(outputs: tuple[Any, ...]) -> tuple[str, str]:
    """The strip and the tab to run again, of what a click on a card returns."""
    return outputs[-2], outputs[-1]


class TestEvents:
    def test_a_kept_run_is_restored_and_a_lost_one_is_to_be_run(self) -> None:
        service = tiny_service()
        events = HistoryEvents(service, TABS)
        flow = flow_of(service, {**ASKED, "noise": 0.5})
        finished = {"hidden": flow}
        strip = events.ended(finished, finished, "")
        kept = History((map_card_of([flow], "tiny"),))
        assert f'data-current="{kept.cards[0].key}"' in strip
        # If another result is shown, the run gets a card that is not marked as current.
        not_shown = events.ended(finished, {"hidden": tiny_flow()}, "")
        assert (kept.cards[0].key in not_shown, 'data-current=""' in not_shown) == (True, True)
        click = gr.SelectData(None, {"index": 0, "value": kept.cards[0].key})
        outputs = events.open(PAGE, click, kept.to_text())
        assert flow.scores is next(o for o in outputs if isinstance(o, dict) and "hidden" in o)["hidden"].scores
        assert opened_values(outputs)[1] == ""
        lost = HistoryEvents(tiny_service(), TABS).open(PAGE, click, kept.to_text())
        assert opened_values(lost)[1] == "hidden"

    def test_a_failed_run_has_no_card(self) -> None:
        events = HistoryEvents(tiny_service(), TABS)
        assert events.ended({}, {"hidden": tiny_flow()}, "") == gr.skip()

    def test_a_result_opens_during_a_run_in_its_tab_and_a_lost_result_waits_for_the_run(self) -> None:
        runs, page = {"hidden": RunButtons()}, gr.Request(headers=PAGE.headers, query_params={}, session_hash="a")
        service = tiny_service()
        flow = flow_of(service, {**ASKED, "noise": 0.5})
        kept = History((map_card_of([flow], "tiny"),))
        click = gr.SelectData(None, {"index": 0, "value": kept.cards[0].key})
        with runs["hidden"].running("a") as run:
            outputs = HistoryEvents(service, TABS, runs).open(page, click, kept.to_text())
            assert any("The run continues" in str(each) for each in outputs)
            assert run.opened is not None
            lost = HistoryEvents(tiny_service(), TABS, runs).open(page, click, kept.to_text())
            assert opened_values(lost)[1] == ""
            assert "another run is in progress in its tab" in opened_values(lost)[0]

    def test_a_lost_run_over_the_app_s_limits_is_refused_with_words(self) -> None:
        over = changed(samples=99)
        events = HistoryEvents(tiny_service(max_samples=10), TABS)
        click = gr.SelectData(None, {"index": 0, "value": over.key})
        strip, again = opened_values(events.open(PAGE, click, History((over,)).to_text()))
        assert "over this app&#x27;s limit" in strip
        assert again == ""

    def test_an_opened_file_is_shown_with_its_link_and_gets_a_card(self, tmp_path: Any) -> None:
        path = tmp_path / "flow.json"
        tiny_flow().save(path)
        events = HistoryEvents(tiny_service(), TABS)
        outputs = events.open_file(PAGE, str(path), "")
        (link,) = [value for value in outputs if isinstance(value, str) and value.startswith("http")]
        assert link.startswith("http://127.0.0.1:7860/?prompt=")
        assert "revision=r1" in link
        strip = outputs[-2]
        assert "opened from a file" in strip
        kept = re.search(r'data-kept="([^"]*)"', strip)
        assert kept is not None
        text = kept[1].replace("&quot;", '"')
        click = gr.SelectData(None, {"index": 0, "value": read_history(text).cards[0].key})
        again = events.open(PAGE, click, text)
        found = next(o for o in again if isinstance(o, dict) and "hidden" in o)["hidden"]
        assert found.scores.equal(tiny_flow().scores)

    def test_an_opened_file_does_not_stand_in_for_what_the_app_computes(self) -> None:
        service = tiny_service()
        flow = flow_of(service, {**ASKED, "noise": 0.5})
        forged = replace(flow, scores=flow.scores * 0)
        service.kept.keep_file(forged)
        found = service.kept.flows("tiny", [flow.stored_request()])
        assert found is not None
        assert found[0].scores.equal(flow.scores)

    def test_an_opened_map_without_a_tab_is_refused_with_words(self, tmp_path: Any) -> None:
        request = TraceRequest(PROMPT, SUBJECT, samples=2)
        flow = tiny_tracer("gpt2").trace_maps(request, {"heads": MapSpec("head")})["heads"]
        flow.save(tmp_path / "flow.json")
        outputs = HistoryEvents(tiny_service(), TABS).open_file(PAGE, str(tmp_path / "flow.json"), "")
        assert "This app has no tab for maps of head." in outputs[-1]

    @pytest.mark.parametrize("do", ["pin", "name", "delete"])
    def test_cards_are_changed(self, do: str) -> None:
        events = HistoryEvents(tiny_service(), TABS)
        event = gr.EventData(None, {"key": card().key, "do": do, "name": f" {MARKUP}\n" + "x" * 99})
        html = events.edit(event, History((card(), card(2))).to_text())
        kept = re.search(r'data-kept="([^"]*)"', html)
        assert kept is not None
        cards = read_history(unescape(kept[1])).cards
        assert len(cards) == (1 if do == "delete" else 2)
        assert cards[0].pinned == (do == "pin")
        assert len(cards[0].name) == (59 if do == "name" else 0)


class TestComparisons:
    def test_two_runs_give_a_difference_for_each_site_that_both_have(self) -> None:
        both = {kind: stored_map(kind) for kind in KINDS}
        assert len(compare_runs([both, both]).figures) == 3
        assert len(compare_runs([both, {"mlp": stored_map("mlp")}]).figures) == 1
        assert len(compare_runs([{"hidden": stored_map("hidden")}, {"mlp": stored_map("mlp")}]).figures) == 1

    def test_more_runs_share_a_scale_where_they_measure_the_same(self) -> None:
        flow = stored_map("hidden")
        runs = [{"hidden": flow}, {"hidden": flow}, {"mlp": stored_map("mlp")}]
        shared = compare_runs(runs)
        assert "One scale for all maps" in shared.words
        assert len({(figure.data[0].zmin, figure.data[0].zmax) for _, figure in shared.figures}) == 1

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"settings": replace(stored_map("hidden").settings, direction="corrupt")}, "metric or direction"),
            ({"kind": "head"}, "heads or spans"),
            ({"kind": "knockout"}, "block attention"),
            ({"low_score": 0.3}, "one colour would not mean the same effect"),
        ],
        ids=["direction", "rows", "blocks", "base"],
    )
    def test_where_one_scale_would_mislead_each_map_has_its_own(self, changes: dict[str, Any], words: str) -> None:
        flow = stored_map("hidden")
        apart = compare_runs([{"hidden": flow}, {"hidden": flow}, {"hidden": replace(flow, **changes)}])
        assert "its own colour scale" in apart.words
        assert words in apart.words
        assert all(figure.data[0].showscale is not False for _, figure in apart.figures)

    @pytest.mark.parametrize("count", [0, 1, 5])
    def test_two_to_four_can_be_compared(self, count: int) -> None:
        with pytest.raises(SettingsError, match="Two to 4 runs"):
            compare_runs([{"hidden": stored_map("hidden")}] * count)
