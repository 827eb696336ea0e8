"""Tracing, saving, sharing and comparing on the page, step by step, in a headless Chromium with a tiny model."""

from __future__ import annotations

import csv
import json
import re

import pytest

from causal_tracer import HiddenFlow
from causal_tracer.request.sites import KINDS
from tests.support.tiny_models import OTHER_PROMPT, OTHER_SUBJECT, PROMPT, SUBJECT
from tests.web.browser.steps import (
    choose,
    click_cell,
    done,
    expect,
    expect_marked_rows,
    expect_no_overflow,
    expect_subject_tokens,
    expect_true,
    field,
    fill,
    link_of,
    open_more,
    open_tab,
    press_and_release,
    run,
)

pytestmark = pytest.mark.browser

# A prompt is typed --------------------------------------------------------------------------------------------------


def test_a_typed_prompt_becomes_chips_with_a_guessed_subject_and_answers(visits, app):
    app.let_load()
    page = visits.open()
    fill(page, OTHER_PROMPT)
    # The page's own prompt comes with a guessed subject too.
    expect_subject_tokens(page, ["Steve", "Jobs"])
    expect(page.locator("#ct-chips")).to_contain_text("The subject is guessed")
    expect_subject_tokens(page, ["Steve", "Jobs"])
    answers = page.locator("#ct-chips [data-answer]")
    expect(answers).to_have_count(5)
    probabilities = [float(re.search(r"0\.\d+$", text)[0]) for text in answers.all_text_contents()]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0 < sum(probabilities) <= 1
    expect(page.locator("#ct-chips [data-answer][aria-pressed='true']")).to_have_attribute("data-answer", "0")


def test_two_clicks_on_tokens_mark_the_subject_and_typing_does_too(visits, app):
    app.let_load()
    page = visits.stay()
    fill(page, OTHER_PROMPT)
    # The page's own prompt comes with a guessed subject too.
    expect_subject_tokens(page, ["Steve", "Jobs"])
    chips = page.locator("#ct-chips [data-token]")
    first, last = (chips.get_by_text(word, exact=True) for word in ("the", "founder"))
    last.click()
    expect(field(page, "subject")).to_have_value("founder")
    # Backwards as well.
    first.click()
    expect(field(page, "subject")).to_have_value("the founder")
    expect(page.locator("#ct-chips")).to_contain_text("The subject is marked")
    expect_subject_tokens(page, ["the", "founder"])
    field(page, "subject").fill(OTHER_SUBJECT)
    expect(page.locator("#ct-chips [data-token][aria-pressed='true']").first).to_have_text("Steve")


def test_chips_are_for_the_keyboard_too(visits, app):
    app.let_load()
    page = visits.stay()
    fill(page, OTHER_PROMPT)
    expect(page.locator("#ct-chips")).to_contain_text("The subject is guessed")
    # The page's own prompt comes with a guessed subject too.
    expect_subject_tokens(page, ["Steve", "Jobs"])
    page.locator("#ct-chips [data-token]:enabled").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#ct-chips")).to_contain_text("The subject is marked")
    marked = page.locator("#ct-chips [data-token][aria-pressed='true']")
    expect(marked).to_have_count(1)
    expect(marked).to_be_focused()


def test_the_first_of_two_equal_words_can_be_marked(visits, app):
    app.let_load()
    page = visits.stay()
    fill(page, PROMPT, "the")
    marked = page.locator("#ct-chips [data-token][aria-pressed='true']")
    expect(marked).to_have_count(1)
    expect(marked).to_have_attribute("data-token", "8")
    page.locator("#ct-chips [data-token='3']").click()
    expect(marked).to_have_attribute("data-token", "3")
    done(page, "hidden")
    rows = page.locator("#ct-map-hidden .ytick text")
    expect(rows.nth(3)).to_have_text("the*")
    expect_marked_rows(page, "ct-map-hidden", ["the*"])


