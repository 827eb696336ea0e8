"""The page's words and values, without a browser: story, chips, table, details, fields, and what users type."""

from __future__ import annotations

import dataclasses
import re
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("gradio")

import gradio as gr
import httpx
from gradio import http_server, networking

from causal_tracer.corruption import CORRUPTIONS
from causal_tracer.errors import SettingsError, SubjectError
from causal_tracer.prompts.prompt import guess_subject
from causal_tracer.request.other_prompt import OtherPrompt
from causal_tracer.request.sites import SITES
from causal_tracer.results.comparison import compare_flows
from causal_tracer.results.settings_line import settings_line
from causal_tracer.results.top_tokens import TokenProbability
from causal_tracer.web.page import explore, views
from causal_tracer.web.page.assets import static_text
from causal_tracer.web.page.cells import difference_table_html, table_html
from causal_tracer.web.page.chips import inspection_html, stored_inspection
from causal_tracer.web.page.detail import cell_details, detail_html
from causal_tracer.web.page.downloads import html_page
from causal_tracer.web.page.field_notes import field_notes, message_of, refusal
from causal_tracer.web.page.fields import FIELD_NAMES, Picked, asked_for, field_values, subject_picked
from causal_tracer.web.page.inputs_layout import first_inspection
from causal_tracer.web.page.story import restored_cell, story_html, story_steps
from causal_tracer.web.page.summary import numbers_html, peaks_html, progress_words, warnings_html
from causal_tracer.web.page.texts import EXAMPLES, Example
from causal_tracer.web.service import figures
from causal_tracer.web.service.app_fields import APP_FIELDS
from causal_tracer.web.service.field_checks import check_fields
from causal_tracer.web.service.inspection import Inspection, Problem, TokenSpan
from causal_tracer.web.service.settings import ServiceSettings
from causal_tracer.web.service.stored import STORED_PROMPT, STORED_SUBJECT, stored_map
from causal_tracer.web.service.updates import RunUpdate
from causal_tracer.web.serving import build_demo, page_options, without_hot_reload
from tests.support.flows import some_flow
from tests.support.web_tiny import app_fields, tiny_service

MARKUP = "<img src=x onerror=alert(1)>"
DEFAULTS = field_values(app_fields("Paris is in", "Paris", model="tiny"))


def with_fields(**changes: object) -> tuple[object, ...]:
    return tuple(changes.get(name, value) for name, value in zip(FIELD_NAMES, DEFAULTS, strict=True))


class TestStory:
    def test_its_numbers_are_those_of_the_result(self) -> None:
        flow = stored_map("hidden")
        clean, corrupted, restored, whole = story_steps(flow)
        position, layer = restored_cell(flow)
        assert position == flow.subject_range[1] - 1
        assert (clean.probability, corrupted.probability) == (flow.high_score, flow.low_score)
        assert restored.probability == float(flow.scores[position].max()) == float(flow.scores[position, layer])
        assert whole.probability == pytest.approx(float(flow.scores.max()), abs=1e-3)
        assert "Seattle" in clean.words
        assert f"layer {layer}" in restored.words

    def test_it_tells_what_the_corrupted_run_says(self) -> None:
        flow = stored_map("hidden")
        assert flow.top_tokens is not None
        words = [token.text.strip() for token in flow.top_tokens.corrupted if token.text.strip()]
        assert f"<b>{words[0]}</b>" in story_steps(flow)[1].words

    def test_the_last_step_is_true_of_the_stored_result(self) -> None:
        # "at the subject's last token in early layers, and at the prompt's last token in late layers"
        flow = stored_map("hidden")
        strongest = {peak.position: peak.layer for peak in flow.peaks(2)}
        subject, last, layers = flow.subject_range[1] - 1, len(flow.input_tokens) - 1, flow.scores.shape[1]
        assert set(strongest) == {subject, last}
        assert strongest[subject] < layers / 3
        assert strongest[last] > layers * 2 / 3

    def test_markup_is_text(self) -> None:
        flow = some_flow(input_tokens=[MARKUP] * 4, answer=MARKUP, subject=MARKUP)
        assert "<img" not in story_html(flow)


