"""The app's endpoints over plain HTTP: a JSON object or a few values are enough, and what is wrong is said in words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from causal_tracer import HiddenFlow
from causal_tracer.results.lens import LogitLens
from causal_tracer.results.patched import PatchedRun
from tests.support.tiny_models import PROMPT
from tests.support.web_app import running_app
from tests.support.web_tiny import tiny_service

pytestmark = pytest.mark.slow

pytest.importorskip("gradio")

TASK = {"request": {"prompt": PROMPT, "samples": 1}}
VALUES = {
    "trace": [TASK],
    "lens": [TASK],
    "patch": [{"source": PROMPT, "base": PROMPT, "pairs": [[[1, 1], [2, 1]]]}],
    "trace_hidden": [PROMPT],
    "trace_mlp": [PROMPT],
    "trace_attention": [PROMPT],
    "inspect_prompt": [PROMPT],
    "models": [],
    "status": [],
    "health": [],
}
ORDER = {
    **dict.fromkeys(("trace", "lens", "patch"), "task"),
    "inspect_prompt": "prompt, subject, model, answer, occurrence, chat, answer_form",
    "status": "model",
    **dict.fromkeys(("models", "health"), "none"),
    **dict.fromkeys(
        ("trace_hidden", "trace_mlp", "trace_attention"),
        "prompt, subject, samples, window, noise, seed, subject_tokens_only, model, answer, chat",
    ),
}
FILE = {"path": "pyproject.toml", "meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    service = tiny_service(max_samples=30, max_prompt_tokens=40)
    service.start_loading()
    assert service._slots["tiny"].wait(300)
    with running_app(service) as address:
        yield f"{address}gradio_api/"


def events(address: str, endpoint: str, body: Any, by: str = "call") -> list[tuple[str, Any]]:
    """All events of a call, each with its data."""
    posted = httpx.post(f"{address}{by}/{endpoint}", json=body, timeout=60)
    assert posted.status_code == 200, posted.text
    answer = httpx.get(f"{address}call/{endpoint}/{posted.json()['event_id']}", timeout=120)
    parts = [part.split("\n") for part in answer.text.strip().split("\n\n")]
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in parts]


def complete(address: str, endpoint: str, body: Any, by: str = "call") -> Any:
    """Return the answer of a call that succeeds."""
    kind, data = events(address, endpoint, body, by)[-1]
    assert kind == "complete", data
    return data


def refused(address: str, endpoint: str, values: list[Any]) -> str:
    """The message of a call that is refused."""
    kind, data = events(address, endpoint, {"data": values})[-1]
    assert kind == "error"
    return str(data["error"])


@pytest.mark.parametrize("endpoint", VALUES)
def test_what_is_required_is_enough(address, endpoint):
    assert complete(address, endpoint, {"data": VALUES[endpoint]})


@pytest.mark.parametrize("endpoint", VALUES)
def test_named_values_are_taken_too(address, endpoint):
    names = ORDER[endpoint].split(", ")
    named = dict(zip(names, VALUES[endpoint], strict=False))
    assert complete(address, endpoint, named, by="call/v2")


@pytest.mark.parametrize("endpoint", VALUES)
def test_too_many_values_are_refused_with_the_names_of_those_there_are(address, endpoint, capfd):
    values = VALUES[endpoint] + [None] * 20
    words = refused(address, endpoint, values)
    assert words.endswith(f"(given: {len(values)} values). Its values, in order: {ORDER[endpoint]}.")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("endpoint", [name for name, values in VALUES.items() if values])
def test_too_few_values_are_refused_with_the_one_that_is_missing(address, endpoint, capfd):
    first = ORDER[endpoint].split(",")[0]
    assert refused(address, endpoint, []).startswith(f"/{endpoint} needs '{first}' (given: 0 values).")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("endpoint", ["trace", "lens", "patch"])
@pytest.mark.parametrize("value", ["text", 5, None, [], [{}]])
def test_what_is_no_object_is_refused(address, endpoint, value):
    assert f"/{endpoint} takes one JSON object, such as" in refused(address, endpoint, [value])


@pytest.mark.parametrize("endpoint", ["trace", "lens", "patch", "trace_mlp"])
def test_values_that_look_like_files_are_no_files(address, endpoint, capfd):
    # Gradio would look for the file, and say nothing.
    assert re.search("has no field 'path'|must be a text", refused(address, endpoint, [FILE]))
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("call/nosuch", {"data": []}, 404, "There is no endpoint /nosuch"),
        ("call/v2/nosuch", {}, 404, "There is no endpoint /nosuch"),
        ("call/v2/trace", {}, 422, "required argument: task"),
        ("call/v2/trace", {"prompt": PROMPT}, 422, "`prompt` is not a valid"),
        ("call/trace", {"prompt": PROMPT}, 422, "Field required"),
        ("call/trace", {"data": "text"}, 422, "valid list"),
    ],
)
def test_a_call_that_reaches_no_endpoint_is_answered_in_words(address, path, body, status, words, capfd):
    answer = httpx.post(f"{address}{path}", json=body, timeout=60)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert "Traceback" not in capfd.readouterr().err


def test_partial_maps_come_first(address):
    found = events(address, "trace", {"data": [{"request": {**TASK["request"], "samples": 20, "seed": 5}}]})
    assert found[-1][0] == "complete"
    flows = [HiddenFlow.from_dict(data[0]) for _, data in found if "scores" in data[0]]
    assert flows[0].scores.isnan().all()
    assert flows[-1].scores.isfinite().all()
    assert found[-1][1][0]["progress"]["done"] == found[-1][1][0]["progress"]["total"] > 0


def test_several_maps_come_by_name(address):
    maps = {"a": {"kind": "knockout"}, "b": {"kind": "span_knockout"}}
    (found,) = complete(address, "trace", {"data": [{"request": {"prompt": PROMPT}, "maps": maps}]})
    assert list(found) == ["a", "b", "progress"]
    assert [HiddenFlow.from_dict(found[name]).kind for name in maps] == ["knockout", "span_knockout"]


def test_a_lens_and_a_patched_run(address):
    (lens,) = complete(address, "lens", {"data": [{**TASK, "top": 2, "restored": [1, 1]}]})
    assert "restored" in LogitLens.from_dict(lens).run
    (patched,) = complete(address, "patch", {"data": VALUES["patch"]})
    assert PatchedRun.from_dict(patched).pairs == (((1, 1), (2, 1)),)


def test_what_is_published_says_what_each_argument_means(address):
    paths = httpx.get(f"{address}openapi.json", timeout=60).json()["paths"]
    for endpoint, order in ORDER.items():
        post = paths[f"/gradio_api/call/v2/{endpoint}"]["post"]
        assert post["summary"].strip().endswith(".")
        assert ". Output must be fetched" in post["description"]
        taken = post["requestBody"]["content"]["application/json"]["schema"]["properties"]
        assert ", ".join(taken) == ("" if order == "none" else order)
        assert all(value["description"] for value in taken.values())
    task = paths["/gradio_api/call/v2/trace"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    inside = {name: value["description"] for name, value in task["properties"]["task"]["properties"].items()}
    assert {"mean_over", "CounterfactualSubjects", "assistant_prefix"} <= set(re.findall(r"\w+", inside["request"]))
    assert "span_knockout" in inside["maps"]
    assert "batch_size" in inside["options"]
