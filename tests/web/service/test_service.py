"""The web app's service, registry, settings and words: no Gradio, no browser."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from causal_tracer import CausalTracer, MapSpec
from causal_tracer.errors import (
    CausalTracerError,
    EmbeddedModelError,
    ModelLoadError,
    PromptError,
    SettingsError,
    SubjectError,
    TraceCancelled,
)
from causal_tracer.request.sites import KINDS, SITES
from causal_tracer.web.page import summary
from causal_tracer.web.service.inspection import map_warnings
from causal_tracer.web.service.model_files import public_name
from causal_tracer.web.service.registry import ModelStatus
from causal_tracer.web.service.settings import ServiceSettings
from causal_tracer.web.service.stored import STORED_PROMPT, stored_map, stored_request
from causal_tracer.web.service.tracing import TraceService
from causal_tracer.web.service.updates import RunUpdate
from tests.support.tiny_models import PROMPT, SUBJECT, build_tiny_model, tiny_tokenizer
from tests.support.web_tiny import ASKED, NOISE, app_fields, flow_of, last, load_tiny, tiny_service


@pytest.fixture(scope="module")
def service() -> TraceService:
    return tiny_service()


class TestModels:
    def test_status_follows_the_loading(self):
        reached, go_on = threading.Event(), threading.Event()

        def load(source, report):
            report("converting", 0.3)
            reached.set()
            go_on.wait(10)
            return load_tiny(source, report)

        service = TraceService(ServiceSettings(models=("tiny",)), load=load)
        assert service.status().state == "waiting"
        service.start_loading()
        assert reached.wait(10)
        status = service.status()
        assert (status.state, status.stage, status.fraction) == ("loading", "converting", 0.3)
        assert not status.settled
        first = next(service.trace(ASKED))
        assert first.flow is None
        assert "converting, 30%" in first.waiting
        go_on.set()
        assert flow_of(service, ASKED).kind == "hidden"
        status = service.status()
        assert (status.state, status.title, status.license) == ("ready", "Tiny <GPT-2>", "MIT")
        assert (status.noise, status.layers, status.stage) == (NOISE, 3, "")

    @pytest.mark.parametrize(
        ("raised", "words"),
        [(EmbeddedModelError("Run: pip install it"), "pip install it"), (RuntimeError("bad bytes"), "bad bytes")],
    )
    def test_failure_reaches_who_asks(self, raised, words):
        def load(source, report):
            raise raised

        service = TraceService(ServiceSettings(models=("tiny",)), load=load)
        with pytest.raises(ModelLoadError, match=words):
            last(service.trace(ASKED))
        assert service.status().state == "failed"
        assert words in service.status().error

    def test_loading_starts_once(self):
        calls = []

        def load(source, report):
            calls.append(source)
            return load_tiny(source, report)

        service = TraceService(ServiceSettings(models=("tiny",)), load=load)
        for _ in range(3):
            service.start_loading()
        last(service.trace(ASKED))
        assert calls == ["tiny"]

    def test_only_allowed_models(self, service):
        with pytest.raises(SettingsError, match=r"'gpt9' is not available here\. Available: tiny"):
            service.status("gpt9")
        with pytest.raises(SettingsError, match="is not available here"):
            last(service.trace({**ASKED, "model": "../../etc"}))

    def test_a_folder_is_known_by_its_name_only(self, tmp_path):
        folder = tmp_path / "my-model"
        folder.mkdir()
        assert public_name(str(folder)) == "my-model"
        assert TraceService(ServiceSettings(models=(str(folder),)), load=load_tiny).models == ("my-model",)


class TestTraces:
    @pytest.mark.parametrize("kind", KINDS)
    def test_equals_the_package(self, service, kind):
        flow = flow_of(service, {**ASKED, "kind": kind, "window": 2, "seed": 2})
        tracer = CausalTracer(build_tiny_model("gpt2"), tiny_tokenizer(), noise=NOISE)
        expected = tracer.calculate_hidden_flow(PROMPT, SUBJECT, kind, samples=3, window=2, patch_seed=2)
        torch.testing.assert_close(flow.scores, expected.scores)
        assert flow.low_score == expected.low_score
        assert abs(flow.total_effect) > 0.01

    def test_fills_in(self, service):
        updates = list(service.trace({**ASKED, "samples": 20}))
        known = [int((~update.flow.scores.isnan()).sum()) for update in updates if update.flow is not None]
        assert known == sorted(known)
        assert known[0] == 0
        assert len(known) > 2
        assert updates[-1].done == updates[-1].total == 20 * updates[-1].flow.scores.numel()

    def test_window_follows_the_kind(self, service):
        for kind in KINDS:
            assert flow_of(service, {**ASKED, "kind": kind, "window": None}).settings.window == SITES[kind].window

    @pytest.mark.parametrize("subject", ["", "  ", None])
    def test_no_subject_is_guessed(self, service, subject):
        flow = flow_of(service, app_fields("In truth, Steve Jobs was the founder of", subject, samples=1))
        assert flow.subject_guessed

    def test_noise_of_a_request(self, service):
        automatic = flow_of(service, ASKED)
        assert automatic.settings.noise == NOISE
        none = flow_of(service, {**ASKED, "noise": 0})
        assert (none.settings.noise, none.settings.noise_rule) == (0.0, "given")
        torch.testing.assert_close(none.scores, torch.full_like(none.scores, none.high_score))
        assert flow_of(service, {**ASKED, "noise": 2}).low_score != automatic.low_score
        assert flow_of(service, ASKED).low_score == automatic.low_score

    def test_layers_and_subject_only(self, service):
        flow = flow_of(service, {**ASKED, "start_layer": 1, "end_layer": 2, "subject_tokens_only": True})
        start, end = flow.subject_range
        known = ~flow.scores.isnan()
        assert known[start:end, 1].all()
        assert int(known.sum()) == end - start

    def test_one_run_at_a_time_and_closing_frees_the_model(self, service):
        first = service.trace({**ASKED, "samples": 22})
        while next(first).done == 0:
            pass
        second, third = service.trace({**ASKED, "seed": 11}), service.trace({**ASKED, "seed": 12})
        behind = next(second), next(third)
        assert [update.waiting for update in behind] == [
            "another run on this model",
            "2 runs before this one on this model",
        ]
        assert [update.position for update in behind] == [1, 2]
        threads = threading.active_count()
        first.close()
        assert next(second).flow is not None
        assert next(third).position == 1
        second.close()
        third.close()
        assert threading.active_count() <= threads
        assert flow_of(service, {**ASKED, "seed": 12}).scores.isfinite().all()

    def test_whoever_leaves_the_line_lets_the_next_one_up(self, service):
        first = service.trace({**ASKED, "samples": 21})
        while next(first).done == 0:
            pass
        second, third = service.trace({**ASKED, "seed": 13}), service.trace({**ASKED, "seed": 14})
        assert (next(second).position, next(third).position) == (1, 2)
        second.close()
        assert next(third).position == 1
        first.close()
        assert next(third).position == 0
        third.close()

    def test_a_cancelled_run_ends_within_a_batch_and_frees_the_model(self, service):
        asked, told = [], []

        def cancelled():
            asked.append(True)
            return bool(told)

        run = service.trace({**ASKED, "seed": 15, "samples": 20}, cancelled=cancelled)
        while next(run).done == 0:
            pass
        told.append(True)
        before = len(asked)
        with pytest.raises(TraceCancelled):
            last(run)
        assert len(asked) == before + 1
        assert service.health()["running"] == 0
        assert flow_of(service, {**ASKED, "seed": 15}).scores.isfinite().all()

    def test_all_kinds_in_one_sweep_equal_each_alone(self, service):
        asked = {**ASKED, "kind": "all", "window": 2, "seed": 21}
        update = last(service.trace(asked))
        assert list(update.flows) == list(KINDS)
        assert [flow.settings.window for flow in update.flows.values()] == [2, 2, 2]
        tracer = CausalTracer(build_tiny_model("gpt2"), tiny_tokenizer(), noise=NOISE)
        for kind in KINDS:
            alone = tracer.calculate_hidden_flow(PROMPT, SUBJECT, kind, samples=3, window=2, patch_seed=21)
            torch.testing.assert_close(update.flows[kind].scores, alone.scores, atol=1e-5, rtol=0)

    def test_another_answer(self, service):
        asked = {**ASKED, "answer": " Seattle"}
        flow = flow_of(service, asked)
        assert flow.answer == " Seattle"
        assert flow_of(service, {**ASKED, "answer": "Seattle"}).answer_id == flow.answer_id
        assert flow_of(service, {**ASKED, "answer_id": float(flow.answer_id)}).high_score == flow.high_score

    def test_corruption_and_occurrence_and_batch_size(self, service):
        zero = flow_of(service, {**ASKED, "corruption": "zero"})
        assert zero.settings.corruption == "embeddings set to zero"
        prompt = f"{SUBJECT} and {SUBJECT} in"
        ranges = [
            flow_of(service, app_fields(prompt, SUBJECT, samples=1, occurrence=which)).subject_range
            for which in ("first", "last")
        ]
        assert ranges[0] < ranges[1]
        assert flow_of(service, {**ASKED, "batch_size": 5}).settings.batch_size == 5

    def test_memory_is_handed_back_after_each_run_and_after_one_that_is_left(self, service, monkeypatch):
        handed = []
        monkeypatch.setattr("causal_tracer.web.service.tracing.return_freed_memory", lambda: handed.append(True))
        last(service.trace({**ASKED, "seed": 501}))
        assert len(handed) == 1
        left = service.trace({**ASKED, "seed": 502})
        next(update for update in left if not update.waiting)
        left.close()
        assert len(handed) == 2

    def test_an_error_frees_the_model(self, service):
        with pytest.raises(SubjectError):
            last(service.trace({**ASKED, "subject": "Eiffel Tower"}))
        assert next(service.trace({**ASKED, "seed": 31})).waiting == ""


class TestInput:
    @pytest.mark.parametrize(
        ("changes", "error", "words"),
        [
            ({"prompt": ""}, PromptError, "prompt is empty"),
            ({"prompt": "   \n"}, PromptError, "prompt is empty"),
            ({"prompt": None}, PromptError, "prompt must be a text (given: None)"),
            ({"prompt": 12}, PromptError, "prompt must be a text (given: 12)"),
            ({"subject": ["a"]}, PromptError, "subject must be a text (given: ['a'])"),
            ({"subject": 0}, PromptError, "subject must be a text (given: 0)"),
            ({"prompt": [10**5000]}, PromptError, "prompt must be a text (given: <list too long to write>)"),
            ({"subject": "Eiffel Tower"}, SubjectError, "'Eiffel Tower' is not in the prompt"),
            ({"subject": "space needle"}, SubjectError, "capitals included"),
            ({"prompt": "lower case only", "subject": ""}, SubjectError, "No subject could be guessed"),
            ({"kind": "neurons"}, SettingsError, "neurons"),
            ({"kind": None}, SettingsError, "None"),
            ({"kind": ["hidden"]}, SettingsError, "kind=['hidden'] is not known"),
            ({"prompt": "a \ud800 b"}, PromptError, "half a character"),
            ({"answer": "\udfff"}, PromptError, "half a character"),
            ({"answer": "x" * 201}, PromptError, "201 characters"),
            ({"answer_id": 10**6}, SettingsError, "answer_id=1000000 is out of range"),
            ({"answer_id": -1}, SettingsError, "answer_id=-1 is out of range"),
            ({"answer_id": True}, SettingsError, "answer_id must be an integer (given: True)"),
            ({"answer": 12}, PromptError, "answer must be a text (given: 12)"),
            ({"answer": "Rome", "answer_id": 7}, SettingsError, "answer='Rome' and answer_id=7 are both given"),
            ({"occurrence": "second"}, SettingsError, "occurrence='second' is not known"),
            ({"corruption": "acid"}, SettingsError, "corruption='acid' is not known"),
            ({"corruption": [10**5000]}, SettingsError, "corruption=<list too long to write> is not known"),
            ({"kind": {"x" * 90: {"y" * 90: "z" * 90}}}, SettingsError, "…"),
            ({"corruption": {}}, SettingsError, "corruption={} is not known"),
            ({"corruption": {"class": "GaussianNoise", "level": 1}}, SettingsError, "is not known. Choose 'gaussian'"),
            ({"batch_size": 65}, SettingsError, "64 (CAUSAL_TRACER_BATCH_SIZE)"),
            ({"batch_size": 0}, SettingsError, "batch_size=0 is too small. Give 1 or more"),
            ({"subject_tokens_only": "no"}, SettingsError, "subject_tokens_only must be True or False (given: 'no')"),
            ({"windows": 5}, SettingsError, "The app has no field 'windows'"),
            ({"metric": "beauty"}, SettingsError, "metric='beauty' is not known"),
            ({"patch": "placebo"}, SettingsError, "patch='placebo' is not known"),
            ({"second_prompt": 5}, PromptError, "second_prompt"),
            ({"second_subject": "Rome", "noise": 1.0}, SettingsError, "does not apply with a second prompt"),
            ({"subject": "Atlantis", "second_subject": "Rome"}, SubjectError, "is not in the prompt"),
            ({"token": 1}, SettingsError, "token=1 does not apply to kind='hidden'"),
            ({"kind": "knockout", "patch": "zero"}, SettingsError, "blocks attention and restores nothing"),
            ({"patch": "mean", "chat": True}, SettingsError, "mean_prompts is empty"),
            ({"patch": "mean", "mean_prompts": "a\n" * 101}, SettingsError, "mean_prompts has 101 lines"),
            ({"patch": "mean", "mean_prompts": "a" * 6401}, PromptError, "6401 characters"),
            ({"patch": "zero", "corruption": "mean"}, SettingsError, "nothing is corrupted"),
            ({"kind": "knockout", "second_subject": "Rome", "noise": None}, SettingsError, "nothing is corrupted"),
            ({"patch": "mean", "elsewhere": 7}, SettingsError, "nothing is corrupted"),
            ({"metric": "logit difference", "foil": "x" * 201}, PromptError, "The foil has 201 characters"),
            ({"samples": 10**5000}, SettingsError, "samples=<int too long to write> is too large"),
            ({"samples": {"width": 0.1, "most": 10**5}}, SettingsError, "samples must be an integer (given: {"),
            ({"window": 10**5000}, SettingsError, "window=<int too long to write> is too large"),
            ({"start_layer": 1e300}, SettingsError, "is too large. Give at most"),
            ({"samples": None}, SettingsError, "samples must be an integer (given: None)"),
            ({"samples": 0}, SettingsError, "samples=0 is too small. Give 1 or more"),
            ({"samples": 2.5}, SettingsError, "samples must be an integer (given: 2.5)"),
            ({"samples": "ten"}, SettingsError, "samples must be an integer (given: 'ten')"),
            ({"samples": math.inf}, SettingsError, "samples must be an integer (given: inf)"),
            ({"samples": True}, SettingsError, "samples must be an integer (given: True)"),
            ({"window": 0}, SettingsError, "window=0 is too small. Give 1 or more"),
            ({"window": "wide"}, SettingsError, "window must be an integer (given: 'wide')"),
            ({"seed": -1}, SettingsError, "seed=-1 is too small. Give 0 or more"),
            ({"seed": 2**32}, SettingsError, "seed=4294967296 is too large. Give at most 4294967295"),
            ({"seed": None}, SettingsError, "seed must be an integer (given: None)"),
            ({"noise": -1}, SettingsError, "noise=-1.0 is not a noise level"),
            ({"noise": math.nan}, SettingsError, "noise must be a finite number (given: nan)"),
            ({"noise": "loud"}, SettingsError, "noise must be a finite number (given: 'loud')"),
            ({"noise": "2 sigma"}, SettingsError, "noise must be a finite number (given: '2 sigma')"),
            ({"noise": 1e16}, SettingsError, "noise=1e+16 is not a noise level"),
            ({"noise": 10**400}, SettingsError, "noise must be a number (given: 1000"),
            ({"start_layer": 3}, SettingsError, "is not a range of layers"),
            ({"end_layer": 9}, SettingsError, "is not a range of layers"),
            ({"typo": 1}, SettingsError, "The app has no field 'typo'. Its fields are prompt, subject"),
            ({"start_layer": None}, SettingsError, "start_layer must be an integer (given: None)"),
        ],
    )
    def test_nonsense_is_named(self, service, changes, error, words):
        with pytest.raises(error) as caught:
            last(service.trace({**ASKED, **changes}))
        assert words in str(caught.value)

    def test_a_blank_answer_is_the_model_s_own(self, service):
        assert flow_of(service, {**ASKED, "answer": " "}).answer_id == flow_of(service, ASKED).answer_id

    @pytest.mark.parametrize(
        ("limits", "changes", "words"),
        [
            ({"max_samples": 5}, {"samples": 6}, "5 (CAUSAL_TRACER_MAX_SAMPLES)"),
            ({"max_prompt_tokens": 5}, {}, "at most 5 (CAUSAL_TRACER_MAX_PROMPT_TOKENS)"),
            ({"max_prompt_tokens": 5}, {"prompt": "x" * 10_000}, "at most 5 (CAUSAL_TRACER_MAX_PROMPT_TOKENS)"),
            ({"max_cell_samples": 80}, {}, "at most 80 (CAUSAL_TRACER_MAX_CELL_SAMPLES)"),
        ],
    )
    def test_limits_are_named(self, limits, changes, words):
        service = tiny_service(**limits)
        with pytest.raises(CausalTracerError) as caught:
            last(service.trace({**ASKED, **changes}))
        assert words in str(caught.value)

    def test_limit_counts_what_is_asked_for(self):
        service = tiny_service(max_cell_samples=80)
        assert last(service.trace({**ASKED, "subject_tokens_only": True})).total <= 80

    def test_forms_hand_on_whole_floats(self, service):
        assert flow_of(service, {**ASKED, "samples": 2.0, "seed": 3.0}).settings.samples == 2


class TestSettings:
    def test_from_environment(self):
        settings = ServiceSettings.from_environment(
            {"CAUSAL_TRACER_MODELS": "embedded, /models/x", "CAUSAL_TRACER_MAX_SAMPLES": "7", "OTHER": "1"}
        )
        assert settings.models == ("embedded", "/models/x")
        assert settings.max_samples == 7

    def test_results_are_kept_on_disk_unless_said_otherwise(self):
        at_cache = ServiceSettings.from_environment({"CAUSAL_TRACER_CACHE": "/cache"})
        assert at_cache == ServiceSettings(results_folder=str(Path("/cache/results")))
        assert ServiceSettings.from_environment({"CAUSAL_TRACER_RESULTS_FOLDER": "off"}) == ServiceSettings()

    @pytest.mark.parametrize(("text", "value"), [("1", True), ("On", True), ("no", False), ("", False)])
    def test_switches(self, text, value):
        assert ServiceSettings.from_environment({"CAUSAL_TRACER_MCP": text}).mcp is value

    @pytest.mark.parametrize(
        ("environ", "words"),
        [
            ({"CAUSAL_TRACER_MAX_QUEUE": "many"}, "CAUSAL_TRACER_MAX_QUEUE must be an integer .given: 'many'"),
            ({"CAUSAL_TRACER_MAX_SAMPLES": "0"}, "CAUSAL_TRACER_MAX_SAMPLES=0 is too small"),
            ({"CAUSAL_TRACER_MCP": "perhaps"}, "CAUSAL_TRACER_MCP must be yes or no .given: 'perhaps'"),
            ({"CAUSAL_TRACER_TRUSTED_PROXIES": "-1"}, "CAUSAL_TRACER_TRUSTED_PROXIES=-1 is too small. Give 0"),
            ({"CAUSAL_TRACER_MODELS": " , "}, "CAUSAL_TRACER_MODELS has no model"),
        ],
    )
    def test_bad_values_are_named(self, environ, words):
        with pytest.raises(SettingsError, match=words):
            ServiceSettings.from_environment(environ)


class TestWords:
    def test_user_text_is_escaped(self, service):
        prompt = "<b>The</b> Space Needle <img src=x onerror=alert(1)> is in"
        flow = replace(flow_of(service, app_fields(prompt, "", samples=1)), answer="<i>", notes=("<script>",))
        shown = summary.numbers_html(flow) + summary.warnings_html(flow) + summary.details_html(flow)
        assert "&lt;script&gt;" in shown
        for tag in ("<img", "<b>The", "<i>", "<script>"):
            assert tag not in shown
        assert "&lt;img src=x onerror=alert(1)&gt;" in shown
        assert "<img" not in summary.message_html("'<img>' is not in the prompt")

    def test_says_what_was_done(self, service):
        flow = flow_of(service, app_fields("In truth, Steve Jobs was the founder of", "", samples=2, window=3))
        shown = summary.numbers_html(flow) + summary.details_html(flow)
        for words in ("guessed", "2 noise samples, seed 1", "noise 0.5, given", "windows of 3 layers", " sweep"):
            assert words in shown
        assert "stored" not in shown

    def test_warns_of_unreadable_maps(self, service):
        flow = flow_of(service, ASKED)
        assert not map_warnings(replace(flow, high_score=0.6, low_score=0.1))
        assert "unsure" in map_warnings(replace(flow, high_score=0.09, low_score=0.0))[0]
        assert "too small" in map_warnings(replace(flow, high_score=0.6, low_score=0.58))[0]

    def test_progress(self):
        flow = stored_map("hidden")
        assert summary.progress_words(RunUpdate(waiting="the model")) == "Waiting for the model."
        assert "about 30 s left" in summary.progress_words(RunUpdate({"hidden": flow}, 25, 100, 10.0))
        assert summary.progress_words(RunUpdate({"hidden": flow}, 100, 100, 40.0)) == "Done: 100 restored runs in 40 s."
        assert "2 min left" in summary.progress_words(RunUpdate({"hidden": flow}, 10, 100, 14.0))

    def test_model_line(self):
        status = ModelStatus("embedded", "Gemma", "loading", "converting", 0.5)
        assert "Loading Gemma (converting, 50%)" in summary.model_words(status)
        assert "under the Terms" in summary.model_words(replace(status, state="ready", license="Terms"))
        assert "disk full" in summary.model_words(replace(status, state="failed", error="disk full"))


class TestStoredMaps:
    @pytest.mark.parametrize("kind", SITES)
    def test_say_how_they_were_made(self, kind):
        flow = stored_map(kind)
        settings = flow.settings
        assert (flow.kind, flow.prompt, flow.answer.strip()) == (kind, STORED_PROMPT, "Seattle")
        assert settings.samples == (1 if SITES[kind].blocks else 10)
        assert (settings.seed, settings.window) == (1, SITES[kind].window)
        assert settings.model == "embedded:gemma-3-270m"
        assert settings.noise_rule == "3 sd of the embedding output"
        assert flow.scores.isfinite().all()
        assert not map_warnings(flow)

    @pytest.mark.model
    @pytest.mark.nightly
    def test_come_out_again(self):
        tracer = CausalTracer.from_pretrained("embedded", progress=False)
        for kind, layer in (("hidden", 5), ("mlp", 4), ("attention", 12), ("head", 12), ("knockout", 9)):
            stored = stored_map(kind)
            spec = MapSpec(kind, start_layer=layer, end_layer=layer + 1)
            flow = tracer.trace_maps(stored_request(kind), {kind: spec})[kind]
            torch.testing.assert_close(flow.scores[:, layer], stored.scores[:, layer], atol=1e-4, rtol=0)
            assert flow.low_score == pytest.approx(stored.low_score, abs=1e-4)
            assert flow.high_score == pytest.approx(stored.high_score, abs=1e-4)
            assert flow.settings.noise == pytest.approx(stored.settings.noise, rel=1e-5)


@pytest.mark.slow
def test_package_and_service_need_no_gradio():
    code = (
        "import sys; sys.modules['gradio'] = None\n"
        "import causal_tracer\n"
        "import causal_tracer.web.service.tracing, causal_tracer.web.page.summary, causal_tracer.web.service.stored\n"
        "import causal_tracer.web.launch, causal_tracer.web.page.texts"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