class TestChips:
    def test_tokens_of_the_subject_are_pressed(self) -> None:
        html = inspection_html(stored_inspection(stored_map("hidden")))
        assert re.findall(r'aria-pressed="(\w+)" dir="auto"[^>]*>(\w+)<', html)[:4] == [
            ("true", "The"),
            ("true", "Space"),
            ("true", "Needle"),
            ("false", "is"),
        ]

    def test_markup_is_text(self) -> None:
        span = TokenSpan(MARKUP, 0, len(MARKUP))
        assert "<img" not in inspection_html(Inspection(tokens=(span,), subject=MARKUP, subject_range=(0, 1)))

    def test_answers_that_differ_in_a_space_only_are_told_apart(self) -> None:
        answers = tuple(TokenProbability(number, text, 0.3) for number, text in enumerate(("Paris", " Paris", " Rome")))
        html = inspection_html(Inspection(tokens=(TokenSpan("a", 0, 1),), answers=answers))
        assert re.findall(r">([^<>]+)<small>", html) == ["Paris", "␣Paris", "Rome"]

    def test_while_the_model_loads_they_say_so(self) -> None:
        assert "converting, 40%" in inspection_html(Inspection(loading="converting, 40%"))

    def test_they_know_their_characters(self) -> None:
        html = inspection_html(Inspection(tokens=(TokenSpan("<bos>", 0, 0), TokenSpan(" Paris", 4, 10))))
        assert re.findall(r'data-start="(\d+)" data-end="(\d+)"', html) == [("0", "0"), ("4", "10")]

    def test_marks_that_stand_nowhere_in_the_text_cannot_be_chosen(self) -> None:
        html = inspection_html(Inspection(tokens=(TokenSpan("<bos>", 0, 0), TokenSpan("Paris", 0, 5))))
        assert re.findall(r'data-token="(\d)"[^>]*?(disabled)?>', html) == [("0", "disabled"), ("1", "")]


class TestFieldNotes:
    def test_a_problem_stands_beside_its_field_and_beside_run(self) -> None:
        problems = (Problem("subject", f"No {MARKUP}."), Problem("settings", "samples=0"), Problem("answer", "No id."))
        inspection = Inspection(problems=problems, warnings=("Unsure.",))
        prompt, subject, answer = field_notes(inspection)
        assert prompt == ""
        assert "No &lt;img" in subject
        assert "No id." in answer
        message = message_of(inspection)
        assert "samples=0" in message
        assert "Unsure." in message
        assert "No " not in message
        assert refusal(inspection) == f"No {MARKUP}. samples=0 No id."

    def test_a_guess_is_named_and_markup_is_text(self) -> None:
        _, subject, _ = field_notes(Inspection(subject=MARKUP, guessed=True))
        assert "Guessed: " in subject
        assert "<img" not in subject
        assert field_notes(Inspection(subject="Paris")) == ("", "", "")

    def test_warnings_refuse_nothing(self) -> None:
        assert refusal(Inspection(warnings=("Unsure.",))) == ""

    @pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.label)
    def test_an_example_s_subject_is_the_one_that_is_guessed(self, example: Example) -> None:
        assert guess_subject(example.prompt) == example.subject

    def test_the_page_opens_with_the_subject_that_is_guessed(self) -> None:
        assert guess_subject(STORED_PROMPT) == STORED_SUBJECT == stored_map("hidden").subject
        assert STORED_SUBJECT in field_notes(first_inspection())[1]


