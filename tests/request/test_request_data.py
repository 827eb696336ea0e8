"""Requests as JSON types: stored completely and read again, with errors for objects that cannot be stored."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from causal_tracer import CausalTracer, HiddenFlow, MapSpec, OtherPrompt, TraceRequest
from causal_tracer.corruption import (
    CounterfactualSubjects,
    GaussianNoise,
    MeanEmbedding,
    StudentTNoise,
    SubjectsNoise,
    ZeroEmbedding,
)
from causal_tracer.errors import ResultFormatError, SettingsError
from causal_tracer.metrics.metric import METRICS
from causal_tracer.prompts.chat import ChatText
from causal_tracer.prompts.prompt import make_prompt
from causal_tracer.request.record import from_data, to_data
from causal_tracer.request.records import RunOptions, SamplesUntil, StoredRequest
from tests.support.tiny_models import (
    OTHER_PROMPT,
    OTHER_SUBJECT,
    PROMPT,
    SUBJECT,
    build_tiny_model,
    tiny_tokenizer,
    tiny_tracer,
)

CHAT = ChatText.from_user("Where is it?", system="Be brief.", thinking=False, assistant_prefix="It is in")


class OwnCorruption:
    """A user-defined corruption."""

    description = "every embedding turned over"

    def __call__(self, subject: Any, samples: int) -> Any:
        return subject.embedded.flip(0)[None]


def own_metric(target: Any) -> Any:
    return METRICS["logit"](target)


def stored(request: TraceRequest, spec: MapSpec, options: RunOptions | None = None) -> dict[str, Any]:
    """Return the request as stored in a file."""
    asked = StoredRequest(request, spec, options or RunOptions())
    data: dict[str, Any] = json.loads(json.dumps(to_data(asked), allow_nan=False))
    return data


def read(data: Any) -> StoredRequest:
    return from_data(StoredRequest, data)


@pytest.mark.parametrize(
    ("changes", "spec"),
    [
        ({}, MapSpec()),
        ({"subject": SUBJECT, "occurrence": "first", "answer": " Seattle", "foil": " Rome"}, MapSpec("mlp", 10)),
        ({"answer_id": 0, "metric": "logit difference", "foil": "x", "direction": "corrupt"}, MapSpec("attention", 3)),
        ({"prompt": CHAT, "samples": SamplesUntil(0.1, 5, 20), "seed": 7}, MapSpec()),
        ({"prompt": make_prompt(tiny_tokenizer(), PROMPT, SUBJECT)}, MapSpec("hidden", severed="mlp")),
        ({"placebo": OtherPrompt(OTHER_PROMPT, OTHER_SUBJECT)}, MapSpec("mlp", source="placebo")),
        ({"placebo": OtherPrompt(CHAT)}, MapSpec("mlp", source="placebo")),
        ({"read": 5, "elsewhere": 7, "top_tokens": 3, "noise": "2 sigma"}, MapSpec(positions=(1, 2))),
        ({"corruption": "uniform", "noise": 0.1 + 0.2}, MapSpec(start_layer=1, end_layer=2, subject_tokens_only=True)),
        ({"noise": SubjectsNoise(("Paris", "Rome"), 2.0)}, MapSpec()),
        ({"corruption": GaussianNoise(0.1 + 0.2, 3, replace=True)}, MapSpec()),
        ({"corruption": StudentTNoise(3)}, MapSpec("head", token=-1)),
        ({"corruption": ZeroEmbedding()}, MapSpec()),
        ({"corruption": MeanEmbedding()}, MapSpec()),
        ({"corruption": CounterfactualSubjects(("Eiffel Tower",))}, MapSpec()),
    ],
    ids=str,
)
def test_a_request_is_read_as_it_was(changes: dict[str, Any], spec: MapSpec) -> None:
    request, options = replace(TraceRequest(PROMPT), **changes), RunOptions(batch_size=4, audit=False)
    assert read(stored(request, spec, options)) == StoredRequest(request, spec, options)


def test_every_field_is_stored() -> None:
    data = stored(TraceRequest(PROMPT), MapSpec())
    for name, record in (("request", TraceRequest), ("map", MapSpec), ("options", RunOptions)):
        assert data[name].keys() == {item.name for item in fields(record)}


def test_the_schema_in_the_documentation_is_that_of_the_records() -> None:
    path = Path(__file__).resolve().parents[2] / "docs" / "request.schema.json"
    assert json.loads(path.read_text(encoding="utf-8")) == TypeAdapter(StoredRequest).json_schema()


def test_a_record_shows_what_differs_from_its_defaults_and_is_made_again_by_it() -> None:
    request = TraceRequest(PROMPT, samples=SamplesUntil(0.1), corruption=GaussianNoise(0.5, 3), noise="2 sigma")
    assert repr(MapSpec("mlp")) == "MapSpec(kind='mlp')"
    assert repr(MapSpec("head", token=-1)) == "MapSpec(kind='head', token=-1)"
    assert eval(repr(request)) == request


@pytest.mark.parametrize(("kind", "window"), [("hidden", 1), ("mlp", 10), ("attention", 10), ("head", 1)])
def test_a_map_has_the_papers_window_if_none_is_given(kind: Any, window: int) -> None:
    assert MapSpec(kind).window == window


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"corruption": OwnCorruption()}, "every embedding turned over"),
        ({"metric": own_metric}, "own_metric"),
    ],
    ids=["corruption", "metric"],
)
def test_what_cannot_be_stored_is_named_and_not_read(changes: dict[str, Any], name: str) -> None:
    data = stored(replace(TraceRequest(PROMPT), **changes), MapSpec())
    with pytest.raises(SettingsError, match=f"{name}.*only the name is stored"):
        read(data)


def test_a_class_of_the_user_s_with_a_known_name_is_the_user_s() -> None:
    namesake = dataclasses.make_dataclass("MeanEmbedding", [], bases=(OwnCorruption,), frozen=True)()
    with pytest.raises(SettingsError, match="only the name is stored"):
        read(stored(TraceRequest(PROMPT, corruption=namesake), MapSpec()))


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": 3},
        {"prompt": None},
        {"prompt": {"messages": []}},
        {"corruption": {"class": "Unknown"}},
        {"subject": 5},
        {"answer": ["a"]},
        {"foil": 1.5},
        {"samples": "many"},
        {"samples": 0},
        {"occurrence": "middle"},
        {"placebo": "text"},
        {"a_field_of_a_newer_version": 1},
    ],
    ids=str,
)
def test_a_damaged_or_newer_request_is_refused_when_read(changes: dict[str, Any]) -> None:
    data = stored(TraceRequest(PROMPT), MapSpec())
    with pytest.raises(SettingsError):
        read({**data, "request": {**data["request"], **changes}})


@pytest.mark.parametrize(
    "changes", [{"kind": "neurons"}, {"subject_tokens_only": "yes"}, {"window": 0}, {"token": 3}], ids=str
)
def test_a_damaged_map_is_refused_when_read(changes: dict[str, Any]) -> None:
    data = stored(TraceRequest(PROMPT), MapSpec())
    with pytest.raises(SettingsError):
        read({**data, "map": {**data["map"], **changes}})


@pytest.mark.parametrize("name", ["request", "map", "options"])
@pytest.mark.parametrize("part", [None, 3, [], {"class": "ChatText"}], ids=str)
def test_a_request_with_a_part_missing_is_refused_when_read(name: str, part: Any) -> None:
    with pytest.raises(SettingsError):
        read({**stored(TraceRequest(PROMPT), MapSpec()), name: part})


class TestInResults:
    def test_each_map_stores_its_own_and_gives_itself_again(self) -> None:
        tracer = tiny_tracer("gpt2")
        request = TraceRequest(PROMPT, SUBJECT, samples=2, placebo=OtherPrompt(OTHER_PROMPT, OTHER_SUBJECT))
        specs = {"a": MapSpec("mlp", 2), "b": MapSpec("hidden", severed="attention"), "c": MapSpec(source="placebo")}
        specs["d"] = MapSpec("head", token=-2)
        for name, flow in tracer.trace_maps(request, specs).items():
            assert flow.request is not None
            asked = flow.stored_request()
            assert asked.map == specs[name]
            traced = tracer.trace(asked.request, spec=asked.map, options=asked.options)
            # Traced alone, the rows are in other batches.
            torch.testing.assert_close(traced.sample_scores, flow.sample_scores, atol=1e-6, rtol=0, equal_nan=True)
            assert (traced.request, traced.settings) == (flow.request, flow.settings)

    @pytest.mark.parametrize("noise", [None, 0.3, "2 sigma", SubjectsNoise(("Paris", "Rome"))], ids=str)
    def test_it_names_the_noise_that_the_tracer_was_given(self, noise: Any) -> None:
        model, tokenizer = build_tiny_model("gpt2"), tiny_tokenizer()
        flow = CausalTracer(model, tokenizer, noise=noise).trace(PROMPT, SUBJECT, samples=2)
        asked = flow.stored_request()
        traced = CausalTracer(model, tokenizer).trace(asked.request, spec=asked.map, options=asked.options)
        assert asked.request.noise == noise
        assert traced.settings == flow.settings
        assert torch.equal(traced.sample_scores, flow.sample_scores)

    def test_it_is_saved_with_the_result(self, tmp_path: Any) -> None:
        flow = tiny_tracer("gpt2").trace(PROMPT, SUBJECT, samples=2, metric=own_metric)
        flow.save(tmp_path / "flow.json")
        found = HiddenFlow.load(tmp_path / "flow.json")
        assert found.request == flow.request
        assert found.to_dict() == flow.to_dict()

    def test_a_result_without_one_opens(self) -> None:
        flow = tiny_tracer("gpt2").calculate_hidden_flow(PROMPT, SUBJECT, samples=1)
        data = flow.to_dict()
        assert data.pop("request") is not None
        older = HiddenFlow.from_dict(data)
        assert older.request is None
        assert older.to_dict() == {**data, "request": None}

    @pytest.mark.parametrize("damaged", [3, "text", [1]], ids=str)
    def test_one_that_is_no_record_is_refused(self, damaged: Any) -> None:
        data = tiny_tracer("gpt2").calculate_hidden_flow(PROMPT, SUBJECT, samples=1).to_dict()
        with pytest.raises(ResultFormatError, match="damaged"):
            HiddenFlow.from_dict({**data, "request": damaged})
