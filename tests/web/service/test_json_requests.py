"""JSON objects of programs: what they may hold, what becomes of it, and what is refused in words."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from causal_tracer import HiddenFlow
from causal_tracer.errors import CausalTracerError, PromptError, SettingsError
from causal_tracer.prompts.chat import ChatText
from causal_tracer.request.record import to_data
from causal_tracer.request.records import MapSpec, OtherPrompt, RunOptions, SamplesUntil, TraceRequest
from causal_tracer.tracing.loop import trace_maps
from causal_tracer.web.service.json_requests import MOST_MAPS, check_lens, check_patch, check_trace
from causal_tracer.web.service.json_values import MOST_TEXTS
from causal_tracer.web.service.limits import request_size
from causal_tracer.web.service.settings import ServiceSettings
from tests.support.tiny_models import PROMPT, SUBJECT
from tests.support.web_tiny import last, load_tiny_chat, tiny_service

SETTINGS = ServiceSettings(max_prompt_tokens=40, max_samples=20, batch_size=16)
SECOND = PROMPT.replace(SUBJECT, "Eiffel Tower")


def task(*maps: dict[str, Any], **request: Any) -> dict[str, Any]:
    asked = {"request": {"prompt": PROMPT, **request}}
    return {**asked, "maps": list(maps)} if maps else asked


class TestTrace:
    def test_a_prompt_is_enough(self):
        checked = check_trace(task(), SETTINGS)
        assert checked.request == TraceRequest(PROMPT)
        assert checked.specs == {"hidden": MapSpec()}
        assert checked.options == RunOptions(batch_size=16)
        assert checked.model == ""

    def test_null_is_what_is_left_out(self):
        asked = {**task(subject=None, second=None), "maps": None, "options": None}
        assert check_trace(asked, SETTINGS) == check_trace(task(), SETTINGS)

    def test_records_written_as_json_are_read_again(self):
        request = TraceRequest(
            PROMPT,
            SUBJECT,
            answer=" Rome",
            second=OtherPrompt(SECOND, pairs=((0, 0),)),
            samples=SamplesUntil(0.1, most=20),
            foil=" Oslo",
            placebo=OtherPrompt(SECOND),
            mean_over=("a", "b"),
        )
        specs = {"a": MapSpec("head", token=2), "b": MapSpec(severed="mlp", positions=(1, 2))}
        options = RunOptions(batch_size=3, engine="full", audit=False)
        asked = {
            "request": to_data(request),
            "maps": {name: to_data(spec) for name, spec in specs.items()},
            "options": to_data(options),
            "model": "tiny",
        }
        checked = check_trace(asked, SETTINGS)
        assert (checked.request, checked.specs, checked.options, checked.model) == (request, specs, options, "tiny")

    def test_a_conversation(self):
        prompt = {"messages": [{"role": "user", "content": PROMPT}], "thinking": None, "assistant_prefix": "In"}
        checked = check_trace({"request": {"prompt": prompt}}, SETTINGS)
        assert checked.request.prompt == ChatText.from_user(PROMPT, assistant_prefix="In")

    def test_maps_of_a_list_are_named_by_kind(self):
        checked = check_trace(task({"kind": "mlp"}, {"kind": "mlp", "window": 1}, {}), SETTINGS)
        assert {name: spec.window for name, spec in checked.specs.items()} == {"mlp": 10, "mlp-2": 1, "hidden": 1}

    def test_nothing_is_corrupted_where_all_maps_are_made_in_the_clean_run(self):
        clean = check_trace(task({"kind": "knockout"}, {"source": "zero"}), SETTINGS).request
        assert (clean.direction, clean.corruption) == ("corrupt", "none")
        mixed = check_trace(task({"kind": "knockout"}, {}), SETTINGS).request
        given = check_trace(task({"kind": "knockout"}, direction="corrupt"), SETTINGS).request
        assert (mixed.direction, mixed.corruption) == ("restore", "gaussian")
        assert (given.direction, given.corruption) == ("corrupt", "gaussian")

    @pytest.mark.parametrize(
        ("asked", "words"),
        [
            ("text", "/trace takes one JSON object, such as"),
            ([], "/trace takes one JSON object, such as"),
            ({}, "request needs a prompt"),
            ({"prompt": PROMPT}, "has no field 'prompt'. Its fields are request, maps, options, model"),
            ({"request": PROMPT}, "request must be an object with the fields prompt"),
            (task(promt=1), "request has no field 'promt'"),
            (task(second="x"), "request.second must be an object"),
            (task(second={"texts": "x"}), "request.second has no field 'texts'"),
            (task(placebo={"text": 5}), "placebo.text must be a text, or a conversation"),
            (task(corruption=[1]), "corruption must be a name, or an object with its class"),
            (task(corruption={"class": "GaussianNoise", "seed": 1}), "level of the GaussianNoise is not valid"),
            (task(corruption={"class": "user's own"}), "a user-defined object"),
            (task(metric={"class": "ZeroEmbedding"}), "metric={'class': 'ZeroEmbedding'} is not known"),
            (task(mean_over="abc"), "mean_over must be a list"),
            ({**task(), "maps": {"kind": "mlp"}}, "maps.kind must be an object with the fields kind"),
            ({**task(), "maps": {"progress": {}}}, "'progress' cannot be a map's name"),
            ({**task(), "maps": []}, "maps has 0 maps"),
            ({**task(), "maps": 5}, "maps must be a list"),
            ({**task(), "options": {"batch": 1}}, "options has no field 'batch'"),
            (task({"kind": "neurons"}), "kind='neurons' is not known"),
        ],
    )
    def test_what_is_wrong_is_named(self, asked, words):
        with pytest.raises(CausalTracerError, match=re.escape(words)):
            check_trace(asked, SETTINGS)

    @pytest.mark.parametrize(
        ("asked", "words"),
        [
            (task(samples=21), "samples=21 is over this app's limit of 20 (CAUSAL_TRACER_MAX_SAMPLES)"),
            (task(samples={"width": 0.1, "most": 21}), "samples=21 is over"),
            (
                task(corruption={"class": "CounterfactualSubjects", "subjects": ["a"] * 21}),
                "The number of other subjects=21 is over",
            ),
            ({**task(), "options": {"batch_size": 17}}, "16 (CAUSAL_TRACER_BATCH_SIZE)"),
            (task(top_tokens=51), "top_tokens=51 is over"),
            (task(answer="x" * 201), "answer has 201 characters"),
            (task(foil="x" * 201), "foil has 201 characters"),
            (task(subject="x" * 2001), "request.subject has 2001 characters"),
            (task(second={"text": "x" * 2001}), "request.second.text has 2001 characters"),
            (task(mean_over=["x"] * (MOST_TEXTS + 1)), f"mean_over has {MOST_TEXTS + 1} items"),
            (task(mean_over=["x" * 1000] * 50), "characters together"),
            (task({"positions": [1] * 1001}), "maps.0.positions has 1001 items"),
            (task(*[{}] * (MOST_MAPS + 1)), f"Give 1 to {MOST_MAPS}"),
            ({**task(), "maps": {"\ud800": {}}}, "half a character"),
        ],
    )
    def test_the_limits_of_the_app_hold(self, asked, words):
        with pytest.raises(CausalTracerError, match=re.escape(words)):
            check_trace(asked, SETTINGS)

    def test_no_value_comes_back_that_gradio_takes_for_a_file(self):
        file = {"path": "pyproject.toml", "meta": {"_type": "gradio.FileData"}}
        message = {"role": "user", "content": PROMPT, **file}
        noise = {"class": "GaussianNoise", "level": 1, "seed": 1, "replace": file}
        for asked in (task(corruption=noise), {"request": {"prompt": {"messages": [message]}}}):
            with pytest.raises(SettingsError):
                check_trace(asked, SETTINGS)


class TestLens:
    def test_a_prompt_is_enough(self):
        asked = check_lens(task(), SETTINGS)
        assert (asked.request, asked.top, asked.corrupted, asked.restored) == (TraceRequest(PROMPT), 5, False, None)
        assert asked.spec == MapSpec()

    def test_a_cell_of_a_map(self):
        asked = check_lens({**task(), "map": {"kind": "knockout"}, "restored": [1, 2]}, SETTINGS)
        assert (asked.restored, asked.spec.kind, asked.request.direction) == ((1, 2), "knockout", "corrupt")

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"restored": [1]}, "restored must be [row, layer]"),
            ({"restored": 5}, "restored must be a list"),
            ({"restored": [1, 1.5]}, "Each number of restored must be an integer"),
            ({"top": 51}, "Give at most 50"),
            ({"corrupted": 1}, "corrupted must be True or False"),
            ({"maps": []}, "has no field 'maps'"),
        ],
    )
    def test_what_is_wrong_is_named(self, more, words):
        with pytest.raises(SettingsError, match=re.escape(words)):
            check_lens({**task(), **more}, SETTINGS)


PATCH = {"source": PROMPT, "base": SECOND, "pairs": [[[1, 1], [2, 2]]]}


class TestPatch:
    def test_prompts_and_pairs_are_enough(self):
        asked = check_patch(PATCH, SETTINGS)
        assert (asked.source, asked.base, asked.site, asked.answers, asked.top) == (PROMPT, SECOND, "hidden", None, 5)

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"source": 5}, "source must be a text, or a conversation"),
            ({"pairs": 5}, "pairs must be a list"),
            ({"site": "knockout"}, "site='knockout' is not known"),
            ({"answers": "Rome"}, "answers must be a list"),
            ({"answers": [1.5]}, "Each of answers must be an integer"),
            ({"answers": ["x" * 201]}, "201 characters"),
            ({"request": {}}, "has no field 'request'"),
        ],
    )
    def test_what_is_wrong_is_named(self, more, words):
        with pytest.raises(CausalTracerError, match=re.escape(words)):
            check_patch({**PATCH, **more}, SETTINGS)

    def test_what_is_missing_is_named(self):
        with pytest.raises(SettingsError, match="/patch needs 'pairs'"):
            check_patch({"source": PROMPT, "base": PROMPT}, SETTINGS)


def traced(service: Any, asked: dict[str, Any]) -> dict[str, HiddenFlow]:
    return dict(last(service.trace(asked, check=check_trace)).flows)


@pytest.fixture(scope="module")
def service():
    service = tiny_service(max_prompt_tokens=40, max_samples=20)
    service.start_loading()
    assert service._slots["tiny"].wait(300)
    return service


class TestWork:
    @pytest.mark.parametrize(
        "asked",
        [
            task({"kind": "head"}, samples=2),
            task({"kind": "head", "start_layer": 1, "token": 2}, {}, samples=2),
            task({"kind": "knockout", "positions": [1, 2, 2]}),
            task({"kind": "knockout"}, samples=7),
            task({"kind": "span_knockout"}),
            task({"subject_tokens_only": True, "positions": [1, 3, 4]}, samples=2),
            task({"source": "zero"}, samples=9),
            task({}, corruption="zero", samples=9),
            task({}, subject=SUBJECT, corruption={"class": "CounterfactualSubjects", "subjects": ["Needle Space"] * 3}),
            task({"kind": "mlp"}, second={"text": SECOND, "align": "spans"}, metric="probability", samples=9),
        ],
        ids=lambda asked: "-".join([*asked["request"], *(str(spec) for spec in asked["maps"])])[:60],
    )
    def test_it_is_counted_as_it_is_done(self, service, asked):
        checked = check_trace(asked, SETTINGS)
        context = service._slots["tiny"].loaded().tracer.context
        _, cells, samples = request_size(context, checked.request, checked.specs)
        assert cells * samples == last(trace_maps(context, checked.request, checked.specs)).total

    def test_all_maps_count_together(self):
        service = tiny_service(max_cell_samples=10)
        with pytest.raises(SettingsError, match=r"asks for \d+ restored runs.*10 \(CAUSAL_TRACER_MAX_CELL_SAMPLES\)"):
            traced(service, task({"kind": "span_knockout"}, {"kind": "knockout"}))


class TestService:
    @pytest.mark.parametrize(
        "asked",
        [
            task({"kind": "head"}, samples=1),
            task({"kind": "knockout"}, {"kind": "span_knockout", "token": [-1, -2]}),
            task({"source": "zero"}),
            task({"kind": "mlp", "source": "mean"}, mean_over=["One text.", "Another one."]),
            task({}, second={"text": SECOND, "align": "spans"}, answer=" Rome", foil=" Oslo"),
            task({"source": "placebo"}, {}, placebo={"text": SECOND}, samples=1),
            task({"severed": "mlp"}, samples=1),
            task({}, metric="logit difference", answer=" Rome", foil=" Oslo", samples=1),
            task({}, direction="corrupt", elsewhere=0, read=5, samples=1, top_tokens=2),
            task({}, samples={"width": 10, "step": 2, "most": 4}),
            task({}, noise={"subjects": ["Rome"], "multiplier": 2}, corruption="uniform", samples=1),
            task({}, corruption={"class": "StudentTNoise", "seed": 3}, samples=1),
        ],
        ids=lambda asked: "-".join([*asked["request"], *(str(spec) for spec in asked["maps"])])[:60],
    )
    def test_whatever_the_records_express_is_traced(self, service, asked):
        flows = traced(service, asked)
        assert [flow.kind for flow in flows.values()] == [spec.get("kind", "hidden") for spec in asked["maps"]]
        for flow in flows.values():
            assert flow.scores.isfinite().any()
            stored = flow.to_dict()["request"]
            asked_again = {"request": stored["request"], "maps": [stored["map"]], "options": stored["options"]}
            (again,) = traced(service, asked_again).values()
            torch.testing.assert_close(again.scores, flow.scores, equal_nan=True)

    def test_a_conversation_is_traced(self):
        prompt = {"messages": [{"role": "user", "content": f"Where is the {SUBJECT}?"}]}
        (flow,) = traced(tiny_service(load_tiny_chat), {"request": {"prompt": prompt, "samples": 1}}).values()
        assert flow.prompt.endswith(f"Where is the {SUBJECT}?[end]\n[assistant]\n")

    @pytest.mark.parametrize(
        ("more", "name"),
        [
            ({"second": {"text": SECOND}}, "second prompt"),
            ({"placebo": {"text": SECOND}}, "placebo"),
            ({"mean_over": ["Short.", SECOND]}, "text of mean_over"),
        ],
    )
    def test_no_other_text_may_be_too_long(self, more, name):
        words = rf"The {name} has \d+ tokens.*15 \(CAUSAL_TRACER_MAX_PROMPT_TOKENS\)"
        with pytest.raises(PromptError, match=words):
            traced(tiny_service(max_prompt_tokens=15), task({}, **more))