class TestHotReload:
    def test_an_app_on_a_space_is_launched_without_what_exchanges_its_code(self, monkeypatch: Any) -> None:
        watched: list[Any] = []
        monkeypatch.setattr(http_server, "watchfn_spaces", watched.append)
        monkeypatch.setenv("SYSTEM", "spaces")
        monkeypatch.setenv("SPACE_ID", "ada/tracer")
        for circumstances, servers in ((without_hot_reload(), 0), (nullcontext(), 1)):
            with circumstances, gr.Blocks() as demo:
                demo.launch(prevent_thread_lock=True, server_name="127.0.0.1", quiet=True)
            demo.close()
            assert len(watched) == servers

    def test_a_gradio_that_has_it_under_another_name_is_left_as_it_is(self, monkeypatch: Any) -> None:
        monkeypatch.delattr(http_server, "watchfn_spaces")
        with without_hot_reload():
            assert not hasattr(http_server, "watchfn_spaces")


def test_events_name_at_most_the_line_of_their_status_for_progress() -> None:
    """Gradio's page copies all values of the components that are named, at each message of any event."""
    config = build_demo(tiny_service()).get_config_file()
    ids = {component["id"]: component["props"].get("elem_id") for component in config["components"]}
    events = [
        event
        for event in config["dependencies"]
        # Gradio makes the event of an example itself.
        if event["api_visibility"] == "private" and event["outputs"] and event["api_name"] != "load_example"
    ]
    named = [ids[component] for event in events if event["backend_fn"] for component in event["show_progress_on"]]
    assert len(events) > 50
    assert all(name.startswith("ct-status-") for name in named)


@pytest.mark.slow
def test_the_app_starts_where_its_page_is_slow(monkeypatch: Any) -> None:
    # What Gradio finds out on a busy machine, where its own look at the page takes too long.
    monkeypatch.setattr(networking, "url_ok", lambda url: False)
    service = tiny_service()
    demo = build_demo(service)
    demo.launch(prevent_thread_lock=True, server_name="127.0.0.1", quiet=True, **page_options(service))
    try:
        assert httpx.get(demo.local_url, timeout=120).status_code == 200
    finally:
        demo.close()


class TestCells:
    def test_the_table_has_every_score_at_its_place(self) -> None:
        flow = stored_map("mlp")
        html = table_html(flow, "ct-map-mlp")
        found = re.findall(r'data-row="(\d+)" data-column="(\d+)">([\d.]+)<', html)
        assert len(found) == flow.scores.numel()
        for row, column, score in found:
            assert score == f"{float(flow.scores[int(row), int(column)]):.3f}"
        assert html.count('tabindex="0"') == 1, "one stop for the Tab key"

    def test_the_bridge_hears_the_map_that_the_table_names(self) -> None:
        html = table_html(stored_map("mlp"), "ct-map-mlp")
        assert 'data-plot="ct-map-mlp"' in html
        script = static_text("click_bridge.js")
        for part in ("dataset.plot", ".js-plotly-plot", "plotly_click", "trigger('select', { index: [row, column]"):
            assert part in script

    def test_the_table_of_a_difference_has_every_value_at_its_place(self) -> None:
        difference = compare_flows(stored_map("hidden"), stored_map("mlp"))
        rows = re.findall(r'<tr><th scope="row" dir="auto">(.*?)</th>(.*?)</tr>', difference_table_html(difference))
        assert [label for label, _ in rows][:4] == ["&lt;bos&gt;", "The*", "Space*", "Needle*"]
        shown = [re.findall(r"<td>(.*?)</td>", cells) for _, cells in rows]
        rounded = [[f"{value:+.3f}" for value in row] for row in difference.values.tolist()]
        assert [
            [text.replace("-0.000", "0.000").replace("+0.000", "0.000") for text in row] for row in rounded
        ] == shown

    def test_the_table_of_a_difference_names_both_layers_and_shows_gaps_and_no_markup(self) -> None:
        flow = some_flow(input_tokens=[MARKUP] * 4, answer=MARKUP)
        deeper = replace(flow, scores=flow.scores.repeat_interleave(3, dim=1))
        html = difference_table_html(compare_flows(flow, deeper))
        assert '<th scope="col">0</th><th scope="col">1 | 5</th>' in html
        assert "<td>–</td>" in html
        assert "<img" not in html

    def test_cells_that_were_not_computed_are_no_buttons(self) -> None:
        html = table_html(some_flow(), "x")
        assert html.count("<td>–</td>") == 4
        assert html.count("<button") == 4

    def test_markup_is_text(self) -> None:
        flow = some_flow(input_tokens=[MARKUP] * 4, answer=MARKUP)
        shown = table_html(flow, "x") + detail_html(cell_details(flow, 0, 0)) + numbers_html(flow)
        assert "<img" not in shown

    def test_details_show_each_sample(self) -> None:
        flow = stored_map("hidden")
        html = detail_html(cell_details(flow, 3, 4))
        assert html.count('class="ct-high"') == html.count('class="ct-low"') == flow.settings.samples
        assert f"{float(flow.scores[3, 4]):.4f}" in html

    def test_a_click_on_a_tab_that_shows_a_stored_map_reads_the_stored_map(self) -> None:
        event = gr.SelectData(None, {"index": [3, 4], "value": ""})
        assert "“Needle”, layer 4" in explore.CellChoice("hidden", "hidden").show(event, None, False)
        assert "ct-error" in explore.CellChoice("hidden", "hidden").show(
            gr.SelectData(None, {"index": [99, 4], "value": ""}), None, False
        )

    def test_where_a_result_is_lost_the_stored_map_does_not_stand_in_for_it(self) -> None:
        event = gr.SelectData(None, {"index": [3, 4], "value": ""})
        _, redrawn = explore.redraw("hidden", None, True, False)
        path, written = explore.write_file("hidden", "json", "hidden", None, True)
        for words in (explore.CellChoice("hidden", "hidden").show(event, None, True), redrawn, written):
            assert "Press Run again" in words
        assert path is None