def test_another_answer_can_be_traced_and_goes_with_its_prompt(visits, app):
    app.let_load()
    page = visits.stay()
    fill(page, PROMPT, SUBJECT)
    second = page.locator("#ct-chips [data-answer='1']")
    expect(page.locator("#ct-chips [data-token]")).to_have_count(11)
    probability = second.locator("small").text_content()
    second.click()
    expect(page.locator("#ct-chips [data-answer='1']")).to_have_attribute("aria-pressed", "true")
    done(page, "hidden")
    expect(page.locator("#ct-numbers-hidden")).to_contain_text(probability)
    expect(page.locator("#ct-numbers-hidden")).to_contain_text("the model says")
    page.locator("#ct-prompt textarea").fill(OTHER_PROMPT)
    expect(field(page, "answer")).to_have_value("")


def test_an_unsure_model_is_said_and_not_refused(visits, app):
    app.let_load()
    page = visits.stay()
    fill(page, PROMPT, SUBJECT)
    field(page, "answer").fill("Italy")
    expect(page.locator("#ct-message .ct-warning")).to_contain_text("unsure")
    expect(page.locator("#ct-message .ct-warning")).to_be_visible()
    done(page, "hidden")


def test_another_model_is_chosen_and_traced(visits, app):
    app.let_load()
    page = visits.open()
    fill(page, PROMPT, SUBJECT)
    expect(page.locator("#ct-chips [data-token]")).to_have_count(11)
    first = page.locator("#ct-chips [data-answer]").first.inner_text()
    choose(page, "model-choice", "tiny-chat")
    expect(page.locator("#ct-model")).to_contain_text("Model ready: Tiny Llama")
    expect(page.locator("#ct-chips [data-answer]").first).not_to_have_text(first)
    done(page, "hidden")
    expect(page.locator("#ct-details-hidden")).to_contain_text("tiny-chat, float32")
    link = link_of(page, "hidden", "model=tiny-chat&")
    other = visits.open(link.removeprefix(app.url))
    expect(other.locator("#ct-model")).to_contain_text("Model ready: Tiny Llama")


def test_a_chat_message_is_traced_at_the_start_of_the_answer(visits, app):
    app.let_load()
    page = visits.open()
    box = page.get_by_label("Chat message")
    expect(page.locator("#ct-model")).to_contain_text("Model ready: Tiny GPT-2")
    expect(box).to_have_count(0)
    choose(page, "model-choice", "tiny-chat")
    fill(page, PROMPT, SUBJECT, model="Model ready: Tiny Llama")
    expect(box).to_be_visible()
    tokens = page.locator("#ct-chips [data-token]")
    expect(tokens.last).to_have_text("of")
    box.check()
    # What the template wrote is shown, and cannot be marked.
    expect(tokens.last).to_have_text("⏎")
    expect(tokens.last).to_be_disabled()
    expect_subject_tokens(page, ["Space", "Needle"])
    done(page, "hidden")
    expect(page.locator("#ct-map-hidden .ytick text")).to_have_count(tokens.count())
    expect_marked_rows(page, "ct-map-hidden", ["Space*", "Needle*"])
    link = link_of(page, "hidden", "chat=1")
    numbers = page.locator("#ct-numbers-hidden").inner_text()
    other = visits.open(link.removeprefix(app.url))
    expect(field(other, "prompt")).to_have_value(PROMPT)
    expect(field(other, "subject")).to_have_value(SUBJECT)
    expect(other.get_by_label("Chat message")).to_be_checked()
    done(other, "hidden")
    expect_marked_rows(other, "ct-map-hidden", ["Space*", "Needle*"])
    expect(other.locator("#ct-numbers-hidden")).to_have_text(numbers, use_inner_text=True)


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("東京 is the capital of", "東京"),
        ("عاصمة فرنسا هي", "فرنسا"),
        ("The 🗼 Tower is in", "🗼"),
        ("ไทย is in", "ไทย"),
    ],
)
def test_any_script_is_marked_right(visits, app, prompt, subject):
    app.let_load()
    page = visits.stay(viewport={"width": 360, "height": 740})
    fill(page, prompt, subject)
    expect(page.locator("#ct-chips")).to_contain_text("The subject is marked")
    expect(page.locator("#ct-chips [data-token][aria-pressed='true']").first).to_contain_text(subject[0])
    expect(page.locator("#ct-message .ct-error")).to_have_count(0)
    done(page, "hidden")
    rows = page.locator("#ct-map-hidden .ytick text")
    expect(rows.filter(has_text=re.compile(rf"{subject[0]}.*\*$")).first).to_be_visible()
    expect(rows.filter(has_text="�")).to_have_count(0)
    expect_no_overflow(page)


