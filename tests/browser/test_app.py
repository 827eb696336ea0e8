"""The app in a headless Chromium, with a tiny model. The tests of this file run in their order: the first ones need
the model to be still loading."""

from __future__ import annotations

import re

import pytest

from tests.tiny_models import PROMPT, SUBJECT

playwright_api = pytest.importorskip("playwright.sync_api")
expect = playwright_api.expect
expect.set_options(timeout=30_000)
pytestmark = pytest.mark.browser

TABS = [("hidden", "Hidden states"), ("mlp", "MLP"), ("attention", "Attention")]


def fill(page, prompt: str, subject: str = "", model: str = "Model ready") -> None:
    expect(page.locator("#ct-model")).to_contain_text(model)
    page.locator("#ct-prompt textarea").fill(prompt)
    page.locator("#ct-subject textarea, #ct-subject input").first.fill(subject)


def open_advanced(page) -> None:
    page.get_by_role("button", name="Advanced").click()
    expect(page.locator("#ct-subject-only input")).to_be_enabled()


def run(page, kind: str) -> None:
    page.locator(f"#ct-run-{kind}").click()


def overflow(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


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
    expect(page.locator("#ct-model")).to_contain_text("Automatic noise level: 0.5.")


@pytest.mark.parametrize(("kind", "title"), TABS)
def test_a_run_in_each_tab(visits, app, kind, title):
    app.let_load()
    page = visits.open()
    page.get_by_role("tab", name=title).click()
    fill(page, PROMPT, SUBJECT)
    open_advanced(page)
    run(page, kind)
    expect(page.locator(f"#ct-status-{kind}")).to_contain_text("Done")
    expect(page.locator(f"#ct-details-{kind}")).to_contain_text("tiny, float32")
    # An empty noise field is automatic, not 0.
    expect(page.locator(f"#ct-details-{kind}")).to_contain_text("10 noise samples, seed 1 · noise 0.5")
    labels = page.locator(f"#ct-map-{kind} .ytick text").all_text_contents()
    assert labels[0] == "<bos>"
    assert [label for label in labels if label.endswith("*")] == ["Space*", "Needle*"]
    expect(page.locator(f"#ct-run-{kind}")).to_be_enabled()
    expect(page.locator(f"#ct-stop-{kind}")).to_be_disabled()


def test_a_bad_subject_is_said_beside_the_fields_at_once_and_by_run(visits, app):
    app.let_load()
    page = visits.open()
    fill(page, PROMPT, "Eiffel <img src=x onerror=alert(1)> Tower")
    message = page.locator("#ct-message [role=alert]")
    expect(message).to_contain_text("'Eiffel <img src=x onerror=alert(1)> Tower' is not in the prompt")
    run(page, "hidden")
    expect(page.locator("#ct-status-hidden")).to_contain_text("see the message above")
    expect(message).to_contain_text("is not in the prompt")
    assert page.locator("#ct-message img").count() == 0
    expect(page.locator("#ct-run-hidden")).to_be_enabled()
    fill(page, PROMPT, SUBJECT)
    expect(message).to_have_count(0)
    run(page, "hidden")
    expect(page.locator("#ct-status-hidden")).to_contain_text("Done")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("samples", "0", "samples=0"), ("noise", "-1", "noise=-1"), ("noise", "loud", "no number")],
)
def test_a_bad_setting_is_said(visits, app, field, value, words):
    app.let_load()
    page = visits.open()
    fill(page, PROMPT, SUBJECT)
    open_advanced(page)
    box = page.locator(f"#ct-{field} :is(input, textarea)")
    message = page.locator("#ct-message [role=alert]")
    for _ in range(3):
        # Gradio fills the fields anew a moment after the accordion opens: what is typed in that moment is lost.
        box.fill(value)
        box.press("Tab")
        run(page, "hidden")
        expect(message.or_(page.get_by_text(re.compile("Done: ")))).to_be_visible()
        if message.count():
            break
    expect(message).to_contain_text(words)


def test_markup_in_a_prompt_is_text(visits, app):
    app.let_load()
    page = visits.open()
    prompt = "The Space Needle <b>is</b> in <img src=x onerror=alert(1)> the city of"
    fill(page, prompt, "")
    run(page, "hidden")
    expect(page.locator("#ct-status-hidden")).to_contain_text("Done")
    expect(page.locator("#ct-details-hidden")).to_contain_text(prompt)
    assert page.locator("#ct-details-hidden img, #ct-map-hidden img").count() == 0


