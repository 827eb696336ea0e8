"""The tab Lens in a headless Chromium with a tiny model."""

from __future__ import annotations

import json
import re

import pytest

from causal_tracer import LogitLens
from tests.support.tiny_models import OTHER_PROMPT, PROMPT
from tests.web.browser.steps import (
    cell_of,
    choose,
    expect,
    expect_no_overflow,
    expect_true,
    field,
    fill,
    open_tab,
    start_held_run,
)

pytestmark = pytest.mark.browser

STATUS = "#ct-lens-status"


def tokens(page):
    return page.locator("#ct-lens-grid tbody th")


# What a click on a cell of a layer leads to: a message, the cell in detail, or a lens that is drawn anew.
LED_TO = """layer => {
  const cell = document.querySelector('#ct-lens-cell');
  if (cell.querySelector('[role=alert]')) return cell.innerText;
  const shown = cell.querySelector('h3')?.innerText.endsWith(`layer ${layer}`);
  return shown || !document.querySelector('table[data-lens=lens] [aria-selected=true]') ? 'not forgotten' : '';
}"""


def open_lens(page, app):
    """Open the tab with the tiny model's prompt, once it is read."""
    app.let_load()
    fill(page, PROMPT)
    open_tab(page, "Lens")
    expect(tokens(page)).to_have_count(11)
    expect(page.locator(STATUS)).to_contain_text("Clean run")
    return page


def test_the_lens_follows_the_prompt_while_its_tab_is_shown(visits, app):
    page = open_lens(visits.open(), app)
    expect(page.locator("#ct-lens-grid tbody tr").first.locator("td")).to_have_count(3)
    field(page, "prompt").fill(OTHER_PROMPT)
    expect(tokens(page).filter(has_text="Jobs")).to_have_count(1)
    read = page.locator(STATUS).inner_text()
    choose(page, "model-choice", "tiny-chat")
    expect(page.locator(STATUS)).not_to_have_text(read, use_inner_text=True)
    expect(page.locator(STATUS)).to_contain_text("Clean run")


def lens_readers(page) -> list[int]:
    """The numbers of the events that read lenses; last that of this tab, and that of lenses in the place of maps."""
    return page.evaluate(
        "window.gradio_config.dependencies.filter(each => /^read(_\\d+)?$/.test(each.api_name)).map(each => each.id)"
    )


def started_events(page) -> list[int]:
    """A list that receives the number of each event that the page starts from now on."""
    started: list[int] = []

    def note(request) -> None:
        if "/queue/join" in request.url:
            started.append(request.post_data_json["fn_index"])

    page.on("request", note)
    return started


def test_nothing_is_read_while_another_tab_is_shown(visits, app):
    page = open_lens(visits.open(), app)
    own, in_place = lens_readers(page)[-2:]
    started = started_events(page)
    open_tab(page, "MLP")
    field(page, "prompt").fill(OTHER_PROMPT)
    # In the map's place the lens follows; the tab's own lens must not.
    expect(page.locator("#ct-prompt-lens-mlp")).to_contain_text("Jobs")
    assert (own in started, in_place in started) == (False, True)
    open_tab(page, "Lens")
    expect(tokens(page).filter(has_text="Jobs")).to_have_count(1)
    assert own in started


def test_a_page_that_opens_reads_no_lens(visits, app):
    app.let_load()
    page = visits.open()
    readers, started = lens_readers(page), started_events(page)
    page.reload()
    # Both lenses would be asked for after the fields are inspected, and so before the next inspection is shown.
    expect(page.locator("#ct-chips [data-answer]").first).to_be_visible()
    field(page, "prompt").fill(f"{PROMPT} Apple")
    expect(page.locator("#ct-prompt-lens-hidden")).to_contain_text("Apple")
    assert [number for number in started if number in readers] == readers[-1:]


def test_the_old_lens_stays_while_a_trace_holds_the_model(visits, app):
    page = open_lens(visits.stay(), app)
    other = visits.open()
    fill(other, f"{PROMPT} Apple", "Space Needle")
    expect(other.locator("#ct-chips [data-token]")).to_have_count(12)
    start_held_run(other, app)
    # Its lens is not known yet.
    field(page, "prompt").fill(f"{PROMPT} river")
    page.locator("#ct-lens-read").click()
    expect(page.locator(STATUS)).to_contain_text("Waiting for another run on this model")
    expect(tokens(page)).to_have_count(11)
    app.may_run.set()
    expect(tokens(page)).to_have_count(12)
    expect(page.locator(STATUS)).to_contain_text("Clean run")