# It is traced and read ----------------------------------------------------------------------------------------------


def test_all_three_kinds_stand_side_by_side_on_one_scale(visits, app):
    app.let_load()
    page = visits.open(viewport={"width": 1400, "height": 900})
    fill(page, PROMPT, SUBJECT)
    page.get_by_role("tab", name="All three").click()
    done(page, "all")
    for kind in KINDS:
        expect(page.locator(f"#ct-map-all-{kind} .js-plotly-plot")).to_be_visible()
        expect(page.locator("#ct-numbers-all")).to_contain_text(re.compile(kind[:3], re.IGNORECASE))
    # One scale, one height.
    expect_true(
        page,
        """() => {
          const plots = [...document.querySelectorAll("[id^='ct-map-all-'] .js-plotly-plot")];
          const looks = plots.map(plot => JSON.stringify([plot.data[0].zmin, plot.data[0].zmax, plot.data[0].colorscale,
                                                          Math.round(plot.getBoundingClientRect().top)]));
          return plots.length === 3 && new Set(looks).size === 1;
        }""",
    )
    expect(page.locator("#ct-numbers-all .ct-legend")).to_be_visible()
    click_cell(page, "ct-map-all-mlp", 5, 1, 11, 3)
    expect(page.locator("#ct-cell-all h3")).to_contain_text("Needle")


def test_a_clicked_cell_is_shown_in_detail_also_after_a_run_and_in_other_tabs(visits, app):
    app.let_load()
    page = visits.open()
    # Of the stored map, before anything is run.
    click_cell(page, "ct-map-hidden", 3, 4, 10, 18)
    expect(page.locator("#ct-cell-hidden h3")).to_have_text("“Needle”, layer 4")
    # While its prompt is in the fields: a tab whose map is of another prompt shows the lens of the fields' prompt.
    page.get_by_role("tab", name="MLP").click()
    click_cell(page, "ct-map-mlp", 3, 6, 10, 18)
    expect(page.locator("#ct-cell-mlp h3")).to_have_text("“Needle”, layer 6, with layers 1 to 10 restored")
    page.get_by_role("tab", name="Hidden states").click()
    fill(page, PROMPT, SUBJECT)
    done(page, "hidden")
    expect(page.locator("#ct-cell-hidden h3")).to_have_count(0)
    click_cell(page, "ct-map-hidden", 10, 2, 11, 3)
    cell = page.locator("#ct-cell-hidden")
    expect(cell.locator("h3")).to_have_text("“of”, layer 2")
    expect(cell).to_contain_text("95 % interval")
    expect(cell).to_contain_text("100% of the total effect")
    expect(cell.locator("circle.ct-high")).to_have_count(10)
    expect(cell.locator("section")).to_have_count(3)
    # Restored at the last token in the last layer, the run says what the clean one says.
    restored, clean, corrupted = (
        section.locator("li").all_text_contents() for section in cell.locator("section").all()
    )
    assert restored == clean != corrupted


