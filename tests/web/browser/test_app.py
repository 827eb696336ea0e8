"""The app in a headless Chromium, with a tiny model. The tests of this file run in their order: the first ones need
the model to be still loading."""

from __future__ import annotations

import re

import pytest

from tests.support.tiny_models import PROMPT, SUBJECT
from tests.web.browser.steps import (
    expect,
    expect_marked_rows,
    expect_no_overflow,
    expect_true,
    field,
    fill,
    open_more,
    run,
    start_held_run,
)

pytestmark = pytest.mark.browser

TABS = [("hidden", "Hidden states"), ("mlp", "MLP"), ("attention", "Attention")]
BAD_SETTINGS = [("samples", "0", "samples=0"), ("noise", "-1", "noise=-1"), ("noise", "loud", "must be a number")]


def test_stored_maps_before_the_model_is_there(visits, app):
    page = visits.open()
    expect(page.locator("#ct-model")).to_contain_text("Loading tiny (converting the weights, 40%)")
    for words in ("Seattle", "0.472"):
        expect(page.locator("#ct-numbers-hidden")).to_contain_text(words)
    for words in ("a stored result", "Gemma 3 270M (Q4_K_M, dequantised)"):
        expect(page.locator("#ct-details-hidden")).to_contain_text(words)
    for kind, title in TABS:
        page.get_by_role("tab", name=title).click()
        expect(page.locator(f"#ct-map-{kind} .js-plotly-plot .heatmaplayer image")).to_be_visible()
    # Run now, and it starts when the model is there.
    page.get_by_role("tab", name="Hidden states").click()
    fill(page, PROMPT, SUBJECT, model="Loading tiny")
    run(page, "hidden")
    expect(page.locator("#ct-status-hidden")).to_contain_text("Waiting for tiny (converting the weights, 40%)")
    app.let_load()
    expect(page.locator("#ct-status-hidden")).to_contain_text("Done")
    expect(page.locator("#ct-model")).to_contain_text("Model ready: Tiny GPT-2, under the MIT.")
    open_more(page)
    expect(page.locator("#ct-noise-level")).to_contain_text("Automatic noise level of this model: 0.5")


@pytest.mark.parametrize(("kind", "title"), TABS)
def test_a_run_in_each_tab(visits, app, kind, title):
    app.let_load()
    page = visits.stay()
    page.get_by_role("tab", name=title).click()
    fill(page, PROMPT, SUBJECT)
    open_more(page)
    run(page, kind)
    expect(page.locator(f"#ct-status-{kind}")).to_contain_text("Done")
    expect(page.locator(f"#ct-details-{kind}")).to_contain_text("tiny, float32")
    # An empty noise field is automatic, not 0.
    expect(page.locator(f"#ct-details-{kind}")).to_contain_text("10 noise samples, seed 1 · noise 0.5")
    expect(page.locator(f"#ct-map-{kind} .ytick text").first).to_have_text("<bos>")
    expect_marked_rows(page, f"ct-map-{kind}", ["Space*", "Needle*"])
    expect(page.locator(f"#ct-run-{kind}")).to_be_enabled()
    expect(page.locator(f"#ct-stop-{kind}")).to_be_disabled()


def test_markup_in_a_subject_is_text_wherever_it_is_refused(visits, app):
    app.let_load()
    page = visits.open()
    fill(page, PROMPT, "Eiffel <img src=x onerror=alert(1)> Tower")
    words = "'Eiffel <img src=x onerror=alert(1)> Tower' is not in the prompt"
    expect(page.locator("#ct-subject-note [role=alert]")).to_contain_text(words)
    run(page, "hidden")
    expect(page.locator("#ct-status-hidden")).to_contain_text(words)
    expect(page.locator("#ct-subject-note img, #ct-status-hidden img")).to_have_count(0)


def test_a_bad_setting_is_said_below_the_fields_and_beside_run(visits, app):
    app.let_load()
    page = visits.open()
    fill(page, PROMPT, SUBJECT)
    open_more(page)
    status = page.locator("#ct-status-hidden")
    for name, value, words in BAD_SETTINGS:
        box = field(page, name)
        usual = box.input_value()
        for _ in range(3):
            # Gradio fills the fields anew a moment after the accordion opens: what is typed in that moment is lost.
            box.fill(value)
            box.press("Tab")
            run(page, "hidden")
            ended = status.get_by_text(re.compile("Done: |Nothing was computed"))
            expect(ended).to_be_visible()
            if "Done: " not in ended.inner_text():
                break
        expect(status).to_contain_text(words)
        expect(page.locator("#ct-message [role=alert]")).to_contain_text(words)
        box.fill(usual)


def test_markup_in_a_prompt_is_text(visits, app):
    app.let_load()
    page = visits.stay()
    prompt = "The Space Needle <b>is</b> in <img src=x onerror=alert(1)> the city of"
    page.get_by_role("tab", name="Hidden states").click()
    fill(page, prompt, "")
    run(page, "hidden")
    expect(page.locator("#ct-status-hidden")).to_contain_text("Done")
    expect(page.locator("#ct-details-hidden")).to_contain_text(prompt)
    expect(page.locator("#ct-details-hidden img, #ct-map-hidden img")).to_have_count(0)


