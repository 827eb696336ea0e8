"""A prompt looked at before it is traced, and a cell looked at afterwards."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import pytest
import torch

from causal_tracer.errors import EmbeddedModelError, SettingsError, SubjectError
from causal_tracer.web.page.detail import cell_details, detail_html
from causal_tracer.web.service.inspection import Inspection, map_warnings, subject_of_tokens
from tests.support.chat_templates import TRIMMED
from tests.support.tiny_models import PROMPT, SUBJECT
from tests.support.web_tiny import (
    ASKED,
    NOISE,
    app_fields,
    flow_of,
    last,
    load_tiny,
    load_tiny_chat,
    tiny_flow,
    tiny_service,
)


@pytest.fixture(scope="module")
def service():
    service = tiny_service(max_prompt_tokens=40)
    service.start_loading()
    assert service._slots["tiny"].wait(300)
    return service


@pytest.fixture(scope="module")
def chat_service():
    service = tiny_service(load_tiny_chat, max_prompt_tokens=60)
    service.start_loading()
    assert service._slots["tiny"].wait(300)
    return service


def problems(found: Inspection) -> dict[str, str]:
    return {problem.field: problem.words for problem in found.problems}


class TestInspection:
    def test_tokens_have_their_characters(self, service):
        found = service.inspect(app_fields(PROMPT, SUBJECT))
        assert found.tokens[0].text == "<bos>"
        assert found.tokens[0].start == found.tokens[0].end
        assert "".join(PROMPT[token.start : token.end] for token in found.tokens[1:]).replace(" ", "") == (
            PROMPT.replace(" ", "")
        )
        start, end = found.subject_range
        covered = PROMPT[found.tokens[start].start : found.tokens[end - 1].end]
        assert covered.strip() == SUBJECT == found.subject
        assert not found.guessed
        assert found.problems == ()
        assert found.noise == NOISE

    def test_answers_are_those_of_the_clean_run_and_of_the_trace(self, service):
        found = service.inspect(ASKED)
        flow = flow_of(service, ASKED)
        assert len(found.answers) == 5
        assert [token.probability for token in found.answers] == sorted(
            (token.probability for token in found.answers), reverse=True
        )
        assert found.answer == found.answers[0]
        assert (found.answer.token_id, found.answer.text) == (flow.answer_id, flow.answer)
        assert found.answer.probability == pytest.approx(flow.high_score, rel=1e-6)

    @pytest.mark.parametrize(
        "answer", [{"answer": " Seattle"}, {"answer": "Seattle"}, {"answer_id": 270}, {"answer": " Seattle Rome tower"}]
    )
    def test_another_answer_has_the_probability_that_the_trace_finds(self, service, answer):
        asked = {**ASKED, **answer}
        found = service.inspect(asked)
        flow = flow_of(service, asked)
        assert found.answer.text == flow.answer
        assert found.answer.probability == pytest.approx(flow.high_score, rel=1e-4)

    def test_a_guessed_subject_says_so(self, service):
        found = service.inspect(app_fields("In truth, Steve Jobs was the founder of"))
        assert (found.subject, found.guessed) == ("Steve Jobs", True)

    def test_the_clean_run_is_that_of_the_trace(self, service):
        asked = app_fields(PROMPT + " the tower", SUBJECT, samples=1)
        assert service.inspect(asked).answer.probability == flow_of(service, asked).high_score

    @pytest.mark.parametrize(
        ("asked", "field", "words"),
        [
            (app_fields(""), "prompt", "The prompt is empty"),
            (app_fields("  \n"), "prompt", "The prompt is empty"),
            (app_fields(PROMPT, "Eiffel <Tower>"), "subject", "'Eiffel <Tower>' is not in the prompt"),
            (app_fields(PROMPT, "space needle"), "subject", "capitals included"),
            (app_fields("lower case only"), "subject", "No subject could be guessed"),
            (app_fields(f"{PROMPT} " * 5), "prompt", "at most 40 (CAUSAL_TRACER_MAX_PROMPT_TOKENS)"),
            (app_fields("x" * 10_000), "prompt", "40 (CAUSAL_TRACER_MAX_PROMPT_TOKENS)"),
            (app_fields(PROMPT, SUBJECT, answer_id=10**5), "answer", "answer_id=100000 is out of range"),
            (app_fields(PROMPT, SUBJECT, samples=0), "settings", "samples=0"),
            (app_fields(PROMPT, SUBJECT, model="gpt9"), "settings", "is not available here"),
            (app_fields("\ud800"), "prompt", "half a character"),
            (app_fields(None), "prompt", "The prompt must be a text"),
        ],
    )
    def test_what_cannot_work_is_said_beside_its_field(self, service, asked, field, words):
        assert words in problems(service.inspect(asked))[field]

    def test_without_a_subject_the_rest_is_there_all_the_same(self, service):
        found = service.inspect(app_fields(PROMPT, "Eiffel Tower"))
        assert found.tokens
        assert found.answers
        assert found.subject_range is None

    def test_an_unsure_model_is_a_warning_and_no_refusal(self, service):
        unlikely = int(torch.tensor(0))
        found = service.inspect({**ASKED, "answer_id": unlikely})
        assert found.answer.probability < 0.1
        assert "unsure" in found.warnings[0]
        assert f"P(answer) = {found.answer.probability:.3f}" in found.warnings[0]
        assert found.problems == ()

    def test_warnings_of_a_map(self):
        flow = tiny_flow()
        assert map_warnings(replace(flow, high_score=0.6, low_score=0.1)) == ()
        in_the_clean_run = replace(
            flow, high_score=0.6, low_score=0.6, settings=replace(flow.settings, ablation="zero")
        )
        assert map_warnings(in_the_clean_run) == ()
        pair = replace(flow, high_score=0.6, low_score=0.6, settings=replace(flow.settings, second="Rome is in"))
        assert "The second prompt hardly worsens" in map_warnings(pair)[0]
        assert "unsure" in map_warnings(replace(flow, high_score=0.09, low_score=0.0))[0]
        small = map_warnings(replace(flow, high_score=0.6, low_score=0.58))[0]
        assert "too small to read a map from: 0.020 (below 0.05)" in small

    def test_while_the_model_loads_the_subject_is_guessed_already(self):
        go_on = threading.Event()

        def load(source, report):
            go_on.wait(300)
            return load_tiny(source, report)

        waiting = tiny_service(load)
        found = waiting.inspect(app_fields("In truth, Steve Jobs was the founder of"))
        assert (found.subject, found.guessed, found.tokens) == ("Steve Jobs", True, ())
        assert "tiny" in found.loading
        assert "not in the prompt" in problems(waiting.inspect(app_fields(PROMPT, "x y z")))["subject"]
        go_on.set()
        assert waiting._slots["tiny"].wait(300)
        assert waiting.inspect(app_fields(PROMPT, SUBJECT)).answers

    def test_a_model_that_failed_is_said(self):
        def load(source, report):
            raise EmbeddedModelError("Run: pip install it")

        failed = tiny_service(load)
        failed.start_loading()
        failed._slots["tiny"].wait(300)
        assert "pip install it" in problems(failed.inspect(ASKED))["settings"]

    def test_does_not_wait_for_a_run_to_end(self, service):
        run = service.trace({**ASKED, "samples": 30, "seed": 9})
        while next(run).done == 0:
            pass
        assert service.inspect(ASKED).answers
        run.close()


class TestChatMessages:
    MESSAGE = f"The {SUBJECT} and the user of {SUBJECT}: where?"

    def test_tokens_are_the_template_s_and_only_the_message_can_be_marked(self, chat_service):
        # Templates may trim it: the characters are those of what was typed.
        typed = f"  {self.MESSAGE} \n"
        found = chat_service.inspect(app_fields(typed, SUBJECT, chat=True))
        tokens = (
            chat_service._slots["tiny"]
            .loaded()
            .tracer.tokenizer.apply_chat_template(
                [{"role": "user", "content": typed}], add_generation_prompt=True, return_dict=True
            )["input_ids"]
        )
        assert len(found.tokens) == len(tokens)
        covered = [typed[token.start : token.end] for token in found.tokens]
        assert "".join(covered).replace(" ", "") == typed.replace(" ", "")
        start, end = found.subject_range
        assert subject_of_tokens(found, typed, start, end - 1) == (SUBJECT, "last")
        assert covered[0] == covered[-1] == ""
        assert found.problems == ()

    def test_a_trimmed_message_s_tokens_are_at_their_characters(self):
        service = tiny_service(lambda *given: load_tiny_chat(*given, template=TRIMMED))
        service.start_loading()
        assert service._slots["tiny"].wait(300)
        typed = f" \n {self.MESSAGE}  "
        found = service.inspect(app_fields(typed, SUBJECT, occurrence="first", chat=True))
        start, end = found.subject_range
        assert subject_of_tokens(found, typed, start, end - 1) == (SUBJECT, "first")
        assert "".join(typed[token.start : token.end] for token in found.tokens).replace(" ", "") == (
            self.MESSAGE.replace(" ", "")
        )

    def test_the_subject_is_found_in_the_message_only(self, chat_service):
        found = chat_service.inspect(app_fields(self.MESSAGE, "user", chat=True))
        start, end = found.subject_range
        assert subject_of_tokens(found, self.MESSAGE, start, end - 1)[0] == "user"
        said = problems(chat_service.inspect(app_fields(self.MESSAGE, "assistant", chat=True)))["subject"]
        assert "in no message" in said
        assert chat_service.inspect(app_fields(self.MESSAGE, "assistant", chat=True)).tokens

    def test_the_answer_is_the_trace_s(self, chat_service):
        asked = app_fields(self.MESSAGE, SUBJECT, samples=1, chat=True)
        found, flow = chat_service.inspect(asked), flow_of(chat_service, asked)
        assert found.answer.token_id == flow.answer_id
        assert found.answer.probability == pytest.approx(flow.high_score, rel=1e-6)
        assert chat_service.inspect({**asked, "chat": False}).answer.probability != found.answer.probability

    def test_a_model_without_a_template_says_so(self, service):
        assert "has no chat template" in problems(service.inspect({**ASKED, "chat": True}))["prompt"]
        with pytest.raises(SettingsError, match="has no chat template"):
            flow_of(service, {**ASKED, "chat": True})

    @pytest.mark.parametrize(
        ("changes", "field", "words"),
        [
            ({"prompt": " "}, "prompt", "The prompt is empty"),
            ({"chat": "yes"}, "settings", "chat must be True or False (given: 'yes')"),
        ],
    )
    def test_what_cannot_work_is_said(self, chat_service, changes, field, words):
        assert words in problems(chat_service.inspect({**ASKED, **{"chat": True, **changes}}))[field]


class TestSubjectOfTokens:
    def test_is_the_text_of_the_tokens(self, service):
        found = service.inspect(app_fields(PROMPT, SUBJECT))
        start, end = found.subject_range
        assert subject_of_tokens(found, PROMPT, start, end - 1) == (SUBJECT, "last")
        assert subject_of_tokens(found, PROMPT, end - 1, start) == (SUBJECT, "last")

    def test_says_which_occurrence(self, service):
        prompt = f"{SUBJECT} and {SUBJECT} and {SUBJECT} in"
        found = service.inspect(app_fields(prompt, SUBJECT))
        at = [i for i, token in enumerate(found.tokens) if prompt[token.start : token.end].strip() == "Space"]
        width = found.subject_range[1] - found.subject_range[0] - 1
        assert subject_of_tokens(found, prompt, at[0], at[0] + width) == (SUBJECT, "first")
        assert subject_of_tokens(found, prompt, at[2], at[2] + width) == (SUBJECT, "last")
        with pytest.raises(SubjectError, match="3 times"):
            subject_of_tokens(found, prompt, at[1], at[1] + width)

    def test_a_part_of_a_character_is_the_whole_character(self, service):
        prompt = "In 東京 is"
        found = service.inspect(app_fields(prompt, "東京"))
        parts = [i for i, token in enumerate(found.tokens) if prompt[token.start : token.end].strip() == "京"]
        assert len(parts) > 1
        assert subject_of_tokens(found, prompt, parts[0], parts[0])[0] == "京"

    @pytest.mark.parametrize("tokens", [(0, 0), (99, 120)])
    def test_no_text_is_no_subject(self, service, tokens):
        found = service.inspect(app_fields(PROMPT, SUBJECT))
        with pytest.raises(SubjectError, match="have no text"):
            subject_of_tokens(found, PROMPT, *tokens)


class TestCellDetails:
    def test_are_the_numbers_of_the_map(self):
        flow = tiny_flow()
        position, layer = flow.subject_range[1] - 1, 1
        found = cell_details(flow, position, layer)
        assert found.samples == tuple(flow.sample_scores[:, position, layer].tolist())
        assert found.score == pytest.approx(sum(found.samples) / len(found.samples), rel=1e-5)
        assert found.effect == pytest.approx(found.score - flow.low_score, rel=1e-5)
        assert found.share == pytest.approx(found.effect / flow.total_effect)
        low, high = found.interval
        assert low < found.effect < high
        assert low == pytest.approx(float(flow.interval()[0][position, layer]))
        assert len(found.restored) == 5
        of_answer = [token.probability for token in found.restored if token.token_id == flow.answer_id]
        assert of_answer == [] or of_answer[0] == pytest.approx(found.score, rel=1e-4)

    @pytest.mark.parametrize(
        ("window", "layer", "restored"),
        [(1, 1, (1, 1)), (2, 1, (0, 1)), (3, 1, (0, 2)), (10, 2, (0, 2)), (2, 0, (0, 0))],
    )
    def test_say_which_layers_were_restored(self, window, layer, restored):
        flow = tiny_flow()
        windowed = replace(flow, settings=replace(flow.settings, window=window))
        layers = f"layer {layer}"
        if restored[0] < restored[1]:
            layers += f", with layers {restored[0]} to {restored[1]} restored"
        assert f"”, {layers}</h3>" in detail_html(cell_details(windowed, 1, layer))

    def test_of_a_cell_that_was_not_computed(self):
        flow = last(tiny_service().trace({**ASKED, "start_layer": 1})).flow
        found = cell_details(flow, flow.subject_range[0], 0)
        assert (found.samples, found.score, found.effect, found.interval, found.restored) == (
            (),
            None,
            None,
            None,
            (),
        )

    def test_a_single_sample_has_no_interval(self):
        flow = flow_of(tiny_service(), {**ASKED, "samples": 1})
        found = cell_details(flow, 2, 1)
        assert found.interval is None
        assert math.isfinite(found.effect)

    @pytest.mark.parametrize("cell", [(-1, 0), (0, 3), (99, 0)])
    def test_outside_the_map(self, cell):
        with pytest.raises(SettingsError, match="no cell at token"):
            cell_details(tiny_flow(), *cell)