def test_the_table_is_the_keyboards_way_to_a_cell(visits, app):
    app.let_load()
    page = visits.open()
    fill(page, PROMPT, SUBJECT)
    done(page, "hidden")
    page.locator("#ct-table-hidden-hidden summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("#ct-table-hidden-hidden td button").first).to_be_focused()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#ct-cell-hidden h3")).to_have_text("“:”, layer 1")
    chosen = page.locator("#ct-table-hidden-hidden [aria-current]")
    expect(chosen).to_have_attribute("data-row", "2")
    # It stays open when the next result comes.
    field(page, "answer").fill("Italy")
    done(page, "hidden")
    expect(page.locator("#ct-table-hidden-hidden table")).to_be_visible()


def test_a_switch_writes_what_the_model_says_into_the_cells(visits, app):
    app.let_load()
    page = visits.open()
    words = page.locator("#ct-map-hidden .heatmap-label")
    expect(words).to_have_count(0)
    page.locator("#ct-write-hidden input").check()
    expect(words.filter(has_text="Seattle").first).to_be_visible()
    fill(page, PROMPT, SUBJECT)
    done(page, "hidden")
    expect(words).to_have_count(33)
    page.locator("#ct-write-hidden input").uncheck()
    expect(words).to_have_count(0)


def test_peaks_are_named_in_a_sentence(visits):
    page = visits.open()
    sentence = page.locator("#ct-numbers-hidden .ct-peaks")
    expect(sentence).to_contain_text(
        re.compile(r"“of” \(layers 12–17, best 17\): P\(Seattle\) = 0\.47\d, 100% of the total effect")
    )
    expect(sentence).to_contain_text(
        re.compile(r"“Needle” \(layers \d–\d+, best 4\): P\(Seattle\) = 0\.34\d, 73% of the total effect")
    )


def test_the_subject_can_be_corrupted_in_another_way(visits, app):
    app.let_load()
    page = visits.open()
    fill(page, PROMPT, SUBJECT)
    open_more(page)
    choose(page, "corruption", "Mean embedding")
    done(page, "hidden")
    made = page.locator("#ct-details-hidden")
    expect(made).to_contain_text("single layers · embeddings set to their mean over the vocabulary · ")
    link = link_of(page, "hidden", "corruption=mean")
    page.locator("#ct-python button").first.click()
    expect(page.locator("#ct-python-lines .cm-content")).to_contain_text("corruption='mean'")
    other = visits.open(link.removeprefix(app.url))
    open_more(other)
    expect(field(other, "corruption")).to_have_value("Mean embedding")


# It is shared -------------------------------------------------------------------------------------------------------


def test_a_link_reproduces_the_result_in_another_browser(visits, app):
    app.let_load()
    page = visits.open()
    fill(page, f"{PROMPT} <i>&", SUBJECT)
    open_more(page)
    field(page, "seed").fill("7")
    field(page, "samples").fill("3")
    expect(page.locator("#ct-chips [data-answer='1']")).to_be_visible()
    page.locator("#ct-chips [data-answer='1']").click()
    expect(page.locator("#ct-chips [data-answer='1'][aria-pressed='true']")).to_be_visible()
    done(page, "hidden")
    expect(page.locator("#ct-details-hidden")).to_contain_text("3 noise samples, seed 7")
    link = link_of(page, "hidden", "seed=7")
    numbers = page.locator("#ct-numbers-hidden").inner_text()
    assert link.startswith(app.url)
    other = visits.open(link.removeprefix(app.url))
    expect(other.locator("#ct-prompt textarea")).to_have_value(f"{PROMPT} <i>&")
    expect(field(other, "subject")).to_have_value(SUBJECT)
    done(other, "hidden")
    expect(other.locator("#ct-numbers-hidden")).to_have_text(numbers, use_inner_text=True)


def test_bad_values_in_a_link_are_said_and_left_out(visits, app):
    app.let_load()
    page = visits.open("?prompt=Paris+is+in&samples=many&kind=mlp&noise=%3Cimg%3E", tab="mlp")
    message = page.locator("#ct-link-message")
    expect(message).to_contain_text("samples='many' in the link")
    expect(message).to_contain_text("noise='<img>' in the link")
    expect(page.locator("#ct-prompt textarea")).to_have_value("Paris is in")
    expect(page.get_by_role("tab", name="MLP")).to_have_attribute("aria-selected", "true")


def test_files_hold_the_result_and_a_saved_one_opens_again(visits, app, tmp_path):
    app.let_load()
    page = visits.open()
    fill(page, PROMPT, SUBJECT)
    page.get_by_role("tab", name="MLP").click()
    done(page, "mlp")
    page.locator("#ct-share-mlp button").first.click()
    paths = {}
    for format in ("json", "csv", "html"):
        with page.expect_download() as download:
            page.locator(f"#ct-{format}-mlp").click()
        paths[format] = tmp_path / f"map.{format}"
        download.value.save_as(paths[format])
    flow = HiddenFlow.load(paths["json"])
    assert (flow.kind, flow.prompt, tuple(flow.scores.shape)) == ("mlp", PROMPT, (11, 3))
    rows = list(csv.reader(paths["csv"].read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 1 + 11 * 3
    assert len(paths["html"].read_text(encoding="utf-8")) > 1_000_000, "plotly.js is not in it"
    # In another session, from another tab.
    other = visits.open()
    other.locator("input[data-testid$='upload-button']").first.set_input_files(paths["json"])
    expect(other.get_by_role("tab", name="MLP")).to_have_attribute("aria-selected", "true")
    expect(other.locator("#ct-status-mlp")).to_contain_text("Opened from a file")
    # The fields keep their own prompt, whose lens does not cover the opened map.
    expect(other.locator("#ct-map-mlp")).to_be_visible()
    expect(other.locator("#ct-map-mlp .ytick text").nth(5)).to_have_text("Needle*")
    damaged = tmp_path / "damaged.json"
    damaged.write_text(json.dumps({"format": "causal_tracer.HiddenFlow"}))
    other.locator("input[data-testid$='upload-button']").first.set_input_files(damaged)
    expect(other.locator("#ct-message .ct-error")).to_be_visible()


def test_a_page_whose_result_the_app_has_lost_says_so_and_runs_again(visits, app):
    app.let_load()
    page = visits.open()
    # Nothing is typed: a look at the prompt that comes late would take the place of the message.
    expect(page.locator("#ct-chips [data-token]:not([disabled])").first).to_be_visible()
    done(page, "hidden")
    app.forget()
    click_cell(page, "ct-map-hidden", 7, 1, 15, 3)
    expect(page.locator("#ct-cell-hidden")).to_contain_text("The app no longer has this result")
    page.locator("#ct-share-hidden button").first.click()
    page.locator("#ct-json-hidden").click()
    expect(page.locator("#ct-message")).to_contain_text("Press Run again")
    run(page, "hidden")
    expect(page.locator("#ct-details-hidden")).to_contain_text("computed earlier")
    click_cell(page, "ct-map-hidden", 7, 1, 15, 3)
    expect(page.locator("#ct-cell-hidden")).to_contain_text(", layer 1")


@pytest.mark.parametrize(("format", "magic"), [("png", b"\x89PNG"), ("svg", b"<svg")])
def test_pictures_are_drawn_where_kaleido_can(visits, tmp_path, format, magic):
    pytest.importorskip("kaleido")
    page = visits.open()
    page.locator("#ct-share-hidden button").first.click()
    with page.expect_download() as download:
        page.locator(f"#ct-{format}-hidden").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert path.suffix == f".{format}"
    assert path.read_bytes().startswith(magic)
    assert "Seattle" in path.read_text(encoding="utf-8") if format == "svg" else path.stat().st_size > 10_000


def test_where_there_is_no_kaleido_the_page_says_what_to_do(visits, monkeypatch):
    monkeypatch.setattr("causal_tracer.plots.saving.find_spec", lambda name: None)
    page = visits.open()
    page.locator("#ct-share-hidden button").first.click()
    page.locator("#ct-png-hidden").click()
    expect(page.locator("#ct-message .ct-error")).to_contain_text("pip install kaleido")


def test_the_python_lines_follow_the_fields(visits, app):
    app.let_load()
    page = visits.open()
    fill(page, PROMPT, SUBJECT)
    page.locator("#ct-python button").first.click()
    lines = page.locator("#ct-python-lines .cm-content")
    expect(lines).to_contain_text(f"prompt='{PROMPT}'")
    page.get_by_role("tab", name="Attention").click()
    page.locator("#ct-prompt textarea").fill(OTHER_PROMPT)
    expect(lines).to_contain_text("Steve Jobs was the founder of")
    expect(lines).to_contain_text("'attention': MapSpec(kind='attention')")
    command = page.locator("#ct-command-line .cm-content")
    expect(command).to_contain_text("--kind attention")
    expect(command).to_contain_text("Steve Jobs was the founder of'")


# It looks right -----------------------------------------------------------------------------------------------------


def test_nothing_jumps_while_a_map_fills_in(visits, app):
    app.let_load()
    page = visits.open()
    fill(page, f"{PROMPT} Italy", SUBJECT)
    expect(page.locator("#ct-chips [data-token]")).to_have_count(12)
    done(page, "hidden")
    page.evaluate(
        """() => { const map = document.querySelector('#ct-map-hidden'); window.tops = new Set();
                   const look = () => { window.tops.add(Math.round(map.getBoundingClientRect().top + scrollY));
                                        requestAnimationFrame(look); }; look(); }"""
    )
    field(page, "answer").fill("Rome")
    expect(page.locator("#ct-message .ct-warning")).to_be_visible()
    page.evaluate("window.tops.clear()")
    done(page, "hidden")
    tops = page.evaluate("[...window.tops]")
    assert max(tops) - min(tops) <= 1, tops


def test_focus_can_be_seen(visits):
    page = visits.open()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect_true(page, "parseFloat(getComputedStyle(document.activeElement).outlineWidth) >= 2")


# Studies --------------------------------------------------------------------------------------------------------------


def test_stored_studies_are_read_compared_and_taken_along(visits, tmp_path):
    page = visits.open()
    open_tab(page, "Studies")
    plot = page.locator("#ct-study-plot .js-plotly-plot")
    expect(plot.locator(".heatmaplayer image")).to_be_visible()
    expect(page.locator("#ct-study-findings")).to_contain_text("Average total effect")
    choose(page, "study-figure", "Severed paths")
    expect(page.locator("#ct-study-caption")).to_contain_text("Figure 3")
    expect(plot.locator(".barlayer .trace")).to_have_count(3)
    names = plot.locator(".legendtoggle")
    press_and_release(page, page.locator("#ct-study-caption"), names.last)
    press_and_release(page, names.first, names.first)
    # The name that was clicked later is grey, so the other one's bars would be hidden by now.
    expect(plot.locator(".legend .traces").first).to_have_css("opacity", "0.5")
    expect(plot.locator(".barlayer .trace")).to_have_count(2)
    choose(page, "study-other", "SmolLM2")
    expect(page.locator("#ct-study-caption")).to_contain_text("relative depth")
    expect(plot.locator(".legend .traces")).to_have_count(2)
    with page.expect_download() as download:
        page.locator("#ct-study-report").click()
    download.value.save_as(tmp_path / "report.html")
    assert "<h2>Comparison</h2>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_on_a_phone_the_layers_of_a_study_can_be_read(visits):
    page = visits.open(viewport={"width": 390, "height": 844})
    open_tab(page, "Studies")
    plot = page.locator("#ct-study-plot .js-plotly-plot")
    expect(plot.locator(".heatmaplayer image")).to_be_visible()
    # In one line, with a gap between each and the next.
    expect_true(
        page,
        """() => {
          const texts = [...document.querySelectorAll('#ct-study-plot .xtick text')];
          const boxes = texts.map(text => text.getBoundingClientRect());
          return boxes.length > 3 && boxes.every((box, n) => box.height < 20 && (!n || boxes[n - 1].right < box.left));
        }""",
    )
