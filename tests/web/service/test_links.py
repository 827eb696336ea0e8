"""Links and Python lines that reproduce a run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import causal_tracer
from causal_tracer import CausalTracer, HiddenFlow, MapSpec, TraceRequest
from causal_tracer.corruption import AUTOMATIC_NOISE_RULE, GaussianNoise
from causal_tracer.errors import SettingsError
from causal_tracer.metrics.metric import METRICS
from causal_tracer.prompts.chat import ChatText
from causal_tracer.request.record import to_data
from causal_tracer.request.records import OtherPrompt, RunOptions, SamplesUntil, StoredRequest
from causal_tracer.web.service.links import fields_of, page_url, parse_link, share_link
from causal_tracer.web.service.registry import LoadedTracer, load_tracer
from causal_tracer.web.service.stored import STORED_PROMPT, STORED_SUBJECT, stored_map
from tests.support.chat_templates import PLAIN
from tests.support.tiny_models import PROMPT, SUBJECT, build_tiny_model, tiny_tokenizer
from tests.support.web_tiny import (
    ASKED,
    NOISE,
    app_fields,
    flow_of,
    last,
    load_tiny,
    load_tiny_chat,
    result_data,
    save_tiny,
    tiny_flow,
    tiny_service,
)

PAGE = "http://127.0.0.1:7860/"
STRANGE = 'a&b=c#d?e "<script>alert(1)</script>" %41 + 東京 🗼 \u202e العربية\nline'


def load_tiny_metaspace(_source, _report):
    """A tokenizer whose labels have no spaces, and one piece for each character and word."""
    characters = sorted(set("▁" + PROMPT.replace(" ", "") + "andof東京🗼"))
    pieces = [("<unk>", 0.0), *((piece, -1.0) for piece in ("▁Space", "▁Needle", "▁the"))]
    pieces += [(character, -9.0) for character in characters]
    inner = Tokenizer(models.Unigram(pieces, unk_id=0))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    return LoadedTracer(CausalTracer(build_tiny_model("gpt2"), tokenizer, noise=NOISE, model_id="tiny"), "Tiny", None)


def query_of(link: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(link).query, keep_blank_values=True))


def stored(request: TraceRequest, spec: MapSpec) -> Any:
    return to_data(StoredRequest(request, spec, RunOptions()))


def round_trip(asked: dict[str, Any]) -> Any:
    parsed = parse_link(query_of(share_link(asked, PAGE)))
    assert parsed.problems == ()
    assert parsed.given
    return parsed.fields


class TestLinks:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"prompt": STRANGE, "subject": "東京 🗼"},
            {"kind": "mlp", "window": 7, "samples": 3, "seed": 2**32 - 1},
            {"kind": "all", "window": 9},
            {"kind": "head", "token": -2},
            {"kind": "span_knockout", "window": 3, "metric": "KL from clean"},
            {"second_prompt": "Rome is\nin", "second_subject": "Rome", "metric": "logit"},
            {"metric": "logit difference", "foil": " Rome", "patch": "corrupt", "elsewhere": 3},
            {"kind": "mlp", "patch": "mean", "mean_prompts": "Rome is in\nBerlin is in", "severed": "attention"},
            {"noise": 0.0},
            {"noise": 1 / 3},
            {"noise": 1e-12},
            {"noise": 1e15},
            {"subject_tokens_only": True, "start_layer": 3, "end_layer": 9},
            {"model": "owner/name", "answer": " Seattle", "occurrence": "first"},
            {"chat": True},
            {"answer_id": 16343, "corruption": "uniform replacing", "batch_size": 8},
        ],
    )
    def test_carry_everything(self, changes):
        asked = {**app_fields(PROMPT, SUBJECT), **changes}
        assert round_trip(asked) == asked

    def test_are_plain_ascii_with_nothing_to_escape_from(self):
        link = share_link(app_fields(STRANGE, "<b>"), PAGE)
        assert link.isascii()
        assert not set("\"'<> \n") & set(link)

    @pytest.mark.parametrize(
        ("query", "name"),
        [
            ({"samples": "many"}, "samples"),
            ({"samples": "-3"}, "samples"),
            ({"samples": "1e3"}, "samples"),
            ({"samples": "9" * 400}, "samples"),
            ({"samples": ["3"]}, "samples"),
            ({"seed": "٣"}, "seed"),
            ({"noise": "nan"}, "noise"),
            ({"noise": "inf"}, "noise"),
            ({"noise": "1_0"}, "noise"),
            ({"kind": "neurons"}, "kind"),
            ({"window": "1,2"}, "window"),
            ({"metric": "beauty"}, "metric"),
            ({"patch": "placebo"}, "patch"),
            ({"severed": "hidden"}, "severed"),
            ({"token": "last"}, "token"),
            ({"subject_tokens_only": "perhaps"}, "subject_tokens_only"),
            ({"chat": "yes"}, "chat"),
            ({"occurrence": "second"}, "occurrence"),
            ({"corruption": "<img>"}, "corruption"),
            ({"revision": "a b"}, "revision"),
            ({"prompt": "\ud800"}, "prompt"),
            ({"prompt": "x" * 20_001}, "prompt"),
        ],
    )
    def test_bad_values_are_reported_and_left_out(self, query, name):
        parsed = parse_link({**query, "subject": SUBJECT})
        (problem,) = parsed.problems
        assert problem.startswith(f"{name}=")
        assert len(problem) < 250
        assert parsed.fields == {"subject": SUBJECT}

    def test_names_that_are_not_ours_are_let_be(self):
        assert parse_link({"__theme": "dark", "utm_source": "x"}) == parse_link({})
        assert not parse_link({}).given

    def test_page_without_its_query(self):
        assert page_url("http://127.0.0.1:7860/app?prompt=x#y", {}) == "http://127.0.0.1:7860/app"

    def test_an_address_that_is_no_page_s_is_not_linked_to(self):
        assert page_url("javascript:alert(1)//x", {}) == ""

    def test_on_a_space_it_is_the_space_s_page(self):
        assert page_url("https://u-s.hf.space/", {"SPACE_ID": "u/s.x_1"}) == "https://huggingface.co/spaces/u/s.x_1"

    @pytest.mark.parametrize("space", ["", "no-owner", "a/b/c", "a/b?x", "../x", 'a/b"><script>', "a/b\n"])
    def test_a_space_id_that_is_none_is_not_put_into_an_address(self, space):
        assert page_url("https://u-s.hf.space/", {"SPACE_ID": space}) == "https://u-s.hf.space/"


class TestOfTheService:
    def test_link_names_model_and_revision(self):
        service = tiny_service()
        flow_of(service, ASKED)
        query = query_of(service.link(ASKED, PAGE))
        assert (query["model"], query["revision"]) == ("tiny", "r1")
        opened = service.open_link(query)
        assert opened.problems == ()
        assert last(service.trace(opened.fields)).cached

    def test_a_result_s_name_of_an_embedded_model_is_known(self):
        service = tiny_service(models=("embedded",))
        asked = {**ASKED, "model": "embedded:gemma-3-270m"}
        query = query_of(service.link(asked, PAGE))
        assert query["model"] == "embedded"
        assert service.open_link({**query, "model": "embedded:gemma-3-270m"}).problems == ()

    def test_another_model_or_revision_is_said(self):
        service = tiny_service()
        service.start_loading()
        assert service._slots["tiny"].wait(300)
        opened = service.open_link({"model": "<gpt9>", "prompt": PROMPT})
        assert "'<gpt9>' in the link is not available here: tiny is used" in opened.problems[0]
        assert opened.fields["model"] == ""
        opened = service.open_link({"model": "tiny", "revision": "r0", "prompt": PROMPT})
        assert "revision r0 of the model, and this app has r1" in opened.problems[0]

    def test_works_after_a_restart(self):
        flow = flow_of(tiny_service(), ASKED)
        link = tiny_service().link(fields_of(flow), PAGE)
        again = tiny_service()
        assert result_data(flow_of(again, again.open_link(query_of(link)).fields)) == result_data(flow)


class TestInputOfAResult:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"kind": "attention", "window": 3},
            {"noise": 0.7},
            {"subject_tokens_only": True, "start_layer": 1, "end_layer": 2},
            {"end_layer": 3},
            {"answer": " Seattle"},
            {"answer": " Seattle Rome"},
            {"answer_id": 0},
            {"corruption": "student-t"},
            {"corruption": "gaussian replacing", "seed": 5},
            {"prompt": "In truth, Steve Jobs was the founder of", "subject": ""},
            {"batch_size": 3},
            {"kind": "head", "token": 2},
            {"kind": "knockout", "window": 2},
            {"kind": "span_knockout", "token": -2},
            {"metric": "rank", "patch": "corrupt"},
            {"metric": "logit difference", "foil": " Rome"},
            {"second_subject": "Rome", "metric": "logit", "noise": None},
            {"second_prompt": "Rome is in", "second_subject": "Rome", "metric": "logit", "noise": None},
            {"patch": "zero", "kind": "mlp"},
            {"patch": "mean", "mean_prompts": "Rome is in\nBerlin is in"},
            {"patch": "mean"},
            {"severed": "mlp", "elsewhere": 7},
        ],
    )
    def test_gives_the_same_result_again(self, changes):
        flow = flow_of(tiny_service(), {**ASKED, **changes})
        assert result_data(flow_of(tiny_service(), fields_of(flow))) == result_data(flow)

    # The tokens do not tell the occurrence: labels lack spaces, split characters, and equal ones overlap.
    @pytest.mark.parametrize("occurrence", ["first", "last"])
    @pytest.mark.parametrize(
        ("prompt", "subject"),
        [
            (f"{SUBJECT} and {SUBJECT} in", SUBJECT),
            ("東京 and 東京 in", "東京"),
            ("🗼🗼🗼 is", "🗼🗼"),
            ("the the the city of", "the the"),
        ],
    )
    @pytest.mark.parametrize("tokenizer", ["byte-level", "metaspace"])
    def test_traces_the_same_occurrence_again(self, tokenizer, prompt, subject, occurrence):
        load = load_tiny if tokenizer == "byte-level" else load_tiny_metaspace
        flow = flow_of(tiny_service(load), {**ASKED, "prompt": prompt, "subject": subject, "occurrence": occurrence})
        again = flow_of(tiny_service(load), fields_of(HiddenFlow.from_dict(flow.to_dict())))
        assert fields_of(flow)["occurrence"] == occurrence
        assert result_data(again) == result_data(flow)

    @pytest.mark.parametrize("occurrence", ["first", "last"])
    def test_gives_a_conversation_again(self, occurrence):
        asked = {**ASKED, "prompt": f" {SUBJECT}, the {SUBJECT}:\nwhere?", "occurrence": occurrence, "chat": True}
        flow = flow_of(tiny_service(load_tiny_chat), asked)
        found = fields_of(HiddenFlow.from_dict(flow.to_dict()))
        assert (found["prompt"], found["chat"], found["occurrence"]) == (asked["prompt"], True, occurrence)
        service = tiny_service(load_tiny_chat)
        opened = service.open_link(query_of(service.link(found, PAGE))).fields
        assert result_data(flow_of(service, opened)) == result_data(flow)

    def test_names_the_revision_of_the_result(self):
        query = query_of(tiny_service().link(fields_of(tiny_flow()), PAGE, revision="r0"))
        assert query["revision"] == "r0"

    def test_gives_the_level_of_noise_that_the_app_would_not_take_by_itself(self):
        flow = tiny_flow()

        def noise_of(rule):
            return fields_of(replace(flow, settings=replace(flow.settings, noise_rule=rule)))["noise"]

        automatic = CausalTracer(build_tiny_model("gpt2"), tiny_tokenizer()).context.noise_rule
        assert automatic == AUTOMATIC_NOISE_RULE
        assert noise_of(automatic) is None
        assert noise_of("2 sd of the embedding output") == noise_of("given") == NOISE

    @pytest.mark.parametrize(
        "changes",
        [
            {"second": OtherPrompt(PROMPT, SUBJECT, align="spans")},
            {"second": OtherPrompt(PROMPT, SUBJECT, pairs=((1, 1),))},
            {"second": OtherPrompt(ChatText.from_user("Where?", system="Be brief."))},
            {"mean_over": ("Rome is\nin",)},
            {"read": 9},
            {"samples": SamplesUntil(1.0)},
            {"corruption": GaussianNoise(1.0, 0)},
            {"prompt": ChatText.from_user("Where is it?", system="Be brief.")},
            {"prompt": ChatText.from_user("Where is it?", assistant_prefix="It is")},
        ],
        ids=str,
    )
    def test_what_the_app_cannot_trace_is_said(self, changes):
        request = replace(TraceRequest(PROMPT, SUBJECT, samples=2), **changes)
        with pytest.raises(SettingsError, match="only the package has"):
            fields_of(replace(tiny_flow(), request=stored(request, MapSpec())))

    @pytest.mark.parametrize(
        "spec",
        [
            MapSpec(source="placebo"),
            MapSpec(positions=(1,)),
            MapSpec("knockout", token=(4, 5)),
        ],
        ids=str,
    )
    def test_controls_are_said(self, spec):
        with pytest.raises(SettingsError, match="only the package has"):
            fields_of(replace(tiny_flow(), request=stored(TraceRequest(PROMPT, SUBJECT), spec)))

    def test_an_object_of_the_user_s_own_is_said(self):
        request = TraceRequest(PROMPT, SUBJECT, metric=METRICS["logit"])
        with pytest.raises(SettingsError, match="a user-defined object"):
            fields_of(replace(tiny_flow(), request=stored(request, MapSpec())))

    @pytest.mark.parametrize(
        "damaged", [{}, {"request": 3, "map": 4}, {"request": {"class": "os"}, "map": []}], ids=str
    )
    def test_a_damaged_request_is_said(self, damaged):
        with pytest.raises(SettingsError, match=r"StoredRequest|TraceRequest|request"):
            fields_of(replace(tiny_flow(), request=damaged))


def test_a_stored_map_of_the_app_gives_its_request():
    asked = fields_of(stored_map("mlp"))
    assert (asked["prompt"], asked["subject"]) == (STORED_PROMPT, STORED_SUBJECT)
    assert (asked["kind"], asked["window"], asked["noise"], asked["samples"]) == ("mlp", None, None, 10)


def test_a_result_that_does_not_store_its_request_has_no_link():
    with pytest.raises(SettingsError, match="does not store its request"):
        fields_of(replace(tiny_flow(), request=None))


class TestPythonLines:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"kind": "all", "window": 2},
            {
                "prompt": f'"""{SUBJECT}\\ \' {{x}} is in\n',
                "kind": "mlp",
                "noise": 0.25,
                "seed": 7,
                "answer": " Rome",
                "start_layer": 1,
                "end_layer": 3,
                "subject_tokens_only": True,
                "batch_size": 5,
                "corruption": "uniform",
                "occurrence": "first",
            },
        ],
    )
    def test_run_and_give_the_numbers_of_the_app(self, tmp_path, monkeypatch, capsys, changes):
        folder = save_tiny(tmp_path / "model")
        service = tiny_service(load_tracer, models=(str(folder),))
        asked = {**ASKED, **changes}
        update = last(service.trace(asked))
        drawn = []
        monkeypatch.setattr(causal_tracer, "plot_hidden_flow_heatmap", drawn.append, raising=False)
        monkeypatch.chdir(tmp_path)
        exec(compile(service.python_lines(asked), "lines", "exec"), {})
        assert [flow.kind for flow in drawn] == list(update.flows)
        for flow in drawn:
            expected = update.flows[flow.kind]
            torch.testing.assert_close(flow.scores, expected.scores, atol=1e-6, rtol=0, equal_nan=True)
            assert math.isclose(flow.low_score, expected.low_score, abs_tol=1e-6)
            assert flow.settings.noise == expected.settings.noise
            assert flow.answer == expected.answer
        assert capsys.readouterr().out

    def test_of_a_chat_message_run_and_give_the_numbers_of_the_app(self, tmp_path, monkeypatch):
        folder = save_tiny(tmp_path / "model")
        (folder / "chat_template.jinja").write_text(PLAIN, encoding="utf-8")
        service = tiny_service(load_tracer, models=(str(folder),))
        asked = {**ASKED, "prompt": f'Isn\'t "it" the {SUBJECT}?\n', "chat": True}
        flow = flow_of(service, asked)
        drawn = []
        monkeypatch.setattr(causal_tracer, "plot_hidden_flow_heatmap", drawn.append, raising=False)
        monkeypatch.chdir(tmp_path)
        exec(compile(service.python_lines(asked), "lines", "exec"), {})
        assert drawn[0].prompt == flow.prompt
        torch.testing.assert_close(drawn[0].scores, flow.scores, atol=1e-6, rtol=0)

    def test_name_the_commit_of_a_hub_model(self):
        service = tiny_service()
        flow_of(service, ASKED)
        assert "from_pretrained('tiny', revision='r1')" in service.python_lines(ASKED)
        assert f"noise={NOISE}" not in service.python_lines(ASKED)

    def test_the_embedded_model_has_one_revision_only(self):
        service = tiny_service(models=("embedded",))
        assert "from_pretrained('embedded')" in service.python_lines(ASKED)