class TestPeaks:
    def test_the_sentence_has_the_numbers_of_the_peaks(self) -> None:
        flow = stored_map("attention")
        peak = flow.peaks(1)[0]
        sentence = peaks_html(flow)
        for part in (f"best {peak.layer}", f"P(Seattle) = {peak.score:.3f}", f"{peak.share:.0%}", peak.token.strip()):
            assert part in sentence

    def test_a_map_that_should_not_be_read_warns_below_it(self) -> None:
        assert warnings_html(stored_map("hidden")) == ""
        assert "unsure" in warnings_html(replace(stored_map("hidden"), high_score=0.05, low_score=0.0))
        assert "too small" in warnings_html(replace(stored_map("hidden"), low_score=0.47))

    def test_notes_are_shown_below_the_maps_once_and_name_the_maps_that_have_them(self) -> None:
        hidden, mlp, attention = (
            replace(stored_map(kind), notes=("Read twice.", *more))
            for kind, more in (("hidden", ()), ("mlp", ("Few <layers>.",)), ("attention", ("Few <layers>.",)))
        )
        notes = re.findall(r'<p class="ct-note">(.*?)</p>', warnings_html(hidden, mlp, attention))
        assert notes == ["Read twice.", "MLP and attention: Few &lt;layers&gt;."]
        assert re.findall(r'<p class="ct-note">(.*?)</p>', warnings_html(mlp)) == ["Read twice.", "Few &lt;layers&gt;."]
        view = views.maps_view("all", {"hidden": hidden, "mlp": mlp, "attention": attention}, status="", origin="")
        assert view.warnings == warnings_html(hidden, mlp, attention)

    def test_notes_are_in_the_html_file(self) -> None:
        assert "Read twice." in html_page(replace(stored_map("hidden"), notes=("Read twice.",)))

    def test_a_map_that_restores_nothing_says_so(self) -> None:
        flow = some_flow()
        nothing = dataclasses.replace(flow, scores=flow.scores * 0 + flow.low_score)
        assert "nowhere" in peaks_html(nothing)


class TestProgress:
    def test_cells_that_needed_no_computation_do_not_count_to_the_time_that_is_left(self) -> None:
        begun = RunUpdate({}, 260, 1800, 0.5)
        assert progress_words(begun, begun) == "260 of 1800 restored runs"
        # 140 in 2 s, so 1400 more in 20 s.
        now = RunUpdate({}, 400, 1800, 2.5)
        assert progress_words(now, begun) == "400 of 1800 restored runs · about 20 s left"