def test_stop_leaves_the_app_ready(visits, app):
    app.let_load()
    page = visits.open()
    # Of its own: a result that is kept needs no run.
    fill(page, f"{PROMPT} Paris and", SUBJECT)
    expect(page.locator("#ct-chips")).to_contain_text("Paris")
    start_held_run(page, app)
    # "Stopping" may be gone before a slow test looks.
    page.locator("#ct-status-hidden").evaluate("""status => {
      window.said = [];
      const run = document.querySelector('#ct-run-hidden');
      const note = new MutationObserver(() => window.said.push([status.textContent, run.disabled]));
      note.observe(status, { childList: true, subtree: true });
    }""")
    page.locator("#ct-stop-hidden:enabled").click()
    expect(page.locator("#ct-status-hidden")).to_contain_text("Stopped")
    expect(page.locator("#ct-run-hidden")).to_be_enabled()
    expect_true(page, "window.said.some(([text, held]) => text.includes('Stopping') && held)")
    app.may_run.set()
    fill(page, PROMPT, SUBJECT)
    run(page, "hidden")
    expect(page.locator("#ct-status-hidden")).to_contain_text("Done")


def test_a_result_that_is_opened_during_a_run_stays_and_the_run_gets_its_card(visits, app):
    app.let_load()
    page = visits.open()
    fill(page, f"{PROMPT} London and", SUBJECT)
    expect(page.locator("#ct-chips")).to_contain_text("London")
    start_held_run(page, app)
    page.get_by_role("button", name="Gallery", exact=True).click()
    page.locator("[data-entry=classic]").click()
    expect(page.locator("#ct-status-hidden")).to_contain_text("The run continues")
    expect(page.locator("#ct-run-hidden")).to_be_disabled()
    app.may_run.set()
    expect(page.locator("#ct-status-hidden")).to_contain_text("The run is done")
    expect(page.locator("#ct-status-hidden")).to_contain_text("The fact is in two places")
    expect(page.locator("#ct-details-hidden")).to_contain_text("a stored result")
    expect(page.locator("#ct-run-hidden")).to_be_enabled()
    card = page.locator("#ct-history [data-card] [data-open]")
    expect(card).to_have_attribute("title", re.compile("London"))
    card.click()
    expect(page.locator("#ct-details-hidden")).to_contain_text("London")


def test_a_run_that_waits_for_its_turn_can_be_stopped(visits, app):
    app.let_load()
    first, second = visits.open(), visits.open()
    fill(first, f"{PROMPT} Rome", SUBJECT)
    fill(second, f"{PROMPT} river", SUBJECT)
    for page in (first, second):
        expect(page.locator("#ct-chips [data-token]")).to_have_count(12)
    start_held_run(first, app)
    run(second, "hidden")
    expect(second.locator("#ct-status-hidden")).to_contain_text("Waiting for")
    second.locator("#ct-stop-hidden:enabled").click()
    expect(second.locator("#ct-status-hidden")).to_contain_text("Stopped")
    app.may_run.set()
    expect(first.locator("#ct-status-hidden")).to_contain_text("Done")


def test_examples_fill_the_fields(visits):
    page = visits.stay()
    page.get_by_role("button", name=re.compile("Steve Jobs")).click()
    expect(page.locator("#ct-prompt textarea")).to_have_value("Steve Jobs was the founder of")
    expect(page.locator("#ct-subject-note")).to_have_text("Guessed: Steve Jobs")


def test_help_says_what_a_map_does_not_show(visits):
    page = visits.stay()
    page.get_by_role("button", name="How to read this").click()
    expect(page.get_by_text("What a map does not show")).to_be_visible()
    expect(page.get_by_text("does not predict where editing")).to_be_visible()


def test_a_narrow_phone_scrolls_down_only(visits):
    page = visits.open(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    expect_no_overflow(page)
    page.locator("#ct-more button").first.click()
    page.get_by_role("tab", name="MLP").click()
    page.wait_for_selector("#ct-map-mlp .js-plotly-plot .main-svg")
    page.get_by_role("button", name="How to read this").click()
    expect_no_overflow(page)
    page.locator("#ct-python button").first.click()
    expect(page.locator("#ct-python-lines .cm-content")).to_contain_text("plot_hidden_flow_heatmap")
    expect_no_overflow(page)
    width = "document.querySelector('#ct-map-mlp .main-svg').getBoundingClientRect().width"
    expect_true(page, f"200 < {width} && {width} <= 360")


def test_plotly_is_fetched_before_gradio_asks_for_it_and_once(visits):
    page = visits.stay()
    expect_true(
        page,
        """() => {
          const fetched = performance.getEntriesByType('resource').filter(entry => entry.name.includes('/assets/'));
          const called = (entry, name) => name.test(entry.name.split('/').pop());
          const times = name => fetched.filter(entry => called(entry, name)).map(entry => entry.startTime);
          const [plotly, asking] = [times(/^PlotlyPlot-/), times(/^Plot-.*\\.js/)];
          return plotly.length === 1 && asking.length >= 1 && plotly[0] < asking[0];
        }""",
    )


def test_the_page_comes_compressed(visits):
    page = visits.stay()
    sent, held = page.evaluate(
        "(entry => [entry.encodedBodySize, entry.decodedBodySize])(performance.getEntriesByType('navigation')[0])"
    )
    assert sent < held / 4


def test_dark_mode_is_readable(visits):
    page = visits.open("?__theme=dark")
    expect(page.locator("body")).to_have_class(re.compile(r"\bdark\b"))
    expect_true(
        page,
        """() => {
          const mean = color => color.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 3;
          const style = selector => getComputedStyle(document.querySelector(selector));
          const label = mean(style('#ct-map-hidden .ytick text').fill);
          return label > 180 && mean(style('.gradio-container').backgroundColor) < 60
            && ['rgba(0, 0, 0, 0)', 'transparent'].includes(style('#ct-map-hidden .main-svg').backgroundColor);
        }""",
    )
