"""The tab Patch in a headless Chromium with a tiny model."""

from __future__ import annotations

import json
import re

import pytest

from causal_tracer import PatchedRun
from tests.support.tiny_models import OTHER_PROMPT, PROMPT
from tests.web.browser.steps import cell_of, expect, expect_no_overflow, field, fill, open_tab

pytestmark = pytest.mark.browser

STATUS, PAIRS, RUN = "#ct-patch-status", "#ct-patch-pairs [data-pair]", "#ct-patch-run table.ct-lens"


def open_both(page, app):
    """Open the tab with both lenses read and no pairs."""
    app.let_load()
    fill(page, PROMPT)
    open_tab(page, "Patch")
    field(page, "patch-base").fill(OTHER_PROMPT)
    page.locator("#ct-patch-site").get_by_label("Hidden states").check()
    lenses = page.locator("#ct-patch-lenses table")
    if lenses.count() == 0:
        page.locator("#ct-run-patch").click()
        expect(page.locator(STATUS)).to_contain_text("Both prompts are read")
    expect(lenses).to_have_count(2)
    clear = page.get_by_role("button", name="Clear", exact=True)
    if clear.is_visible():
        clear.click()
    expect(page.locator(PAIRS)).to_have_count(0)
    expect(page.locator(RUN)).to_have_count(0)
    return page


def patched(page, pairs):
    """Wait for the run of so many pairs."""
    words = "1 pair of" if pairs == 1 else f"{pairs} pairs of"
    expect(page.locator(STATUS)).to_contain_text(f"Done: patched run, {words}")
    expect(page.locator(PAIRS)).to_have_count(pairs)


def test_both_prompts_are_read(visits, app):
    page = open_both(visits.stay(), app)
    for name, prompt, token in (("source", PROMPT, "Needle"), ("base", OTHER_PROMPT, "Jobs")):
        grid = page.locator(f"table[data-lens={name}]")
        expect(grid.locator("tbody th").filter(has_text=token)).to_have_count(1)
        expect(
            page.get_by_role("grid", name=re.compile(f"^{name}.*{re.escape(prompt)}", re.IGNORECASE))
        ).to_be_visible()


def test_a_cell_is_dragged_onto_another(visits, app):
    page = open_both(visits.stay(), app)
    # Both ends in view: nothing scrolls while the mouse is down.
    cell_of(page, "base", 7, 0).scroll_into_view_if_needed()
    cell_of(page, "source", 5, 1).drag_to(cell_of(page, "base", 7, 0))
    patched(page, 1)
    expect(page.locator(PAIRS)).to_contain_text("“Needle” layer 1 → “Jobs” layer 0")
    for name, row, column in (("source", 5, 1), ("base", 7, 0), ("patched", 7, 0)):
        expect(cell_of(page, name, row, column)).to_have_class(re.compile("ct-paired"))
    # The cone of hidden states: the cell itself, and later layers from its token on.
    expect(page.locator(f"{RUN} .ct-cone")).to_have_count(1 + 2 * (len(_tokens(page, "base")) - 7))
    expect(page.locator("#ct-patch-answers tbody th")).to_have_text(["source", "base", "patched"])
    expect(page.locator("#ct-patch-answers")).to_contain_text("The patched run says")


def test_two_clicks_and_two_keys_make_pairs_too_and_pairs_can_be_removed(visits, app):
    page = open_both(visits.stay(), app)
    hint = page.locator("#ct-patch-lenses [data-hint]")
    # In any order.
    cell_of(page, "base", 6, 1).click()
    expect(hint).to_contain_text("Base: “Steve”, layer 1. Now choose")
    cell_of(page, "source", 5, 0).click()
    patched(page, 1)
    expect(hint).to_contain_text("Drag a cell")
    page.locator("table[data-lens=source] td[tabindex='0']").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(hint).to_contain_text("Source: “")
    page.keyboard.press("Escape")
    expect(hint).to_contain_text("Drag a cell")
    page.keyboard.press("Enter")
    page.locator("table[data-lens=base] td[tabindex='0']").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    patched(page, 2)
    page.get_by_role("button", name=re.compile("^Remove .*Steve")).click()
    patched(page, 1)
    expect(page.locator("table[data-lens=base] .ct-paired")).to_have_count(1)
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.locator(PAIRS)).to_have_count(0)
    expect(page.locator(RUN)).to_have_count(0)
    expect(page.locator(".ct-paired")).to_have_count(0)
    expect(page.locator(STATUS)).to_contain_text("Choose pairs")


