"""The story in a headless Chromium: four steps on a stored result, by keys and buttons, with no model."""

from __future__ import annotations

import pytest

from causal_tracer.web.stored import stored_map
from causal_tracer.web.story import story_steps

playwright_api = pytest.importorskip("playwright.sync_api")
expect = playwright_api.expect
expect.set_options(timeout=30_000)
pytestmark = pytest.mark.browser


def step(page) -> str:
    return page.locator(".ct-story").get_attribute("data-step")


def test_arrow_keys_tell_the_story_while_no_model_is_loaded(visits):
    page = visits.open()
    expect(page.locator("#ct-model")).to_contain_text("Loading")
    probabilities = []
    for number, told in enumerate(story_steps(stored_map("hidden")), start=1):
        assert step(page) == str(number)
        expect(page.locator(".ct-story article:visible h2")).to_have_text(told.name)
        probabilities.append(float(page.locator(".ct-story article:visible strong").text_content()))
        page.keyboard.press("ArrowRight")
    clean, corrupted, restored, _ = probabilities
    assert corrupted < 0.01 < 0.3 < restored < clean
    assert step(page) == "4", "the last step is the last"
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    assert step(page) == "1"


def test_buttons_move_it_and_say_where_it_is(visits):
    page = visits.open()
    page.locator(".ct-story [data-move='1']").click()
    page.get_by_role("button", name="3 One restored run").click()
    assert step(page) == "3"
    expect(page.locator(".ct-steps [aria-current]")).to_have_text("3 One restored run")
    page.locator(".ct-story [data-move='-1']").click()
    assert step(page) == "2"


def test_a_presenters_keys_move_it_when_it_has_the_focus(visits):
    page = visits.open()
    page.locator(".ct-story [data-move='1']").focus()
    page.keyboard.press("PageDown")
    page.keyboard.press("PageDown")
    assert step(page) == "3"
    page.keyboard.press("PageUp")
    assert step(page) == "2"


def test_arrow_keys_in_a_field_stay_there(visits):
    page = visits.open()
    page.locator("#ct-prompt textarea").focus()
    page.keyboard.press("ArrowRight")
    assert step(page) == "1"


def test_it_can_be_read_from_the_back_row(visits):
    page = visits.open(viewport={"width": 1280, "height": 720})
    box = page.locator(".ct-story").bounding_box()
    assert box["y"] + box["height"] <= 720, "all of it is on the first screen"
    for selector, least in ((".ct-words h2", 32), (".ct-words p", 22), (".ct-says strong", 40), (".ct-token", 22)):
        first = page.locator(f".ct-story {selector}").first
        size = first.evaluate("node => parseFloat(getComputedStyle(node).fontSize)")
        assert size >= least, selector


def test_the_pictures_show_what_the_words_say(visits):
    page = visits.open(reduced_motion="reduce")
    flow = stored_map("hidden")
    tokens, layers = flow.scores.shape
    assert page.locator(".ct-story .ct-cell").count() == tokens * layers
    noisy = page.locator(".ct-story .ct-cell.ct-noisy").count()
    assert noisy == (tokens - flow.subject_range[0]) * layers
    assert page.locator(".ct-story .ct-told").count() == 1
    page.get_by_role("button", name="4 The whole map").click()
    colors = page.locator(".ct-story .ct-cell").evaluate_all(
        "cells => cells.map(cell => getComputedStyle(cell).backgroundColor)"
    )
    lightness = [sum(int(part) for part in color[4:-1].split(",")) for color in colors]
    told = (flow.subject_range[1] - 1) * layers + int(flow.scores[flow.subject_range[1] - 1].argmax())
    assert lightness[told] < lightness[0] - 200


def test_it_leads_to_the_tool(visits):
    page = visits.open()
    page.get_by_role("button", name="Trace a prompt of your own").click()
    expect(page.locator("#ct-prompt textarea")).to_be_focused()
    expect(page.locator("#ct-tool")).to_be_in_viewport()


def test_a_link_to_a_result_closes_it(visits):
    page = visits.open("?prompt=The+Space+Needle+is+in&kind=hidden")
    assert page.locator(".ct-story").evaluate("story => story.open") is False