def test_a_clicked_cell_is_read_in_detail(visits, app):
    page = open_lens(visits.stay(), app)
    cell = cell_of(page, "lens", 5, 1)
    top = cell.inner_text()
    cell.click()
    details = page.locator("#ct-lens-cell")
    expect(details.locator("h3")).to_have_text("“Needle”, layer 1")
    expect(details.locator("li")).to_have_count(5)
    expect(details.locator("li bdi").first).to_have_text(top)
    for words in ("rank", "entropy"):
        expect(details).to_contain_text(words)
    expect(cell).to_have_attribute("aria-selected", "true")


def test_the_grid_is_for_the_keyboard_too(visits, app):
    page = open_lens(visits.open(), app)
    grid = page.get_by_role("grid", name=re.compile("Logit lens"))
    expect(grid.get_by_role("gridcell")).to_have_count(33)
    grid.locator("td[tabindex='0']").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp", "End", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    expect(cell_of(page, "lens", 1, 0)).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#ct-lens-cell h3")).to_contain_text("layer 1")
    # The focus stays where it was when the lens is drawn anew.
    page.locator("#ct-lens-read").evaluate("button => button.click()")
    expect(page.locator("#ct-lens-cell h3")).to_have_count(0)
    expect(cell_of(page, "lens", 1, 1)).to_be_focused()


def test_the_colour_can_be_the_answers_probability_or_the_entropy(visits, app):
    page = open_lens(visits.stay(), app)
    cell = cell_of(page, "lens", 10, 2)
    for label, name in (("answer's probability", "--a"), ("entropy", "--e"), ("top token's probability", "--t")):
        page.locator("#ct-shade-lens").get_by_label(label).check()
        expect_true(
            page,
            "([cell, name]) => { const style = getComputedStyle(cell); "
            "return style.getPropertyValue('--s') === style.getPropertyValue(name); }",
            [cell.element_handle(), name],
        )
        expect(page.locator("#ct-lens-grid .ct-lens-legend:visible")).to_have_count(1)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_colour_carries_its_text(visits, app, theme):
    page = open_lens(visits.open(f"?__theme={theme}"), app)
    worst = page.evaluate(
        """() => {
          const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
          const luminance = color => {
            canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
            const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(part => {
              const share = part / 255;
              return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const cell = document.querySelector('#ct-lens-grid td');
          return Math.min(...[0, 25, 50, 75, 100].map(share => {
            cell.style.setProperty('--t', `${share}%`);
            const style = getComputedStyle(cell);
            const [low, high] = [luminance(style.color), luminance(style.backgroundColor)].sort((a, b) => a - b);
            return (high + 0.05) / (low + 0.05);
          }));
        }"""
    )
    assert worst >= 4.5


def test_on_a_phone_the_grid_scrolls_in_its_place_and_keeps_its_tokens(visits, app):
    page = open_lens(visits.open(viewport={"width": 320, "height": 740}), app)
    # As wide as a lens of 48 layers.
    page.locator("#ct-lens-grid table").evaluate("table => table.style.setProperty('--layers', 48)")
    expect_no_overflow(page)
    before = tokens(page).first.bounding_box()["x"]
    page.locator("#ct-lens-grid .ct-lens-scroll").evaluate("box => { box.scrollLeft = 400; }")
    assert tokens(page).first.bounding_box()["x"] == pytest.approx(before, abs=1)


def test_the_lens_is_saved_as_json_and_csv(visits, app, tmp_path):
    page = open_lens(visits.stay(), app)
    for format in ("json", "csv"):
        with page.expect_download() as download:
            page.locator(f"#ct-{format}-lens").click()
        download.value.save_as(tmp_path / f"lens.{format}")
    lens = LogitLens.from_dict(json.loads((tmp_path / "lens.json").read_text(encoding="utf-8")))
    assert lens.prompt == PROMPT
    assert (tmp_path / "lens.csv").read_bytes().decode() == lens.to_csv()


def test_a_problem_stands_in_place_of_the_lens(visits, app):
    page = open_lens(visits.stay(), app)
    field(page, "prompt").fill("")
    expect(page.locator(f"{STATUS} [role=alert]")).to_contain_text("prompt is empty")
    expect(page.locator("#ct-lens-grid table")).to_have_count(0)
    markup = "<img src=x onerror=alert(1)> is"
    field(page, "prompt").fill(markup)
    expect(page.locator(STATUS)).to_contain_text("Clean run")
    expect(page.locator("#ct-lens-grid img")).to_have_count(0)


def test_a_page_that_the_app_has_forgotten_says_so(visits, app):
    page = open_lens(visits.open(), app)
    said = ""
    for layer in range(3):
        # The run that read the lens may end only now, and another look at the fields may read it anew: both bring back
        # what was forgotten.
        app.forget()
        cell_of(page, "lens", 1, layer).click()
        said = page.wait_for_function(LED_TO, arg=layer, timeout=120_000).json_value()
        if said != "not forgotten":
            break
    assert "Press Read again" in said