class TestRecipe:
    @pytest.mark.parametrize(
        ("corruption", "words"),
        [
            ("Gaussian noise", "10 noise samples, seed 1 · noise 0.5, given · "),
            ("uniform noise in place of the embeddings", "· uniform noise in place of the embeddings, 0.5, given ·"),
            ("Gaussian noise with 1 x the embedding's covariance", "seed 1 · Gaussian noise with 1 x the embed"),
            ("embeddings set to zero", "single layers · embeddings set to zero · "),
            ("somebody's own", "10 noise samples, seed 1 · somebody's own · "),
        ],
    )
    def test_it_says_what_was_done_to_the_subject(self, corruption: str, words: str) -> None:
        flow = stored_map("hidden")
        settings = replace(flow.settings, corruption=corruption, noise=0.5, noise_rule="given", samples=10, seed=1)
        assert words in settings_line(replace(flow, settings=settings))

    def test_every_corruption_has_its_name_in_the_list(self) -> None:
        labels = [named.label for named in CORRUPTIONS.values()]
        assert all(labels)
        assert len(set(labels)) == len(CORRUPTIONS)

    @pytest.mark.parametrize("name", CORRUPTIONS)
    def test_it_knows_which_corruptions_take_a_level_and_a_seed(self, name: str) -> None:
        named = CORRUPTIONS[name]
        assert named.takes_level == (named.make(1, 0) != named.make(2, 0))
        assert named.is_random == (named.make(1, 0) != named.make(1, 1))


