"""The logit lens of a newly typed prompt, in the place of the map, in a headless Chromium with a tiny model."""

from __future__ import annotations

import threading

import pytest

from causal_tracer.web.page.prompt_lens import PromptLensEvents
from tests.support.tiny_models import OTHER_PROMPT, PROMPT
from tests.support.web_tiny import tiny_flow
from tests.web.browser.steps import cell_of, done, expect, expect_true, field, fill, open_tab, run, wait_in

pytestmark = pytest.mark.browser

MAP, NUMBERS = "#ct-map-hidden", "#ct-numbers-hidden"
# A test that fails must not hold up the ones after it for good.
HOLD_SECONDS = 120


def lens(page, tab="hidden"):
    return page.locator(f"#ct-prompt-lens-{tab} table")


def tokens(page, tab="hidden"):
    return page.locator(f"#ct-prompt-lens-{tab} tbody th")


def typed(visits, app):
    """A page whose prompt was typed, with its lens."""
    app.let_load()
    page = visits.open()
    fill(page, PROMPT)
    expect(tokens(page)).to_have_count(11)
    return page


def test_a_typed_prompt_shows_its_lens_in_the_place_of_a_map_that_is_of_another_prompt(visits, app):
    app.let_load()
    page = visits.open()
    expect(page.locator("#ct-model")).to_contain_text("Model ready")
    expect(page.locator(MAP)).to_be_visible()
    expect(lens(page)).to_have_count(0)
    field(page, "prompt").fill(PROMPT)
    expect(lens(page)).to_be_visible()
    expect(tokens(page).filter(has_text="Needle")).to_have_count(1)
    for covered in (MAP, NUMBERS, "#ct-details-hidden", "#ct-share-hidden", "#ct-status-hidden .ct-status"):
        expect(page.locator(covered)).not_to_be_visible()
    field(page, "prompt").fill(OTHER_PROMPT)
    expect(tokens(page).filter(has_text="Jobs")).to_have_count(1)


def test_run_puts_the_map_over_the_lens_and_it_stays(visits, app):
    width = f"document.querySelector('{MAP} .main-svg').getBoundingClientRect().width"
    before = visits.open().evaluate(width)
    page = typed(visits, app)
    done(page, "hidden")
    expect(lens(page)).to_have_count(0)
    expect(page.locator(MAP)).to_be_visible()
    expect_true(page, f"before => Math.abs({width} - before) < 2", before)
    expect(page.locator("#ct-details-hidden")).to_contain_text("tiny, float32")


def test_a_run_that_begins_while_the_lens_is_read_is_not_covered(visits, app):
    page = typed(visits, app)
    app.may_run.clear()
    field(page, "prompt").fill(OTHER_PROMPT)
    run(page, "hidden")
    expect(page.locator("#ct-status-hidden")).to_contain_text("Starting")
    expect(page.locator("#ct-status-hidden .ct-status")).to_be_visible()
    app.may_run.set()
    expect(page.locator("#ct-status-hidden")).to_contain_text("Done")
    expect(page.locator("#ct-details-hidden")).to_be_visible()
    expect(lens(page)).to_have_count(0)


def test_the_maps_own_prompt_brings_it_back_and_each_tab_has_its_own_lens(visits, app):
    page = typed(visits, app)
    before = page.locator(NUMBERS).text_content()
    open_tab(page, "MLP")
    expect(tokens(page, "mlp")).to_have_count(11)
    expect(page.locator("#ct-map-mlp")).not_to_be_visible()
    field(page, "prompt").fill("The Space Needle is located in the city of")
    for tab in ("mlp", "hidden"):
        expect(page.locator(f"#ct-map-{tab}")).to_be_visible()
        expect(lens(page, tab)).to_have_count(0)
        open_tab(page, "Hidden states")
    assert page.locator(NUMBERS).text_content() == before


def test_a_lens_that_is_placed_as_a_run_ends_does_not_cover_its_map(visits, app, monkeypatch):
    app.let_load()
    page = visits.open()
    placing, may_place, placed_again = (threading.Event() for _ in range(3))
    has_its_map = PromptLensEvents._has_its_map

    def slow(*asked):
        # The first answer is that of before the run, and comes after its map.
        answer = has_its_map(*asked)
        if placing.is_set():
            placed_again.set()
        placing.set()
        may_place.wait(HOLD_SECONDS)
        return answer

    monkeypatch.setattr(PromptLensEvents, "_has_its_map", slow)
    field(page, "prompt").fill(PROMPT)
    wait_in(page, placing)
    done(page, "hidden")
    may_place.set()
    wait_in(page, placed_again)
    expect(lens(page)).to_have_count(0)
    expect(page.locator(MAP)).to_be_visible()


def test_an_opened_result_is_not_covered_by_the_lens_that_was_being_read(visits, app, tmp_path, monkeypatch):
    path = tmp_path / "saved.json"
    tiny_flow().save(path)
    page = typed(visits, app)
    reading, may_read = threading.Event(), threading.Event()
    read = PromptLensEvents._read

    def slow(*asked):
        reading.set()
        may_read.wait(HOLD_SECONDS)
        yield from read(*asked)

    monkeypatch.setattr(PromptLensEvents, "_read", slow)
    field(page, "prompt").fill(OTHER_PROMPT)
    wait_in(page, reading)
    page.locator("input[data-testid$='upload-button']").first.set_input_files(path)
    expect(page.locator("#ct-status-hidden")).to_contain_text("Opened from a file")
    expect(lens(page)).to_have_count(0)
    may_read.set()
    # Its lens is read after that one.
    open_tab(page, "Lens")
    expect(cell_of(page, "lens", 0, 0)).to_be_visible()
    expect(lens(page)).to_have_count(0)
