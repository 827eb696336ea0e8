"""The app's endpoints, as `gradio_client` sees them."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import plotly.graph_objects as go
import pytest
import torch

from causal_tracer import CausalTracer, HiddenFlow
from causal_tracer.errors import SettingsError
from causal_tracer.request.sites import KINDS, SITES
from causal_tracer.tracing.loop import trace_maps
from tests.support.tiny_models import PROMPT, SUBJECT, build_tiny_model, tiny_tokenizer
from tests.support.web_app import running_app
from tests.support.web_tiny import NOISE, app_fields, load_tiny, load_tiny_chat, tiny_service

pytestmark = pytest.mark.slow

gradio_client = pytest.importorskip("gradio_client")

MAP_ENDPOINTS = [("/trace_hidden", "hidden"), ("/trace_mlp", "mlp"), ("/trace_attention", "attention")]
SNAPSHOT = Path(__file__).with_name("web_api.json")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    service = tiny_service(max_samples=30, max_prompt_tokens=40)
    service.start_loading()
    with running_app(service) as address:
        yield address


@pytest.fixture(scope="module")
def client(address) -> Iterator[gradio_client.Client]:
    client = gradio_client.Client(address, verbose=False)
    yield client
    client.close()


def described(client: gradio_client.Client) -> dict[str, Any]:
    """Return the API's description of every endpoint, in the snapshot's form."""
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    return {
        name: {
            "parameters": [
                {
                    "name": item["parameter_name"],
                    "type": item["python_type"]["type"],
                    "required": not item["parameter_has_default"],
                    "default": item["parameter_default"],
                }
                for item in info["parameters"]
            ],
            "returns": [item["python_type"]["type"] for item in info["returns"]],
            "description": info["description"],
        }
        for name, info in sorted(endpoints.items())
    }


def task(*maps: dict[str, Any], prompt: Any = PROMPT, model: str = "", **request: Any) -> dict[str, Any]:
    """Return the arguments of /trace for the tests' prompt."""
    made = {"request": {"prompt": prompt, "subject": SUBJECT, **request}, "maps": list(maps), "model": model}
    return made if maps else {name: made[name] for name in ("request", "model")}


def expected(kind: str, **settings) -> HiddenFlow:
    tracer = CausalTracer(build_tiny_model("gpt2"), tiny_tokenizer(), noise=NOISE)
    return tracer.calculate_hidden_flow(PROMPT, SUBJECT, kind, **settings)


def test_the_description_is_the_stored_one(client):
    found = described(client)
    if os.environ.get("WRITE_SNAPSHOT"):
        SNAPSHOT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    stored = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    assert found == stored, "The API has changed. If that is meant, run this test with WRITE_SNAPSHOT=1."


@pytest.mark.parametrize(("endpoint", "kind"), MAP_ENDPOINTS)
def test_a_map_and_plain_numbers(client, endpoint, kind):
    figure, result = client.predict(PROMPT, SUBJECT, samples=3, api_name=endpoint)
    flow = HiddenFlow.from_dict(result)
    torch.testing.assert_close(flow.scores, expected(kind, samples=3, window=SITES[kind].window).scores)
    drawn = go.Figure(figure)
    assert drawn.data[0].type == "heatmap"
    assert "bdata" not in json.dumps(figure)
    assert len(drawn.data[0].z) == len(flow.input_tokens)


def test_json_of_any_kind(client):
    asked = task({"kind": "mlp", "window": 2, "start_layer": 1}, samples=2, noise=0.7, seed=3)
    result = client.predict(asked, api_name="/trace")
    flow = HiddenFlow.from_dict(result)
    assert (flow.kind, flow.settings.window, flow.settings.noise, flow.settings.seed) == ("mlp", 2, 0.7, 3)
    assert flow.scores[:, 0].isnan().all()
    assert flow.scores[:, 1:].isfinite().all()


def test_all_kinds_at_once(client):
    result = client.predict(task(*({"kind": kind} for kind in KINDS), samples=2), api_name="/trace")
    assert result.pop("progress")["waiting"] == ""
    assert list(result) == list(KINDS)
    for kind, data in result.items():
        flow = HiddenFlow.from_dict(data)
        assert (flow.kind, flow.settings.window) == (kind, SITES[kind].window)
        assert flow.scores.isfinite().all()


def test_an_answer_by_text_and_by_id(client):
    by_text = client.predict(task(samples=1, answer=" Rome"), api_name="/trace")
    by_id = client.predict(task(samples=1, answer_id=by_text["answer_id"]), api_name="/trace")
    assert by_text["answer"] == by_id["answer"] == " Rome"
    assert by_text["scores"] == by_id["scores"]
    (_, of_map) = client.predict(PROMPT, SUBJECT, samples=1, answer=" Rome", api_name="/trace_hidden")
    assert of_map["scores"] == by_text["scores"]