def test_another_site_runs_the_same_pairs(visits, app):
    page = open_both(visits.stay(), app)
    cell_of(page, "source", 5, 1).click()
    cell_of(page, "base", 7, 1).click()
    patched(page, 1)
    page.locator("#ct-patch-site").get_by_label("MLP").check()
    expect(page.locator(STATUS)).to_contain_text("1 pair of MLP outputs")
    page.locator("#ct-share-patch button").first.click()
    expect(page.locator("#ct-patch-python")).to_contain_text("[((5, 1), (7, 1))]")
    expect(page.locator("#ct-patch-command")).to_contain_text("causal-tracer patch --pair 5,1:7,1 --kind mlp")
    with page.expect_download() as download:
        page.locator("#ct-json-patch").click()
    run = PatchedRun.from_dict(json.loads(download.value.path().read_text(encoding="utf-8")))
    assert (run.source_prompt, run.base_prompt, run.site) == (PROMPT, OTHER_PROMPT, "mlp")
    assert run.pairs == (((5, 1), (7, 1)),)


def test_a_cell_of_the_patched_run_is_compared_with_the_base(visits, app):
    page = open_both(visits.stay(), app)
    cell_of(page, "source", 5, 1).click()
    cell_of(page, "base", 7, 1).click()
    patched(page, 1)
    cell_of(page, "patched", 7, 2).click()
    expect(page.locator("#ct-patch-cell h4")).to_have_text(["Patched run", "Base run"])
    expect(page.locator("#ct-patch-cell h3")).to_have_text("“Jobs”, layer 2")


def test_a_run_has_a_card_that_grows_with_its_pairs_and_brings_it_back(visits, app):
    page = open_both(visits.stay(), app)
    page.locator("#ct-patch-site").get_by_label("MLP").check()
    cell_of(page, "source", 5, 1).click()
    cell_of(page, "base", 7, 1).click()
    patched(page, 1)
    cards = page.locator("#ct-history [data-card]").filter(has_text="Patch:")
    expect(cards.first.locator("[aria-current]")).to_have_count(1)
    before = cards.count()
    cell_of(page, "source", 4, 0).click()
    cell_of(page, "base", 6, 0).click()
    patched(page, 2)
    expect(cards.first).to_contain_text("Patch: 2 pairs")
    assert cards.count() == before
    shown = page.locator("#ct-patch-answers").inner_text()
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.locator(RUN)).to_have_count(0)
    page.locator("#ct-patch-site").get_by_label("Hidden states").check()
    fill(page, OTHER_PROMPT)
    field(page, "patch-base").fill(PROMPT)
    open_tab(page, "Hidden states")
    cards.first.locator("[data-open]").click()
    patched(page, 2)
    expect(field(page, "patch-base")).to_have_value(OTHER_PROMPT)
    expect(field(page, "prompt")).to_have_value(PROMPT)
    expect(page.locator("#ct-patch-site").get_by_label("MLP")).to_be_checked()
    expect(page.locator("#ct-patch-answers")).to_have_text(shown, use_inner_text=True)
    # The pairs belong to that card: a press on the button begins anew.
    page.locator("#ct-run-patch").click()
    expect(page.locator(PAIRS)).to_have_count(0)
    expect(page.locator(STATUS)).to_contain_text("Choose pairs")


def test_a_problem_stands_in_place(visits, app):
    page = open_both(visits.stay(), app)
    field(page, "patch-base").fill("")
    page.locator("#ct-run-patch").click()
    expect(page.locator(f"{STATUS} [role=alert]")).to_contain_text("prompt is empty")
    expect(page.locator("#ct-patch-lenses table")).to_have_count(0)


def test_a_page_that_the_app_has_forgotten_says_so(visits, app):
    page = open_both(visits.stay(), app)
    app.forget()
    cell_of(page, "source", 5, 1).click()
    cell_of(page, "base", 7, 1).click()
    expect(page.locator(STATUS)).to_contain_text("Press Read both again")


def test_on_a_phone_the_lenses_stand_one_above_the_other(visits, app):
    page = open_both(visits.open(viewport={"width": 390, "height": 844}, has_touch=True), app)
    source, base = (page.locator(f"table[data-lens={name}]").bounding_box() for name in ("source", "base"))
    assert base["y"] > source["y"] + source["height"]
    cell_of(page, "source", 5, 1).tap()
    cell_of(page, "base", 7, 1).tap()
    patched(page, 1)
    page.locator("#ct-share-patch button").first.click()
    expect(page.locator("#ct-patch-command")).to_contain_text("causal-tracer patch")
    expect_no_overflow(page)


def _tokens(page, name):
    return page.locator(f"table[data-lens={name}] tbody th").all()
