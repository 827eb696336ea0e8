"""Which lens stands in the place of a map, without a browser."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("gradio")

import gradio as gr

from causal_tracer.web.page.explore import MAP_TABS
from causal_tracer.web.page.fields import FIELD_NAMES, Picked, field_values
from causal_tracer.web.page.lens_tab import NewestLens, lens_request
from causal_tracer.web.page.prompt_lens import PlacedLens, PromptLensEvents, Seen
from causal_tracer.web.service.stored import STORED_PROMPT
from tests.support.tiny_models import OTHER_PROMPT, PROMPT
from tests.support.web_tiny import all_of, app_fields, tiny_flow, tiny_service

NOTHING = ("",) * len(MAP_TABS)


@pytest.fixture(scope="module")
def events() -> PromptLensEvents:
    service = tiny_service()
    service.lens(
        lens_request(
            app_fields(PROMPT, answer="", answer_id=None, answer_form="auto", chat=False, model="tiny"),
            service.settings,
        )
    )
    return PromptLensEvents(service)


def values(prompt: str, **changes: Any) -> tuple[Any, ...]:
    fields = dict(zip(FIELD_NAMES, field_values(app_fields(prompt, model="tiny")), strict=True))
    return tuple({**fields, **changes}.values())


def flows(**shown: Any) -> tuple[Any, ...]:
    return tuple(shown.get(tab) for tab in MAP_TABS)


def look(
    events: PromptLensEvents, tab: str, seen: Seen, prompt: str, newest: NewestLens | None = None, **shown: Any
) -> tuple[Any, Seen]:
    return events.wanted(tab, newest or NewestLens(), seen, *flows(**shown), Picked(), *values(prompt))


def read(events: PromptLensEvents, wanted: str, newest: NewestLens, prompt: str = PROMPT) -> list[Any]:
    return all_of(events.read(gr.Request(), wanted, newest, Picked(), *values(prompt)))


def result() -> dict[str, Any]:
    """A map of the tiny model's prompt."""
    return {"hidden": tiny_flow()}


def test_a_prompt_that_is_typed_over_a_stored_map_wants_its_lens_until_it_is_the_map_s_again(events):
    wanted, seen = look(events, "hidden", Seen(), PROMPT)
    assert wanted.startswith("hidden ")
    assert PROMPT in wanted
    assert look(events, "mlp", seen, PROMPT)[0].startswith("mlp ")
    assert look(events, "hidden", seen, STORED_PROMPT)[0] == ""


def test_a_map_of_the_prompt_wants_none_and_another_prompt_typed_after_it_does(events):
    _, seen = look(events, "hidden", Seen(), PROMPT)
    wanted, seen = look(events, "hidden", seen, PROMPT, hidden=result())
    assert wanted == ""
    assert OTHER_PROMPT in look(events, "hidden", seen, OTHER_PROMPT, hidden=result())[0]


def test_an_opened_file_of_another_prompt_is_not_covered_until_somebody_types(events):
    wanted, seen = look(events, "hidden", Seen(), STORED_PROMPT, hidden=result())
    assert wanted == ""
    # Another field changes, or its tab is opened again.
    wanted, seen = look(events, "hidden", seen, STORED_PROMPT, hidden=result())
    assert wanted == ""
    assert OTHER_PROMPT in look(events, "hidden", seen, OTHER_PROMPT, hidden=result())[0]


def test_a_lens_is_placed_only_while_it_is_wanted_and_no_map_of_its_prompt_has_come(events):
    newest = NewestLens()
    wanted, _ = look(events, "hidden", Seen(), PROMPT, newest)
    (placed,) = read(events, wanted, newest)
    shown = events.place(placed, wanted, *flows())
    assert shown[MAP_TABS.index("hidden")].count("<table") == 1
    assert PROMPT in shown[MAP_TABS.index("hidden")]
    assert "Tiny &lt;GPT-2&gt;" in shown[MAP_TABS.index("hidden")]
    assert set(shown[1:]) == {""}
    assert events.place(placed, "", *flows()) == NOTHING
    assert events.place(placed, f"hidden {OTHER_PROMPT}", *flows()) == (gr.skip(),) * len(MAP_TABS)
    assert events.place(placed, wanted, *flows(hidden=result())) == NOTHING


def test_where_none_is_wanted_the_maps_come_back_at_once(events):
    assert events.clear("") == NOTHING
    assert events.clear("hidden x") == (gr.skip(),) * len(MAP_TABS)
    assert read(events, "", NewestLens()) == [PlacedLens()]


@pytest.mark.parametrize("then", [OTHER_PROMPT, STORED_PROMPT])
def test_a_lens_that_is_no_longer_wanted_is_not_read_to_its_end_and_changes_nothing(events, then):
    newest, unread = NewestLens(), f"{PROMPT} Rome"
    wanted, seen = look(events, "hidden", Seen(), unread, newest)
    look(events, "hidden", seen, then, newest)
    assert read(events, wanted, newest, unread) == [gr.skip()]


def test_fields_that_are_wrong_and_models_that_are_not_ready_leave_what_stands_there(events):
    assert (
        events.wanted("hidden", NewestLens(), Seen(), *flows(), Picked(), *values(PROMPT, noise="loud"))[0] == gr.skip()
    )
    # A tab without maps: what was typed there is known when a file is opened later.
    wanted, seen = look(events, "", Seen(), OTHER_PROMPT)
    assert (wanted, seen.prompt) == (gr.skip(), OTHER_PROMPT)
    assert look(events, "hidden", seen, OTHER_PROMPT, hidden=result())[0] == ""
    waiting = PromptLensEvents(tiny_service())
    assert look(waiting, "hidden", Seen(), PROMPT)[0] == gr.skip()
