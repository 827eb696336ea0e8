"""Tracing as on ZeroGPU: each trace in a process forked for it, by a stand-in for `spaces.GPU`."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from causal_tracer import CausalTracer
from causal_tracer.corruption import GaussianNoise, SubjectsNoise
from causal_tracer.errors import BusyError, NumericsError, SettingsError, SubjectError, TraceCancelled
from causal_tracer.metrics.metric import METRICS
from causal_tracer.model.engine_mode import model_lock
from causal_tracer.prompts.chat import ChatText
from causal_tracer.request.record import from_data, to_data
from causal_tracer.request.records import MapSpec, OtherPrompt, RunOptions, SamplesUntil, TraceRequest
from causal_tracer.sweep import engine
from causal_tracer.tracing.loop import trace_maps
from causal_tracer.web.service.settings import ServiceSettings
from causal_tracer.web.service.tracing import TraceService
from causal_tracer.web.zero_gpu import tracing as zero_gpu
from causal_tracer.web.zero_gpu.tracing import place_models, seconds_asked
from tests.support.forking_gpu import ForkingGpu
from tests.support.tiny_models import PROMPT, SUBJECT, build_tiny_model, tiny_tokenizer
from tests.support.web_tiny import app_fields

REQUEST = TraceRequest(PROMPT, SUBJECT, samples=3, top_tokens=2)
SPECS = {"hidden": MapSpec("hidden"), "mlp": MapSpec("mlp", 2)}
OPTIONS = RunOptions(batch_size=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny_model("gpt2").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def checks(monkeypatch, tmp_path):
    """Count the first-use checks in all processes by the lines of a file; no check is known at first."""
    log = tmp_path / "checks"
    log.touch()
    check = engine.check_resume_modes

    def noted(*args, **kwargs):
        with log.open("a") as file:
            file.write("checked\n")
        return check(*args, **kwargs)

    monkeypatch.setattr(engine, "check_resume_modes", noted)
    monkeypatch.setattr(engine, "_engine_checks", {})
    return lambda: len(log.read_text().splitlines())


class Placed:
    """One model, placed, and traced in processes forked for it."""

    def __init__(self, source, duration=seconds_asked):
        self.gpu = ForkingGpu()
        self.models = place_models((source,))

        @self.gpu(duration=duration)
        def trace_on_gpu(asked):
            yield from self.models.compute(asked)

        self.load = self.models.loader(trace_on_gpu)
        self.loaded = self.load(source, lambda stage, fraction: None)
        self.context = self.loaded.tracer.context

    def trace(self, request=REQUEST, specs=SPECS):
        return list(self.loaded.run(self.context, request, specs, OPTIONS))


@pytest.fixture
def placed(folder, checks):
    return Placed(folder)


def test_a_map_from_the_other_process_is_the_same(placed):
    *_, last = placed.trace()
    tracer = CausalTracer(build_tiny_model("gpt2"), tiny_tokenizer())
    for name, spec in SPECS.items():
        expected = tracer.calculate_hidden_flow(
            PROMPT, SUBJECT, spec.kind, samples=3, window=spec.window, batch_size=16
        )
        torch.testing.assert_close(last.flows[name].sample_scores, expected.sample_scores, rtol=1e-5, atol=1e-7)
    assert last.done == last.total > 0
    assert last.flows["hidden"].top_tokens is not None


def test_nothing_but_text_crosses(placed):
    placed.trace()
    assert len(placed.gpu.crossed) > 1
    assert {type(item) for item in placed.gpu.crossed} == {str}
    for item in placed.gpu.crossed:
        json.loads(item)


def test_a_model_is_checked_in_one_call_and_not_in_each(placed, checks):
    for _ in range(3):
        placed.trace()
    assert checks() == 1


def test_locks_that_the_page_holds_do_not_stop_a_call(placed):
    held, done = threading.Event(), threading.Event()

    def hold():
        with model_lock(placed.context.traced.model), placed.context.traced.lock:
            held.set()
            done.wait(60)

    # The first thread of the forked process may get the number of the last of this one, and with it its locks.
    holder, other = threading.Thread(target=hold), threading.Thread(target=done.wait, args=(60,))
    holder.start()
    other.start()
    try:
        assert held.wait(10)
        *_, last = placed.trace()
        assert last.done == last.total
    finally:
        done.set()
        holder.join()
        other.join()


def test_threads_that_the_page_computes_with_do_not_stop_a_call(placed, monkeypatch):
    # Large enough to be shared out among threads, which a fork does not copy.
    def shared_out(*args):
        torch.randn(2000, 500).matmul(torch.randn(500, 2000)).softmax(dim=-1).sum()
        return trace_maps(*args)

    monkeypatch.setattr(zero_gpu, "trace_maps", shared_out)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        list(shared_out(placed.context, REQUEST, SPECS, OPTIONS))
        *_, last = placed.trace()
    finally:
        torch.set_num_threads(threads)
    assert last.done == last.total


@pytest.mark.parametrize(
    ("request_", "spec", "error", "words"),
    [
        (TraceRequest(PROMPT, SUBJECT, answer_id=10**6, samples=1), MapSpec(), SettingsError, "1000000"),
        (TraceRequest(PROMPT, SUBJECT, samples=1), MapSpec(positions=(99,)), SettingsError, "positions"),
        (TraceRequest(PROMPT, SUBJECT, metric=METRICS["logit"]), MapSpec(), SettingsError, "user-defined object"),
    ],
)
def test_errors_of_the_other_process_keep_class_and_words(placed, request_, spec, error, words):
    with pytest.raises(error, match=words):
        placed.trace(request_, {"hidden": spec})
    assert len(placed.gpu.durations) == 1


@pytest.mark.parametrize("error", [NumericsError("not a number"), torch.OutOfMemoryError("too large")])
def test_failures_of_a_run_come_back_as_what_they_are(placed, monkeypatch, error):
    def failing(*args):
        raise error
        yield

    monkeypatch.setattr(zero_gpu, "trace_maps", failing)
    with pytest.raises(type(error), match=str(error)):
        placed.trace()


def test_a_prompt_that_cannot_be_traced_takes_no_gpu(placed):
    with pytest.raises(SubjectError):
        placed.trace(TraceRequest(PROMPT, "Eiffel Tower"))
    assert placed.gpu.durations == []


def test_what_zero_gpu_says_reaches_people(placed, monkeypatch):
    def unforeseen(*args):
        raise KeyError("a bug")
        yield

    monkeypatch.setattr(zero_gpu, "trace_maps", unforeseen)
    with pytest.raises(BusyError, match="KeyError"):
        placed.trace()


def test_time_asked_for_grows_with_the_work(placed):
    placed.trace()
    placed.trace()
    first, second = placed.gpu.durations
    assert first > second > 0

    def seconds(samples=10, **changes):
        specs = {name: replace(spec, **changes) for name, spec in SPECS.items()}
        request = TraceRequest(PROMPT, SUBJECT, samples=samples)
        return zero_gpu.gpu_seconds(placed.context, request, specs, checked=True)

    few = seconds()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zero_gpu, "_OPERATIONS_A_SECOND", 1e8)
        assert seconds(samples=40) > seconds(samples=20) > seconds() > few
        assert seconds(subject_tokens_only=True) < seconds()
        assert seconds(end_layer=1) < seconds()
        assert seconds(samples=SamplesUntil(0.1, most=40)) == seconds(samples=40)
        with pytest.raises(SettingsError, match=r"restored runs, about \d+ seconds of a GPU"):
            seconds(samples=10**5)


def test_leaving_early_ends_the_call(placed):
    with closing(placed.loaded.run(placed.context, TraceRequest(PROMPT, SUBJECT, samples=50), SPECS)) as updates:
        next(updates)
    assert placed.gpu.stopped == 1
    *_, last = placed.trace()
    assert last.done == last.total


def test_a_cancelled_run_ends_with_the_next_answer(placed):
    told = []
    request = TraceRequest(PROMPT, SUBJECT, samples=50)
    run = placed.loaded.run(placed.context, request, SPECS, OPTIONS, lambda: bool(told))
    next(run)
    told.append(True)
    with pytest.raises(TraceCancelled):
        next(run)
    assert placed.gpu.stopped == 1


def test_the_service_traces_through_it(folder, checks):
    placed = Placed(folder)
    service = TraceService(ServiceSettings(models=(folder,)), load=placed.load)
    service.start_loading()
    *_, last = service.trace(app_fields(PROMPT, SUBJECT, samples=2, kind="all", noise=0.25))
    assert sorted(last.flows) == ["attention", "hidden", "mlp"]
    assert all(flow.scores.isfinite().any() for flow in last.flows.values())
    assert {flow.settings.noise for flow in last.flows.values()} == {0.25}
    assert len(placed.gpu.durations) == 1


def test_a_model_that_was_not_there_at_the_start_is_refused(placed):
    with pytest.raises(zero_gpu.ModelLoadError, match="was not loaded before the page"):
        placed.load("other", lambda stage, fraction: None)


@pytest.mark.parametrize(
    "record",
    [
        REQUEST,
        TraceRequest(ChatText.from_user("Where is it?"), samples=SamplesUntil(0.1), noise="2 sigma"),
        TraceRequest(PROMPT, placebo=OtherPrompt("Another", "one"), answer_id=3),
        TraceRequest(PROMPT, corruption=GaussianNoise(1.0, 0), noise=SubjectsNoise(("Paris", "Rome"))),
        MapSpec("mlp", 3, positions=(1, 2), severed="attention"),
        MapSpec(source="placebo", start_layer=1, end_layer=2, subject_tokens_only=True),
        RunOptions(batch_size=3, engine="full", audit=False),
    ],
    ids=str,
)
def test_a_request_crosses_as_it_is(record):
    assert from_data(type(record), json.loads(json.dumps(to_data(record)))) == record
