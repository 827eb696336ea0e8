"""The page as a workbench in a headless Chromium: one screen, and the whole experiment in fields."""

from __future__ import annotations

import pytest

from causal_tracer.request.sites import SITES
from tests.support.web_tiny import PROMPT, SUBJECT
from tests.web.browser.steps import (
    choose,
    click_cell,
    done,
    expect,
    expect_no_overflow,
    expect_true,
    field,
    fill,
    open_more,
    run,
)

pytestmark = pytest.mark.browser

TITLES = {"head": "Heads", "knockout": "Knockout", "span_knockout": "Spans"}
ON_THE_SCREEN = """names => names.every(name => {
  const box = document.querySelector(name)?.getBoundingClientRect();
  return box && box.height > 0 && box.top >= 0 && box.bottom <= innerHeight && box.right <= innerWidth;
})"""
IN_ORDER = """names => {
  const tops = names.map(name => document.querySelector(name).getBoundingClientRect().top);
  return tops.every((top, place) => place === 0 || top > tops[place - 1]);
}"""


def second_visit(visits):
    """The storage of a browser that has shown the story before."""
    seen = {"origin": visits.url.removesuffix("/"), "localStorage": [{"name": "causal-tracer-story-seen", "value": ""}]}
    return {"storage_state": {"cookies": [], "origins": [seen]}}


def test_the_story_greets_a_first_visit_only_and_stays_one_click_away(visits):
    page = visits.open()
    expect_true(page, "document.querySelector('.ct-story').open")
    page.reload()
    page.wait_for_selector("#ct-map-hidden .js-plotly-plot .main-svg")
    expect_true(page, "document.querySelector('.ct-story').open === false")
    page.get_by_text("How it works").click()
    expect(page.locator(".ct-story article:visible h2")).to_be_visible()


def test_one_screen_holds_the_setup_and_the_whole_map(visits, app):
    app.let_load()
    page = visits.open(**second_visit(visits))
    expect(page.locator("#ct-chips [data-answer]").first).to_be_visible()
    needed = ["#ct-prompt", "#ct-chips", "#ct-subject", "#ct-answer", "#ct-corruption", "#ct-metric", "#ct-patch"]
    results = ["#ct-run-hidden", "#ct-numbers-hidden", "#ct-map-hidden .main-svg", "#ct-cell-hidden"]
    expect_true(page, ON_THE_SCREEN, [*needed, *results])
    beside = "document.querySelector('#ct-setup').getBoundingClientRect().right"
    expect_true(page, f"{beside} <= document.querySelector('#ct-results').getBoundingClientRect().left")
    expect_no_overflow(page)
    page.evaluate("scrollTo(0, 200)")
    # The setup stays in sight.
    expect_true(page, "scrollY > 100 && document.querySelector('#ct-prompt').getBoundingClientRect().top >= 0")


def test_on_a_phone_setup_run_and_map_follow_each_other(visits):
    page = visits.open(**second_visit(visits), viewport={"width": 390, "height": 844})
    expect_true(page, IN_ORDER, ["#ct-prompt", "#ct-metric", "#ct-run-hidden", "#ct-map-hidden", "#ct-examples"])
    expect_no_overflow(page)


@pytest.mark.parametrize("kind", TITLES)
def test_heads_and_knockouts_have_a_stored_map_a_run_and_cells(visits, app, kind):
    app.let_load()
    page = visits.stay(**second_visit(visits))
    page.get_by_role("tab", name=TITLES[kind], exact=True).click()
    expect(page.locator(f"#ct-details-{kind}")).to_contain_text("a stored result")
    expect(page.locator(f"#ct-numbers-{kind}")).to_contain_text("Seattle")
    fill(page, PROMPT, SUBJECT)
    done(page, kind)
    expect(page.locator(f"#ct-details-{kind}")).to_contain_text("tiny, float32")
    rows = {"head": 4, "span_knockout": 3}.get(kind, 11)
    click_cell(page, f"ct-map-{kind}", 1, 1, rows, 4)
    expect(page.locator(f"#ct-cell-{kind} .ct-detail h3")).to_contain_text("layer 1")
    if SITES[kind].blocks:
        expect(page.locator(f"#ct-details-{kind}")).to_contain_text("Blocking attention")


def test_another_subject_takes_the_place_of_noise_and_nothing_is_lost(visits, app):
    app.let_load()
    page = visits.open(**second_visit(visits))
    fill(page, PROMPT, SUBJECT)
    expect(page.locator("#ct-second-subject")).to_have_count(0)
    choose(page, "corruption", "another subject")
    field(page, "second-subject").fill("Eiffel Tower")
    choose(page, "metric", "logit")
    done(page, "hidden")
    details = page.locator("#ct-details-hidden")
    expect(details).to_contain_text(f"Second prompt {PROMPT.replace(SUBJECT, 'Eiffel Tower')}")
    expect(details).to_contain_text("logit of")
    # Back to noise: the other subject is left out, and still there when it is chosen again.
    choose(page, "corruption", "Gaussian noise, added")
    done(page, "hidden")
    expect(details).to_contain_text("10 noise samples")
    expect(details).not_to_contain_text("Second prompt")
    choose(page, "corruption", "another subject")
    expect(field(page, "second-subject")).to_have_value("Eiffel Tower")


def test_activations_set_to_zero_are_a_map_of_the_clean_run(visits, app):
    app.let_load()
    page = visits.open(**second_visit(visits))
    fill(page, PROMPT, SUBJECT)
    choose(page, "corruption", "another subject")
    field(page, "second-subject").fill("Eiffel Tower")
    choose(page, "patch", "set to zero")
    # Nothing is corrupted there, so there is nothing to choose.
    for name in ("corruption", "second-subject"):
        expect(page.locator(f"#ct-{name}")).to_have_count(0)
    done(page, "hidden")
    expect(page.locator("#ct-numbers-hidden")).not_to_contain_text("Corrupted run")
    expect(page.locator("#ct-details-hidden")).to_contain_text("zero")


def test_a_measure_with_another_answer_asks_for_it(visits, app):
    app.let_load()
    page = visits.open(**second_visit(visits))
    fill(page, PROMPT, SUBJECT)
    choose(page, "metric", "logit difference")
    expect(page.locator("#ct-foil")).to_be_visible()
    run(page, "hidden")
    expect(page.locator("#ct-status-hidden")).to_contain_text("foil")
    field(page, "foil").fill(" Rome")
    done(page, "hidden")
    expect(page.locator("#ct-numbers-hidden")).to_contain_text("logit of")


def test_a_token_is_for_heads_and_no_trouble_to_other_tabs(visits, app):
    app.let_load()
    page = visits.open(**second_visit(visits))
    fill(page, PROMPT, SUBJECT)
    open_more(page)
    field(page, "token").fill("2")
    done(page, "hidden")
    page.get_by_role("tab", name="Heads", exact=True).click()
    done(page, "head")
    token = page.locator("#ct-chips [data-token='2']").inner_text()
    expect(page.locator("#ct-details-head")).to_contain_text(f"heads at '{token}'")
