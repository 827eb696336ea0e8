"""The story in a headless Chromium: four steps on a stored result, by keys and buttons, with no model."""

from __future__ import annotations

import pytest

from causal_tracer.web.page.story import story_steps
from causal_tracer.web.service.stored import stored_map
from tests.web.browser.steps import expect, expect_true

pytestmark = pytest.mark.browser


def expect_step(page, number: int) -> None:
    expect(page.locator(".ct-story")).to_have_attribute("data-step", str(number))


def first_step(visits):
    """The page that the tests share, with the story at its first step."""
    page = visits.stay()
    page.locator(".ct-steps button").first.click()
    expect_step(page, 1)
    return page


def test_arrow_keys_tell_the_story_while_no_model_is_loaded(visits):
    page = visits.open()
    expect(page.locator("#ct-model")).to_contain_text("Loading")
    probabilities = []
    for number, told in enumerate(story_steps(stored_map("hidden")), start=1):
        expect_step(page, number)
        expect(page.locator(".ct-story article:visible h2")).to_have_text(told.name)
        probabilities.append(float(page.locator(".ct-story article:visible strong").text_content()))
        page.keyboard.press("ArrowRight")
    clean, corrupted, restored, _ = probabilities
    assert corrupted < 0.01 < 0.3 < restored < clean
    expect_step(page, 4)
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    expect_step(page, 1)


def test_buttons_move_it_and_say_where_it_is(visits):
    page = first_step(visits)
    page.locator(".ct-story [data-move='1']").click()
    page.get_by_role("button", name="3 One restored run").click()
    expect_step(page, 3)
    expect(page.locator(".ct-steps [aria-current]")).to_have_text("3 One restored run")
    page.locator(".ct-story [data-move='-1']").click()
    expect_step(page, 2)


def test_a_presenters_keys_move_it_when_it_has_the_focus(visits):
    page = first_step(visits)
    page.locator(".ct-story [data-move='1']").focus()
    page.keyboard.press("PageDown")
    page.keyboard.press("PageDown")
    expect_step(page, 3)
    page.keyboard.press("PageUp")
    expect_step(page, 2)


def test_arrow_keys_in_a_field_stay_there(visits):
    page = first_step(visits)
    page.locator("#ct-prompt textarea").focus()
    page.keyboard.press("ArrowRight")
    expect_step(page, 1)


def test_it_can_be_read_from_the_back_row(visits):
    page = visits.open(viewport={"width": 1280, "height": 720})
    # All of it is on the first screen.
    expect_true(page, "document.querySelector('.ct-story').getBoundingClientRect().bottom + scrollY <= 720")
    size = "([selector, least]) => parseFloat(getComputedStyle(document.querySelector(selector)).fontSize) >= least"
    for selector, least in ((".ct-words h2", 32), (".ct-words p", 22), (".ct-says strong", 40), (".ct-token", 22)):
        expect_true(page, size, [f".ct-story {selector}", least])


def test_the_pictures_show_what_the_words_say(visits):
    page = visits.open(reduced_motion="reduce")
    flow = stored_map("hidden")
    tokens, layers = flow.scores.shape
    expect(page.locator(".ct-story .ct-cell")).to_have_count(tokens * layers)
    expect(page.locator(".ct-story .ct-cell.ct-noisy")).to_have_count((tokens - flow.subject_range[0]) * layers)
    expect(page.locator(".ct-story .ct-told")).to_have_count(1)
    page.get_by_role("button", name="4 The whole map").click()
    told = (flow.subject_range[1] - 1) * layers + int(flow.scores[flow.subject_range[1] - 1].argmax())
    expect_true(
        page,
        """told => {
          const cells = document.querySelectorAll('.ct-story .ct-cell');
          const light = cell => getComputedStyle(cell).backgroundColor.match(/\\d+/g).slice(0, 3)
            .reduce((sum, part) => sum + Number(part), 0);
          return light(cells[told]) < light(cells[0]) - 200;
        }""",
        told,
    )


def test_it_leads_to_the_tool(visits):
    page = first_step(visits)
    page.get_by_role("button", name="Trace a prompt of your own").click()
    expect(page.locator("#ct-prompt textarea")).to_be_focused()
    expect(page.locator("#ct-tool")).to_be_in_viewport()


def test_a_link_to_a_result_closes_it(visits):
    page = visits.open("?prompt=The+Space+Needle+is+in&kind=hidden")
    expect_true(page, "document.querySelector('.ct-story').open === false")