def test_partial_results_and_progress_come_first(client):
    job = client.submit(task(samples=20), api_name="/trace")
    whole = HiddenFlow.from_dict(job.result())
    outputs = [output for output in job.outputs() if "scores" in output]
    flows = [HiddenFlow.from_dict(output) for output in outputs]
    assert flows[0].scores.isnan().all()
    assert flows[-1].scores.isfinite().all()
    assert whole.high_score == flows[-1].high_score
    progress = [output["progress"] for output in outputs]
    assert (progress[0]["done"], progress[0]["total"]) == (0, progress[-1]["done"])
    assert progress[-1]["cached"] is False


def test_a_repeated_request_says_that_it_was_known(client):
    first = client.predict(task(samples=4, seed=77), api_name="/trace")
    again = client.predict(task(samples=4, seed=77), api_name="/trace")
    assert (first.pop("progress")["cached"], again.pop("progress")["cached"]) == (False, True)
    assert first == again


def test_cancelling_frees_the_model(client):
    job = client.submit(task(samples=30, seed=5), api_name="/trace")
    next(iter(job))
    job.cancel()
    assert client.predict(task(samples=1, seed=5), api_name="/trace")["kind"] == "hidden"


def test_a_client_that_goes_away_frees_the_model():
    loaded = threading.Event()
    go_on = threading.Event()
    begun = threading.Event()
    ended = threading.Event()

    def load(source, report):
        found = load_tiny(source, report)

        def run(context, request, specs, options, cancelled):
            try:
                for update in trace_maps(context, request, specs, options):
                    begun.set()
                    yield update
                    go_on.wait(0.2)
            finally:
                ended.set()

        loaded.set()
        return replace(found, run=run)

    service = tiny_service(load, max_samples=30)
    service.start_loading()
    assert loaded.wait(300)
    with running_app(service) as address:
        start = httpx.post(f"{address}gradio_api/call/trace", json={"data": [task(samples=30)]})
        event = start.json()["event_id"]
        with httpx.stream("GET", f"{address}gradio_api/call/trace/{event}", timeout=60):
            assert begun.wait(300)
        assert ended.wait(300)
        assert service.health()["running"] == 0


def test_one_client_may_not_have_all_of_the_app():
    service = tiny_service(max_client_runs=1, max_samples=30)
    service.start_loading()
    assert service._slots["tiny"].wait(300)
    with running_app(service) as address:
        client = gradio_client.Client(address, verbose=False)
        # Held by the test, so that the client's request waits.
        held = service.trace(app_fields(PROMPT, SUBJECT, samples=30))
        while next(held).done == 0:
            pass
        waiting = client.submit(task(seed=2, samples=1), api_name="/trace")
        progress = next(iter(waiting))["progress"]
        assert (progress["position"], progress["waiting"]) == (1, "another run on this model")
        with pytest.raises(gradio_client.exceptions.AppError, match="1 request running"):
            client.predict(task(seed=3, samples=1), api_name="/trace")
        held.close()
        assert waiting.result()["progress"]["position"] == 0
        client.close()


def test_inspect_prompt(client):
    found = client.predict(PROMPT, SUBJECT, api_name="/inspect_prompt")
    start, end = found["subject_range"]
    spans = [(token["start"], token["end"]) for token in found["tokens"]]
    assert PROMPT[spans[start][0] : spans[end - 1][1]].strip() == SUBJECT
    result = client.predict(task(samples=1), api_name="/trace")
    assert found["answers"][0]["token_id"] == result["answer_id"]
    assert found["problems"] == []
    problems = client.predict(PROMPT, "Eiffel Tower", api_name="/inspect_prompt")["problems"]
    assert problems[0]["field"] == "subject"


def test_a_chat_message():
    service = tiny_service(load_tiny_chat)
    service.start_loading()
    assert service._slots["tiny"].wait(300)
    with running_app(service) as address:
        client = gradio_client.Client(address, verbose=False)
        conversation = {"messages": [{"role": "user", "content": f"Where is the {SUBJECT}?"}]}
        result = client.predict(task(prompt=conversation, samples=1, top_tokens=5), api_name="/trace")
        (_, of_map) = client.predict(
            f"Where is the {SUBJECT}?", SUBJECT, samples=1, chat=True, api_name="/trace_hidden"
        )
        found = client.predict(f"Where is the {SUBJECT}?", chat=True, api_name="/inspect_prompt")
        assert client.predict(api_name="/status")["chat"] is True
        client.close()
    assert result["prompt"].endswith(f"Where is the {SUBJECT}?[end]\n[assistant]\n")
    assert result["scores"] == of_map["scores"]
    assert found["answers"][0]["token_id"] == result["answer_id"]


def test_models_status_and_health(client, address):
    (model,) = client.predict(api_name="/models")
    status = client.predict(api_name="/status")
    assert (model["model"], model["title"], model["state"]) == ("tiny", "Tiny <GPT-2>", "ready")
    assert model["size"] == f"{model['parameters']} parameters"
    assert (status["state"], status["models"], status["noise"]) == ("ready", ["tiny"], NOISE)
    assert client.predict(api_name="/health")["status"] == "ok"
    answer = httpx.get(f"{address}health")
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")


