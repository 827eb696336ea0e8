"""The page for people who cannot see it well or use no mouse: axe's rules in each tab, and the keyboard alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from causal_tracer.web.page.explore import MAP_TABS, TAB_TITLES
from tests.support.tiny_models import PROMPT
from tests.web.browser.conftest import missing
from tests.web.browser.steps import done, expect, expect_true, field, fill, open_tab, run

pytestmark = pytest.mark.browser

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
# The page as it comes to rest: what is still being drawn or faded in breaks rules that its end does not.
VIOLATIONS = """async () => {
  let found = [];
  for (let look = 0; look < 3; look++) {
    found = (await axe.run(document, { resultTypes: ['violations'] })).violations.flatMap(
      rule => rule.nodes.map(node => `${rule.id}: ${node.target} ${node.failureSummary}`));
    if (!found.length) break;
    await new Promise(then => setTimeout(then, 250));
  }
  return found;
}"""


STILL = "!document.getAnimations().some(its => its.playState === 'running' && its.effect.getTiming().iterations === 1)"


@pytest.fixture(scope="session")
def axe() -> str:
    if not AXE.exists():
        missing("axe-core is not installed: npm install --no-package-lock --prefix tests/web/browser")
    return AXE.read_text(encoding="utf-8")


def expect_no_violation(page, where: str) -> None:
    expect_true(page, STILL)
    assert {where: page.evaluate(VIOLATIONS)} == {where: []}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_tab_breaks_a_rule(visits, app, axe, theme):
    app.let_load()
    page = visits.open(f"?__theme={theme}")
    expect(page.locator("#ct-chips [data-answer]").first).to_be_enabled()
    page.evaluate(axe)
    expect_no_violation(page, "the story")
    for name in MAP_TABS[1:]:
        open_tab(page, TAB_TITLES[name])
        expect(page.locator(f"#ct-run-{name}")).to_be_visible()
        expect_no_violation(page, name)
    open_tab(page, "Studies")
    expect(page.locator("#ct-study-plot .main-svg").first).to_be_visible()
    expect(page.locator("#ct-study-findings table")).to_be_visible()
    expect_no_violation(page, "Studies")
    fill(page, PROMPT)
    open_tab(page, "Lens")
    # The lens of this prompt: one that is still to come would close the opened cell.
    expect(page.locator("#ct-lens-grid tbody th").filter(has_text="Look")).to_have_count(1)
    expect(page.locator("#ct-lens-status")).to_contain_text("Clean run")
    page.locator("#ct-lens-grid td").first.click()
    expect(page.locator("#ct-lens-cell h3")).to_be_visible()
    expect_no_violation(page, "Lens")
    open_tab(page, "Patch")
    page.locator("#ct-run-patch").click()
    expect(page.locator("#ct-patch-lenses table")).to_have_count(2)
    expect_no_violation(page, "Patch")
    # A typed prompt, a refused run, then a result with its card, an opened cell, all fields and files.
    open_tab(page, "Hidden states")
    expect(page.locator("#ct-prompt-lens-hidden table")).to_be_visible()
    expect_no_violation(page, "typed prompt")
    field(page, "subject").fill("Louvre")
    run(page, "hidden")
    expect(page.locator("#ct-status-hidden")).to_contain_text("Nothing was computed")
    expect(page.locator("#ct-run-hidden")).to_be_enabled()
    expect_no_violation(page, "refused run")
    field(page, "subject").fill("")
    done(page, "hidden")
    for part in ("#ct-more", "#ct-share-hidden", "#ct-python"):
        page.locator(f"{part} button").first.click()
    page.locator("#ct-table-hidden-hidden summary").click()
    page.locator("#ct-table-hidden-hidden td button").first.click()
    expect(page.locator("#ct-cell-hidden .ct-detail h3")).to_be_visible()
    expect(page.locator("#ct-history [data-open]")).to_have_count(1)
    expect_no_violation(page, "result")


def test_no_rule_is_broken_on_a_phone(visits, axe):
    page = visits.open(viewport={"width": 390, "height": 844})
    page.evaluate(axe)
    expect_no_violation(page, "phone")


def test_all_that_is_shown_lies_on_the_page(visits):
    """The page does not scroll sideways, so anything wider than its place would be cut off."""
    page = visits.open()
    for name in ("hidden", "all", "head", "knockout"):
        open_tab(page, TAB_TITLES[name])
        expect(page.locator(f"#ct-cell-{name}")).to_be_visible()
        expect_true(
            page,
            "name => [...document.querySelectorAll(`#ct-cell-${name}, [id^=ct-map-${name}] .main-svg`)].every("
            "part => part.getBoundingClientRect().right <= innerWidth)",
            name,
        )


def tab_to(page, selector: str) -> None:
    """Press the Tab key until the focus is there."""
    for _ in range(150):
        page.keyboard.press("Tab")
        if page.evaluate("name => !!document.activeElement.closest(name)", selector):
            return
    raise AssertionError(f"The Tab key does not reach {selector}.")


def test_the_keyboard_alone_leads_from_the_prompt_to_a_link(visits, app):
    app.let_load()
    page = visits.open()
    expect(page.locator("#ct-model")).to_contain_text("Model ready")
    tab_to(page, "#ct-prompt")
    page.keyboard.press("Control+A")
    page.keyboard.type(PROMPT)
    # The tokens of the subject, one by one.
    expect(page.locator("#ct-chips")).to_contain_text("Look")
    tab_to(page, "#ct-chips [data-token]")
    while "Needle" not in page.evaluate("document.activeElement.innerText"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(field(page, "subject")).to_have_value("Needle")
    tab_to(page, "#ct-run-hidden")
    page.keyboard.press("Enter")
    expect(page.locator("#ct-status-hidden")).to_contain_text("Done")
    tab_to(page, "#ct-table-hidden-hidden summary")
    page.keyboard.press("Enter")
    tab_to(page, "#ct-table-hidden-hidden td button")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#ct-cell-hidden .ct-detail h3")).to_contain_text("layer 1")
    tab_to(page, "#ct-share-hidden button")
    page.keyboard.press("Enter")
    tab_to(page, "#ct-link-hidden textarea, #ct-link-hidden button")
    link = page.locator("#ct-link-hidden textarea").input_value()
    other = visits.open(link[link.index("?") :])
    expect(field(other, "prompt")).to_have_value(PROMPT)
    expect(field(other, "subject")).to_have_value("Needle")
