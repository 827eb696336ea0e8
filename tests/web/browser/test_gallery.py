"""The gallery in a headless Chromium, before any model is loaded."""

from __future__ import annotations

import pytest

from causal_tracer.web.service.gallery import GALLERY, gallery_entry
from tests.web.browser.steps import expect, expect_no_overflow, expect_true, field

pytestmark = pytest.mark.browser

# The contrast of every text in the open dialog with the ground that it stands on.
WORST_CONTRAST = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = node => {
    for (let at = node; at; at = at.parentElement) {
      const color = rgb(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] > 0.9) return color;
    }
    return [255, 255, 255];
  };
  return Math.min(...[...document.querySelectorAll('.ct-gallery :is(h2, p, b, span, [data-close])')].map(node => {
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }));
}"""


def test_a_card_chosen_by_keyboard_shows_its_map_its_sentence_and_its_fields(visits):
    page = visits.open()
    button = page.get_by_role("button", name="Gallery", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("[data-entry=classic]")).to_be_focused()
    expect(page.locator(".ct-gallery [data-entry]:visible")).to_have_count(len(GALLERY))
    for _ in range(GALLERY.index(gallery_entry("heads"))):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator(".ct-gallery")).to_be_hidden()
    expect(page.get_by_role("tab", name="Heads", exact=True)).to_have_attribute("aria-selected", "true")
    expect(page.locator("#ct-status-head")).to_contain_text("A single head, head 1 of layer 12")
    expect(page.locator("#ct-details-head")).to_contain_text("a stored result")
    expect(page.locator("#ct-numbers-head")).to_contain_text("Mary")
    expect(field(page, "prompt")).to_have_value(gallery_entry("heads").fields["prompt"])
    expect(field(page, "subject")).to_have_value("Mary")
    # It came without the model, which is still not there.
    expect(page.locator("#ct-model")).to_contain_text("Loading")
    # Escape leaves the gallery, and the fields as they are.
    button.click()
    page.keyboard.press("Escape")
    expect(page.locator(".ct-gallery")).to_be_hidden()
    expect(button).to_be_focused()
    expect(field(page, "subject")).to_have_value("Mary")


def test_a_subject_and_an_answer_come_with_their_prompt_one_entry_after_another(visits):
    page = visits.open()
    for name in ("unread", "arabic", "pair"):
        entry = gallery_entry(name)
        page.get_by_role("button", name="Gallery", exact=True).click()
        page.locator(f"[data-entry={name}]").click()
        expect(page.locator("#ct-status-hidden")).to_contain_text(entry.sentence.split("“")[0])
        for each in ("prompt", "subject", "answer"):
            expect(field(page, each)).to_have_value(entry.fields.get(each, ""))
    expect(page.locator("#ct-second-prompt textarea")).to_have_value(entry.fields["second_prompt"])
    expect(page.locator("#ct-details-hidden")).to_contain_text("Second prompt The Eiffel Tower")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_on_a_phone_the_cards_fit_and_can_be_read(visits, theme):
    page = visits.open(viewport={"width": 390, "height": 844}, color_scheme=theme)
    page.get_by_role("button", name="Gallery", exact=True).click()
    expect(page.locator("[data-entry=classic]")).to_be_visible()
    assert page.evaluate(WORST_CONTRAST) >= 4.5
    expect_true(page, "(box => box.scrollWidth <= box.clientWidth)(document.querySelector('.ct-gallery'))")
    page.locator("[data-entry=blocked]").click()
    # The map is brought into sight.
    expect(page.locator("#ct-status-knockout")).to_contain_text("around layer 10")
    expect(page.locator("#ct-status-knockout")).to_be_in_viewport()
    expect_no_overflow(page)