class TestFields:
    @pytest.mark.parametrize("kind", [*SITES, "all"])
    def test_what_fields_show_is_what_is_asked_for(self, kind: str) -> None:
        asked = app_fields(
            "Paris is in",
            "Paris",
            kind=kind,
            samples=3,
            noise=None if "knockout" in kind else 0.25,
            seed=7,
            start_layer=1,
            end_layer=4,
            batch_size=8,
            model="tiny",
            answer="France",
            answer_id=None,
            answer_form="auto",
            occurrence="last",
            # Knockouts are made in the clean run.
            corruption="gaussian" if "knockout" in kind else "uniform",
            subject_tokens_only=kind not in ("head", "span_knockout"),
            chat=True,
            window=5,
            metric="logit difference",
            foil="Rome",
        )
        defaults = {name: field.default for name, field in APP_FIELDS.items()}
        assert asked_for(kind, Picked(), *field_values(asked)) == {**defaults, **asked}

    @pytest.mark.parametrize(
        "second", [{"second_subject": "Rome"}, {"second_prompt": "Rome is in", "second_subject": "Rome"}]
    )
    def test_a_second_prompt_takes_the_place_of_a_corruption(self, second: dict[str, str]) -> None:
        asked = app_fields("Paris is in", "Paris", model="tiny", **second)
        found = asked_for("hidden", Picked(), *field_values(asked))
        assert {name: found[name] for name in asked} == asked
        assert check_fields(found, ServiceSettings()).request.second == OtherPrompt("Rome is in", "Rome")

    def test_a_choice_leaves_out_what_other_choices_take_and_the_page_keeps_it(self) -> None:
        values = with_fields(second_prompt="Rome is in", second_subject="Rome", token="2", patch="zero")
        found = asked_for("hidden", Picked(), *values)
        assert (found["second_prompt"], found["second_subject"], found["token"]) == ("", "", None)
        assert asked_for("knockout", Picked(), *values)["patch"] == "restore"
        elsewhere = with_fields(corruption="a second prompt", second_prompt="Rome is in", elsewhere="3", patch="zero")
        for kind in ("hidden", "knockout"):
            found = asked_for(kind, Picked(), *elsewhere)
            assert (found["corruption"], found["second_prompt"], found["elsewhere"]) == ("gaussian", "", None)
        assert asked_for("head", Picked(), *values)["token"] == 2

    def test_empty_is_automatic_and_zero_is_zero(self) -> None:
        assert asked_for("hidden", Picked(), *with_fields(noise=""))["noise"] is None
        assert asked_for("hidden", Picked(), *with_fields(noise="0"))["noise"] == 0

    @pytest.mark.parametrize("field", ["noise", "end_layer", "batch_size"])
    def test_no_number_is_said(self, field: str) -> None:
        with pytest.raises(SettingsError, match=r"must be a number .given: 'loud'"):
            asked_for("hidden", Picked(), *with_fields(**{field: "loud"}))

    def test_a_picked_answer_holds_for_its_prompt_and_its_text_only(self) -> None:
        picked = Picked(prompt="Paris is in", answer="Rome", answer_id=42)
        asked = asked_for("hidden", picked, *with_fields(answer="Rome"))
        assert (asked["answer"], asked["answer_id"]) == ("", 42)
        assert asked_for("hidden", picked, *with_fields(answer="Roma"))["answer"] == "Roma"
        assert asked_for("hidden", picked, *with_fields(answer="Rome", prompt="Paris was in"))["answer"] == "Rome"

    def test_a_link_s_form_of_the_answer_holds_for_its_prompt_and_its_answer_only(self) -> None:
        picked = Picked(prompt="Paris is in", answer="Rome", answer_form="exact")
        assert asked_for("hidden", picked, *with_fields(answer="Rome"))["answer_form"] == "exact"
        assert asked_for("hidden", picked, *with_fields(answer="Roma"))["answer_form"] == "auto"
        assert asked_for("hidden", picked, *with_fields(answer="Rome", prompt="In Paris"))["answer_form"] == "auto"

    def test_a_token_named_by_its_number_needs_no_memory_of_the_page(self) -> None:
        assert asked_for("hidden", Picked(), *with_fields(answer="token 42"))["answer_id"] == 42
        for text in ("token forty", f"token {'9' * 5000}"):
            asked = asked_for("hidden", Picked(), *with_fields(answer=text))
            assert (asked["answer"], asked["answer_id"]) == (text, None)

    def test_a_picked_occurrence_holds_for_its_subject_only(self) -> None:
        picked = Picked(prompt="Paris is in", subject="Paris", occurrence="first")
        assert asked_for("hidden", picked, *with_fields())["occurrence"] == "first"
        assert asked_for("hidden", picked, *with_fields(subject="is"))["occurrence"] == "last"

    def test_tokens_between_two_equal_ones_cannot_be_told_apart(self) -> None:
        prompt = "a a a"
        spans = tuple(TokenSpan("a", 2 * place, 2 * place + 1) for place in range(3))
        inspection = Inspection(tokens=spans)
        assert subject_picked(inspection, prompt, 0, 0, Picked()).occurrence == "first"
        assert subject_picked(inspection, prompt, 2, 2, Picked()).occurrence == "last"
        with pytest.raises(SubjectError):
            subject_picked(inspection, prompt, 1, 1, Picked())


class TestViews:
    def test_a_tab_has_a_value_for_each_of_its_components(self) -> None:
        for maps, flows in ((1, explore.stored_flows("mlp")), (3, explore.stored_flows("all"))):
            view = views.maps_view("all" if maps == 3 else "mlp", flows, status="", origin="")
            assert len(view.outputs(maps)) == len(views.TabView().outputs(maps)) == 13 + 2 * maps

    def test_side_by_side_maps_share_one_scale(self) -> None:
        drawn = figures.app_figures(explore.stored_flows("all"))
        assert len({(figure.data[0].zmin, figure.data[0].zmax) for figure in drawn}) == 1
        assert not any(figure.data[0].showscale for figure in drawn)

    def test_colours_do_not_change_while_a_map_fills_in(self) -> None:
        flow = stored_map("hidden")
        few = flow.scores.clone()
        few[1:] = float("nan")
        filling, done = figures.app_figure(replace(flow, scores=few)).data[0], figures.app_figure(flow).data[0]
        assert (filling.zmin, filling.zmax) == pytest.approx((done.zmin, done.zmax), abs=1e-3)
        assert filling.zmax == flow.high_score