def test_stop_leaves_the_app_ready(visits, app):
    app.let_load()
    page = visits.open()
    # Of its own: a result that is kept needs no run.
    fill(page, f"{PROMPT} Paris and", SUBJECT)
    expect(page.locator("#ct-chips")).to_contain_text("Paris")
    app.may_run.clear()
    run(page, "hidden")
    expect(page.locator("#ct-status-hidden")).to_contain_text("Starting")
    page.locator("#ct-stop-hidden:enabled").click()
    expect(page.locator("#ct-status-hidden")).to_contain_text("Stopping")
    expect(page.locator("#ct-run-hidden")).to_be_disabled()
    app.may_run.set()
    expect(page.locator("#ct-status-hidden")).to_contain_text("Stopped")
    expect(page.locator("#ct-run-hidden")).to_be_enabled()
    fill(page, PROMPT, SUBJECT)
    run(page, "hidden")
    expect(page.locator("#ct-status-hidden")).to_contain_text("Done")


def test_a_run_that_waits_for_its_turn_can_be_stopped(visits, app):
    app.let_load()
    first, second = visits.open(), visits.open()
    fill(first, f"{PROMPT} Rome", SUBJECT)
    fill(second, f"{PROMPT} river", SUBJECT)
    for page in (first, second):
        expect(page.locator("#ct-chips [data-token]")).to_have_count(12)
    app.may_run.clear()
    run(first, "hidden")
    expect(first.locator("#ct-status-hidden")).to_contain_text("Starting")
    run(second, "hidden")
    expect(second.locator("#ct-status-hidden")).to_contain_text("Waiting for")
    second.locator("#ct-stop-hidden:enabled").click()
    expect(second.locator("#ct-status-hidden")).to_contain_text("Stopped")
    app.may_run.set()
    expect(first.locator("#ct-status-hidden")).to_contain_text("Done")


def test_examples_fill_the_fields(visits):
    page = visits.open()
    page.get_by_role("button", name=re.compile("Steve Jobs")).click()
    expect(page.locator("#ct-prompt textarea")).to_have_value("Steve Jobs was the founder of")
    expect(page.locator("#ct-subject textarea, #ct-subject input").first).to_have_value("Steve Jobs")


def test_help_says_what_a_map_does_not_show(visits):
    page = visits.open()
    page.get_by_role("button", name="How to read this").click()
    expect(page.get_by_text("What a map does not show")).to_be_visible()
    expect(page.get_by_text("does not predict where editing")).to_be_visible()


def test_a_narrow_phone_scrolls_down_only(visits):
    page = visits.open(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert overflow(page) <= 0
    page.get_by_role("button", name="Advanced").click()
    page.get_by_role("tab", name="MLP").click()
    page.wait_for_selector("#ct-map-mlp .js-plotly-plot .main-svg")
    page.get_by_role("button", name="How to read this").click()
    assert overflow(page) <= 0
    width = page.locator("#ct-map-mlp .main-svg").first.bounding_box()["width"]
    assert 200 < width <= 360


def test_plotly_is_fetched_before_gradio_asks_for_it_and_once(visits):
    page = visits.open()
    fetched = page.evaluate(
        """() => performance.getEntriesByType('resource').filter(entry => entry.name.includes('/assets/'))
                            .map(entry => [entry.name.split('/').pop(), entry.startTime])"""
    )
    times = dict(fetched)
    (plotly,) = [name for name, _ in fetched if name.startswith("PlotlyPlot-")]
    (asking,) = [name for name in times if re.match(r"Plot-.*\.js", name)]
    assert times[plotly] < times[asking]


def test_the_page_comes_compressed(visits):
    page = visits.open()
    sent, held = page.evaluate(
        "(entry => [entry.encodedBodySize, entry.decodedBodySize])(performance.getEntriesByType('navigation')[0])"
    )
    assert sent < held / 4


def test_dark_mode_is_readable(visits):
    page = visits.open("?__theme=dark")
    assert "dark" in page.locator("body").get_attribute("class")
    label, background = page.evaluate(
        """() => [getComputedStyle(document.querySelector('#ct-map-hidden .ytick text')).fill,
                  getComputedStyle(document.querySelector('.gradio-container')).backgroundColor]"""
    )
    light, dark = (sum(int(part) for part in re.findall(r"\d+", color)[:3]) / 3 for color in (label, background))
    assert light > 180 > 60 > dark
    assert page.locator("#ct-map-hidden .main-svg").first.evaluate("svg => svg.style.background") in (
        "rgba(0, 0, 0, 0)",
        "transparent",
    )