def test_health_is_503_when_nothing_can_be_served():
    def load(_source, _report):
        raise SettingsError("No.")

    service = tiny_service(load)
    service.start_loading()
    assert service._slots["tiny"].wait(300)
    with running_app(service) as address:
        assert httpx.get(f"{address}health").status_code == 503


def test_the_example_client_runs(address):
    root = Path(__file__).resolve().parents[3]
    script = root / "examples" / "trace_client.py"
    command = [sys.executable, str(script), address, PROMPT, "--subject", SUBJECT, "--samples", "2"]
    # The package need not be installed for the tests.
    environment = {**os.environ, "PYTHONPATH": str(root)}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    assert "Total effect" in ended.stdout
    assert "layer" in ended.stdout


@pytest.mark.parametrize(("program", "script"), [("python", "call.py"), ("sh", "call.sh"), ("node", "call.mjs")])
@pytest.mark.parametrize(
    ("endpoint", "asked", "form"),
    [
        ("trace", task(samples=1), "causal_tracer.HiddenFlow"),
        ("lens", {"request": {"prompt": PROMPT}}, "causal_tracer.LogitLens"),
        ("patch", {"source": PROMPT, "base": PROMPT, "pairs": [[[1, 1], [2, 1]]]}, "causal_tracer.PatchedRun"),
        ("trace", {"request": {"prompt": ""}}, None),
        ("nosuch", {}, None),
    ],
)
def test_the_example_clients_of_all_languages(address, program, script, endpoint, asked, form):
    found = sys.executable if program == "python" else shutil.which(program)
    if found is None or (program == "sh" and shutil.which("curl") is None):
        pytest.skip(f"{program} is not installed")
    path = Path(__file__).resolve().parents[3] / "examples" / script
    command = [found, str(path), address, endpoint, json.dumps(asked)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode == 0) == (form is not None), ended.stderr
    if form is None:
        assert "prompt is empty" in ended.stdout + ended.stderr or "nosuch" in ended.stderr
        assert "Traceback" not in ended.stderr
        return
    answer = json.loads(ended.stdout)
    result = answer[0] if isinstance(answer, list) else answer
    assert result["format"] == form


def test_mcp_offers_the_json_endpoints_only():
    pytest.importorskip("mcp", reason="gradio[mcp] is not installed")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    service = tiny_service(mcp=True)
    service.start_loading()

    async def ask(address: str) -> tuple[set[str], str]:
        async with (
            streamablehttp_client(f"{address}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name for tool in (await session.list_tools()).tools}
            answer = await session.call_tool("trace", {"task": task(samples=1)})
            return tools, str(answer.content)

    with running_app(service, mcp_server=True) as address:
        tools, answer = asyncio.run(ask(address))
    assert tools == {"trace", "lens", "patch", "inspect_prompt", "models", "status", "health"}
    assert "high_score" in answer


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": ""}, "The prompt is empty"),
        ({"prompt": None}, "prompt must be a text, or a conversation"),
        ({"prompt": {"a": 1}}, "prompt has no field 'a'"),
        ({"subject": "Eiffel <b>Tower</b>"}, "'Eiffel <b>Tower</b>' is not in the prompt"),
        ({"samples": 0}, "samples=0"),
        ({"samples": 1000}, "30 (CAUSAL_TRACER_MAX_SAMPLES)"),
        ({"samples": {"width": 0.1}}, "samples=100 is over this app's limit of 30"),
        ({"samples": "many"}, "samples must be an integer (given: 'many')"),
        ({"noise": -2}, "noise=-2 is not a noise level"),
        ({"seed": 1.5}, "seed must be an integer (given: 1.5)"),
        ({"prompt": f"{PROMPT} " * 4}, "40 (CAUSAL_TRACER_MAX_PROMPT_TOKENS)"),
        ({"second": {"text": f"{PROMPT} " * 4}}, "The second prompt has"),
        ({"model": "gpt9"}, "is not available here"),
        ({"prompt": {"messages": [{"role": "user", "content": PROMPT}]}}, "has no chat template"),
        ({"answer": "a", "answer_id": 1}, "are both given"),
        ({"answer_id": 10**6}, "answer_id=1000000 is out of range"),
        ({"occurrence": "second"}, "occurrence='second' is not known"),
        ({"corruption": "acid"}, "corruption='acid' is not known"),
        ({"promt": "x"}, "request has no field 'promt'"),
        ({"prompt": "x" * 10_000}, "characters"),
    ],
)
def test_errors_reach_the_client(client, changes, words):
    with pytest.raises(gradio_client.exceptions.AppError) as caught:
        client.predict(task(**{"samples": 1, **changes}), api_name="/trace")
    assert words in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("endpoint", [name for name, _ in MAP_ENDPOINTS])
def test_errors_of_map_endpoints(client, endpoint):
    with pytest.raises(gradio_client.exceptions.AppError, match="is not in the prompt"):
        client.predict(PROMPT, "Eiffel Tower", api_name=endpoint)


def test_no_noise_is_not_automatic_noise(client):
    flow = HiddenFlow.from_dict(client.predict(task(samples=1, noise=0), api_name="/trace"))
    assert math.isclose(flow.low_score, flow.high_score, rel_tol=1e-5)
