"""The app's endpoints, as `gradio_client` sees them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import plotly.graph_objects as go
import pytest
import torch

from causal_tracer import CausalTracer, HiddenFlow
from causal_tracer.errors import SettingsError
from causal_tracer.tracer import DEFAULT_WINDOWS
from causal_tracer.web.registry import LoadedTracer
from causal_tracer.web.service import RunUpdate, TraceService
from causal_tracer.web.settings import ServiceSettings
from tests.tiny_models import PROMPT, SUBJECT, build_tiny_model, tiny_tokenizer

gradio_client = pytest.importorskip("gradio_client")

NOISE = 0.5
MAP_ENDPOINTS = [("/trace_hidden", "hidden"), ("/trace_mlp", "mlp"), ("/trace_attention", "attention")]


def load_tiny(source, report):
    tracer = CausalTracer(build_tiny_model("gpt2"), tiny_tokenizer(), noise=NOISE, model_id="tiny")
    return LoadedTracer(tracer, "Tiny GPT-2")


@pytest.fixture(scope="module")
def client() -> Iterator[gradio_client.Client]:
    from causal_tracer.web.layout import build_demo

    service = TraceService(ServiceSettings(models=("tiny",), max_samples=20, max_prompt_tokens=40), load=load_tiny)
    service.start_loading()
    demo = build_demo(service)
    demo.launch(prevent_thread_lock=True, server_name="127.0.0.1", quiet=True, ssr_mode=False)
    client = gradio_client.Client(demo.local_url, verbose=False)
    yield client
    client.close()
    demo.close()


def expected(kind: str, **settings) -> HiddenFlow:
    tracer = CausalTracer(build_tiny_model("gpt2"), tiny_tokenizer(), noise=NOISE)
    return tracer.calculate_hidden_flow(PROMPT, SUBJECT, kind, **settings)


def test_names_and_parameters_are_stable(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    parameters = {name: [item["parameter_name"] for item in info["parameters"]] for name, info in endpoints.items()}
    common = ["prompt", "subject", "samples", "window", "noise", "seed", "subject_tokens_only"]
    assert parameters == {
        "/trace_hidden": common,
        "/trace_mlp": common,
        "/trace_attention": common,
        "/trace": [*common[:2], "kind", *common[2:], "start_layer", "end_layer", "model"],
        "/status": ["model"],
    }
    required = {
        item["parameter_name"] for item in endpoints["/trace"]["parameters"] if not item["parameter_has_default"]
    }
    assert required == {"prompt"}
    assert [len(info["returns"]) for info in endpoints.values()] == [2, 2, 2, 1, 1]


@pytest.mark.parametrize(("endpoint", "kind"), MAP_ENDPOINTS)
def test_a_map_and_plain_numbers(client, endpoint, kind):
    figure, result = client.predict(PROMPT, SUBJECT, samples=3, api_name=endpoint)
    flow = HiddenFlow.from_dict(result)
    torch.testing.assert_close(flow.scores, expected(kind, samples=3, window=DEFAULT_WINDOWS[kind]).scores)
    drawn = go.Figure(figure)
    assert drawn.data[0].type == "heatmap"
    assert "bdata" not in json.dumps(figure)
    assert len(drawn.data[0].z) == len(flow.input_tokens)


def test_json_of_any_kind(client):
    result = client.predict(
        PROMPT, SUBJECT, kind="mlp", samples=2, window=2, noise=0.7, seed=3, start_layer=1, api_name="/trace"
    )
    flow = HiddenFlow.from_dict(result)
    assert (flow.kind, flow.settings.window, flow.settings.noise, flow.settings.seed) == ("mlp", 2, 0.7, 3)
    assert flow.scores[:, 0].isnan().all()
    assert flow.scores[:, 1:].isfinite().all()


def test_partial_results_come_first(client):
    job = client.submit(PROMPT, SUBJECT, samples=20, api_name="/trace")
    whole = HiddenFlow.from_dict(job.result())
    outputs = [HiddenFlow.from_dict(output) for output in job.outputs()]
    assert outputs[0].scores.isnan().all()
    assert outputs[-1].scores.isfinite().all()
    torch.testing.assert_close(whole.high_score, outputs[-1].high_score)


def test_cancelling_frees_the_model(client):
    job = client.submit(PROMPT, SUBJECT, samples=20, api_name="/trace")
    next(iter(job))
    job.cancel()
    assert client.predict(PROMPT, SUBJECT, samples=1, api_name="/trace")["kind"] == "hidden"


def test_status(client):
    status = client.predict(api_name="/status")
    assert (status["state"], status["title"], status["models"]) == ("ready", "Tiny GPT-2", ["tiny"])
    assert status["noise"] == NOISE


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": ""}, "The prompt is empty"),
        ({"prompt": None}, "have to be texts"),
        ({"prompt": {"a": 1}}, "have to be texts"),
        ({"subject": "Eiffel <b>Tower</b>"}, "'Eiffel <b>Tower</b>' is not in the prompt"),
        ({"kind": "neurons"}, "neurons"),
        ({"samples": 0}, "samples=0"),
        ({"samples": 1000}, "20 (CAUSAL_TRACER_MAX_SAMPLES)"),
        ({"samples": "many"}, "samples is 'many'"),
        ({"samples": [1]}, "samples is [1]"),
        ({"noise": -2}, "noise=-2"),
        ({"noise": "x"}, "noise='x'"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"prompt": f"{PROMPT} " * 4}, "40 (CAUSAL_TRACER_MAX_PROMPT_TOKENS)"),
        ({"end_layer": 99}, "names no layers"),
        ({"model": "gpt9"}, "none of this app's models"),
    ],
)
def test_errors_reach_the_client(client, changes, words):
    asked = {"prompt": PROMPT, "subject": SUBJECT, "samples": 1, **changes}
    with pytest.raises(gradio_client.exceptions.AppError) as caught:
        client.predict(**asked, api_name="/trace")
    assert words in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("endpoint", [name for name, _ in MAP_ENDPOINTS])
def test_errors_of_map_endpoints(client, endpoint):
    with pytest.raises(gradio_client.exceptions.AppError, match="is not in the prompt"):
        client.predict(PROMPT, "Eiffel Tower", api_name=endpoint)


def test_no_noise_is_not_automatic_noise(client):
    flow = HiddenFlow.from_dict(client.predict(PROMPT, SUBJECT, samples=1, noise=0, api_name="/trace"))
    assert math.isclose(flow.low_score, flow.high_score, rel_tol=1e-5)


class TestHandlers:
    @pytest.mark.parametrize(("text", "level"), [("", None), ("  ", None), ("0", 0.0), (" 0.5 ", 0.5), ("1e-2", 0.01)])
    def test_noise_field(self, text, level):
        from causal_tracer.web import handlers

        assert handlers.noise_level(text) == level

    def test_noise_field_with_words(self):
        from causal_tracer.web import handlers

        with pytest.raises(SettingsError, match="'loud' is no number"):
            handlers.noise_level("loud")

    def test_updates_are_thinned_and_the_last_one_comes(self):
        from causal_tracer.web import handlers

        def updates():
            yield RunUpdate(None, waiting="the model")
            yield RunUpdate(None, waiting="the model")
            for done in range(50):
                yield RunUpdate(None, done, 50)
            yield RunUpdate(None, 50, 50)

        shown = [(update.waiting, update.done) for update in handlers.thinned(updates(), seconds=60)]
        assert shown == [("the model", 0), ("", 0), ("", 1), ("", 50)]

    def test_leaving_early_closes_what_is_below(self):
        from causal_tracer.web import handlers

        closed = []

        def updates():
            try:
                yield from (RunUpdate(None, done, 9) for done in range(9))
            finally:
                closed.append(True)

        shown = handlers.thinned(updates(), seconds=0)
        next(shown)
        shown.close()
        assert closed == [True]

    def test_an_error_goes_to_the_message_and_run_is_on_again(self):
        from causal_tracer.web import handlers

        service = TraceService(ServiceSettings(models=("tiny",)), load=load_tiny)
        *_, last = handlers.run_map(service, "hidden", PROMPT, "Eiffel <Tower>", 1, 1, "", 1, False)
        message, status, *_, run, stop = last
        assert "&#x27;Eiffel &lt;Tower&gt;&#x27; is not in the prompt" in message
        assert "see the message" in status
        assert (run.interactive, stop.interactive) == (True, False)
