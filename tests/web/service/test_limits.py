"""Many people and broken models: turns, shares, limits, and an app that serves on."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from causal_tracer import CausalTracer
from causal_tracer.errors import BusyError, ModelLoadError, NumericsError, SettingsError, SubjectError
from causal_tracer.tracing.loop import trace_maps
from causal_tracer.web.service import logs
from causal_tracer.web.service.limits import ClientShares, RunQueue, check_work, client_of
from causal_tracer.web.service.model_files import require_safetensors, split_source, stored_identity
from causal_tracer.web.service.registry import ModelSlot, ModelStatus, load_tracer
from causal_tracer.web.service.settings import ServiceSettings
from tests.support.tiny_models import build_tiny_model, tiny_tokenizer
from tests.support.web_tiny import ASKED, flow_of, last, load_tiny, save_tiny, tiny_service


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestRunQueue:
    def test_turns_come_in_order(self):
        queue = RunQueue(5)
        tickets = [queue.join() for _ in range(3)]
        assert [queue.wait(ticket, 0) for ticket in tickets] == [0, 1, 2]
        queue.leave(tickets[1])
        queue.leave(tickets[0])
        assert queue.wait(tickets[2], 0) == 0
        assert len(queue) == 1

    def test_leaving_wakes_the_next_one(self):
        queue = RunQueue(5)
        first, second = queue.join(), queue.join()
        reached: list[int] = []
        waiting = threading.Thread(target=lambda: reached.append(queue.wait(second, 30)))
        waiting.start()
        queue.leave(first)
        waiting.join(timeout=10)
        assert reached == [0]

    def test_full_is_said_with_the_limit(self):
        queue = RunQueue(2)
        for _ in range(3):
            queue.join()
        with pytest.raises(BusyError, match=r"2 requests are waiting already.*2 \(CAUSAL_TRACER_MAX_QUEUE\)"):
            queue.join()

    def test_a_full_queue_leaves_room_for_what_needs_no_model(self):
        service = tiny_service(max_queue=1)
        known = last(service.trace(ASKED))
        runs = [service.trace({**ASKED, "samples": 9, "seed": seed}) for seed in (2, 3)]
        while next(runs[0]).done == 0:
            pass
        assert next(runs[1]).position == 1
        with pytest.raises(BusyError, match="1 request is waiting already"):
            next(service.trace({**ASKED, "seed": 4}))
        assert next(service.trace(ASKED)).flow.to_dict() == known.flow.to_dict()
        assert service.settings.workers > len(service._slots["tiny"].queue)
        for run in runs:
            run.close()

    def test_leaving_twice_does_no_harm(self):
        queue = RunQueue(2)
        ticket = queue.join()
        queue.leave(ticket)
        queue.leave(ticket)
        assert len(queue) == 0


class TestShares:
    def test_requests_under_way(self):
        shares = ClientShares(ServiceSettings(max_client_runs=2))
        refused = pytest.raises(BusyError, match=r"2 \(CAUSAL_TRACER_MAX_CLIENT_RUNS\)")
        with shares.request("a"), shares.request("a"), shares.request("b"), refused, shares.request("a"):
            pass
        with shares.request("a"):
            assert shares._running == {"a": 1}

    def test_work_of_ten_minutes(self):
        clock = Clock()
        shares = ClientShares(ServiceSettings(max_client_cell_samples=100), clock)
        shares.charge("a", 60)
        shares.charge("b", 100)
        with pytest.raises(BusyError, match=r"100 \(CAUSAL_TRACER_MAX_CLIENT_CELL_SAMPLES\)"):
            shares.charge("a", 41)
        shares.charge("a", 40)
        clock.now += 601
        shares.charge("a", 100)
        assert list(shares._work) == ["a"]

    def test_the_app_itself_and_no_limit(self):
        shares = ClientShares(ServiceSettings(max_client_runs=1, max_client_cell_samples=1))
        with shares.request(""), shares.request(""):
            shares.charge("", 10**9)
        ClientShares(ServiceSettings(max_client_cell_samples=0)).charge("a", 10**9)

    def test_of_the_service(self):
        service = tiny_service(max_client_runs=1)
        first = service.trace(ASKED, "a")
        while next(first).done == 0:
            pass
        with pytest.raises(BusyError, match="1 request running"):
            next(service.trace({**ASKED, "seed": 2}, "a"))
        assert next(service.trace({**ASKED, "seed": 2}, "b")).position == 1
        first.close()
        assert last(service.trace({**ASKED, "seed": 3}, "a")).flow is not None

    def test_known_results_cost_nothing(self):
        service = tiny_service(max_client_runs=1, max_client_cell_samples=120)
        work = last(service.trace(ASKED, "a")).total
        assert 60 < work <= 120
        for _ in range(5):
            assert last(service.trace(ASKED, "a")).cached
        with pytest.raises(BusyError, match="MAX_CLIENT_CELL_SAMPLES"):
            last(service.trace({**ASKED, "seed": 2}, "a"))

    @pytest.mark.parametrize(
        ("proxies", "forwarded", "expected"),
        [
            (0, "6.6.6.6", "10.0.0.1"),
            (1, "6.6.6.6, 1.2.3.4", "1.2.3.4"),
            (2, "6.6.6.6, 1.2.3.4, 10.0.0.9", "1.2.3.4"),
            (1, "", "10.0.0.1"),
            (3, "1.2.3.4", "10.0.0.1"),
        ],
    )
    def test_who_asks(self, proxies, forwarded, expected):
        request = SimpleNamespace(headers={"x-forwarded-for": forwarded}, client=SimpleNamespace(host="10.0.0.1"))
        assert client_of(request, ServiceSettings(trusted_proxies=proxies)) == expected

    def test_nobody_asks(self):
        assert client_of(None, ServiceSettings(trusted_proxies=1)) == "unknown"


class TestWork:
    def test_a_larger_model_gets_less(self):
        settings = ServiceSettings(max_cell_samples=1000)
        assert check_work(100, 10, 10, settings) == 1000
        assert check_work(10, 10, 3_000_000_000, settings) == 1000
        with pytest.raises(SettingsError, match=r"1000 \(CAUSAL_TRACER_MAX_CELL_SAMPLES\) for a model of 3 billion"):
            check_work(11, 10, 3_000_000_000, settings)

    def test_all_kinds_count_three_times(self):
        service = tiny_service(max_cell_samples=last(tiny_service().trace(ASKED)).total)
        flow_of(service, ASKED)
        with pytest.raises(SettingsError, match="restored runs"):
            last(service.trace({**ASKED, "kind": "all", "seed": 2}))

    def test_a_run_over_its_time_is_stopped(self, monkeypatch):
        from causal_tracer.web.service import tracing as module

        service = tiny_service(max_seconds=5)
        clock = Clock()
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))
        run = service.trace(ASKED)
        while next(run).done == 0:
            pass
        clock.now += 6
        with pytest.raises(BusyError, match=r"5 \(CAUSAL_TRACER_MAX_SECONDS\) seconds"):
            last(run)
        assert last(service.trace(ASKED)).flow is not None


def broken_runs(error: Callable[[], BaseException]):
    def load(source, report):
        failed = []

        def run(context, request, specs, options, cancelled):
            for number, update in enumerate(trace_maps(context, request, specs, options)):
                if number == 2 and not failed:
                    failed.append(True)
                    raise error()
                yield update

        return replace(load_tiny(source, report), run=run)

    return load


class TestBrokenModels:
    @pytest.mark.parametrize(
        "error",
        [
            lambda: MemoryError(),
            lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        ],
    )
    def test_out_of_memory_is_said_and_the_next_run_works(self, error):
        service = tiny_service(broken_runs(error))
        with pytest.raises(BusyError, match="did not fit in the machine's memory"):
            last(service.trace(ASKED))
        assert flow_of(service, ASKED).scores.isfinite().all()

    def test_another_fault_is_not_called_a_want_of_memory(self):
        service = tiny_service(broken_runs(lambda: RuntimeError("shapes differ")))
        with pytest.raises(RuntimeError, match="shapes differ"):
            last(service.trace(ASKED))
        assert flow_of(service, ASKED).scores.isfinite().all()

    def test_a_model_of_nan_fails_and_the_others_serve(self):
        def load(source, report):
            loaded = load_tiny(source, report)
            if source == "broken":
                with torch.no_grad():
                    loaded.tracer.model.transformer.h[1].mlp.c_fc.weight.fill_(torch.nan)
            return loaded

        service = tiny_service(load, models=("broken", "sound"))
        with pytest.raises(NumericsError):
            last(service.trace(ASKED))
        assert service.inspect(ASKED).problems[0].field == "settings"
        assert flow_of(service, {**ASKED, "model": "sound"}).scores.isfinite().all()
        assert service.health()["status"] == "ok"

    def test_a_model_that_cannot_be_loaded_leaves_the_others(self, tmp_path):
        gone = tmp_path / "gone"
        sound = save_tiny(tmp_path / "sound")
        service = tiny_service(load_tracer, models=(str(sound), str(gone)))
        with pytest.raises(ModelLoadError) as caught:
            last(service.trace({**ASKED, "model": str(gone)}))
        assert "gone" in str(caught.value)
        assert flow_of(service, ASKED).scores.isfinite().all()
        assert service.health()["models"] == {"sound": "ready", str(gone): "failed"}

    def test_runs_on_two_models_do_not_wait_for_each_other(self):
        service = tiny_service(models=("one", "two"))
        first = service.trace({**ASKED, "model": "one"})
        while next(first).done == 0:
            pass
        assert flow_of(service, {**ASKED, "model": "two"}).scores.isfinite().all()
        first.close()

    def test_health_fails_when_nothing_can_be_served(self):
        def load(_source, _report):
            raise ModelLoadError("There is no model here.")

        service = tiny_service(load)
        assert service.health()["status"] == "ok"
        with pytest.raises(ModelLoadError):
            last(service.trace(ASKED))
        assert service.health()["status"] == "failed"

    def test_loading_is_tried_again_after_a_while(self):
        clock, tries = Clock(), []

        def load(source, report):
            tries.append(source)
            if len(tries) == 1:
                raise ModelLoadError("The connection broke.")
            return load_tiny(source, report)

        slot = ModelSlot("tiny", load, clock=clock)
        slot.start()
        assert slot.wait(300)
        slot.start()
        assert slot.status.state == "failed"
        clock.now += 61
        slot.start()
        assert slot.wait(300)
        assert (slot.status.state, slot.status.error, len(tries)) == ("ready", "", 2)


class TestModelFiles:
    def test_only_safetensors_are_taken(self, tmp_path):
        folder = save_tiny(tmp_path / "model")
        require_safetensors(str(folder))
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        service = tiny_service(load_tracer, models=(str(folder),))
        with pytest.raises(ModelLoadError, match=r"has no \.safetensors or \.gguf weights"):
            last(service.trace(ASKED))

    def test_a_folder_with_code_is_not_run(self, tmp_path):
        folder = save_tiny(tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
        (folder / "config.json").write_text(json.dumps(config))
        ran = tmp_path / "ran"
        (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Own: pass\n")
        service = tiny_service(load_tracer, models=(str(folder),))
        with pytest.raises(ModelLoadError):
            last(service.trace(ASKED))
        assert not ran.exists()

    def test_messages_do_not_say_where_a_folder_is(self, tmp_path):
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text("{")
        (folder / "model.safetensors").write_bytes(b"")
        service = tiny_service(load_tracer, models=(str(folder),))
        with pytest.raises(ModelLoadError) as caught:
            last(service.trace(ASKED))
        assert str(tmp_path) not in str(caught.value)
        assert "model" in str(caught.value)

    def test_sizes_are_known_before_loading(self, tmp_path):
        folder = save_tiny(tmp_path / "model")
        (status,) = tiny_service(load_tracer, models=(str(folder),)).statuses()
        tracer = CausalTracer(build_tiny_model("gpt2"), tiny_tokenizer())
        assert (status.state, status.parameters) == ("waiting", sum(p.numel() for p in tracer.model.parameters()))
        assert status.size_words.endswith(" parameters")
        (damaged := folder / "model.safetensors").write_bytes(b"\xff" * 40)
        assert damaged.exists()
        assert tiny_service(load_tracer, models=(str(folder),)).status().parameters is None

    @pytest.mark.parametrize(
        ("count", "words"),
        [(None, ""), (268_098_176, "268M parameters"), (1_200_000_000, "1.2B parameters"), (9000, "9000 parameters")],
    )
    def test_sizes_in_words(self, count, words):
        assert ModelStatus("m", "m", parameters=count).size_words == words

    def test_a_hub_model_with_its_revision(self):
        assert split_source("openai-community/gpt2@607a30d") == ("openai-community/gpt2", "607a30d")
        assert split_source("openai-community/gpt2") == ("openai-community/gpt2", None)
        assert tiny_service(models=("a/b@main",)).models == ("a/b",)
        commit = "0123456789" * 4
        assert stored_identity(f"a/b@{commit}") == f"hub a/b {commit}"
        assert stored_identity("a/b@main") is None
        assert stored_identity("a/b") is None

    @pytest.mark.parametrize("source", ["a/b@", "@main", "a/b@../../x", "a/b@x y", "a/b@-x", "a/b@" + "x" * 200])
    def test_a_revision_that_is_none(self, source):
        with pytest.raises(SettingsError, match="is not a model name with a revision"):
            tiny_service(models=(source,))


class TestLog:
    def lines(self, caplog) -> list[dict]:
        return [
            json.loads(logs.JsonFormatter().format(record)) for record in caplog.records if record.name == logs.REQUESTS
        ]

    def test_says_what_became_of_each_request_and_not_what_was_typed(self, caplog):
        caplog.set_level(logging.INFO, logger=logs.REQUESTS)
        service = tiny_service()
        last(service.trace(ASKED))
        last(service.trace(ASKED))
        with pytest.raises(SettingsError):
            last(service.trace({**ASKED, "samples": 0}))
        stopped = service.trace({**ASKED, "seed": 2})
        next(stopped)
        stopped.close()
        lines = self.lines(caplog)
        assert [line["outcome"] for line in lines] == ["done", "cached", "refused", "stopped"]
        assert lines[0]["runs"] > 0
        assert lines[0]["kind"] == "hidden"
        assert lines[2]["error"] == "SettingsError"
        text = json.dumps(lines) + caplog.text
        assert ASKED["prompt"] not in text
        assert ASKED["subject"] not in text

    def test_has_prompts_where_the_operator_asks_for_them(self, caplog):
        caplog.set_level(logging.INFO, logger=logs.REQUESTS)
        last(tiny_service(log_prompts=True).trace(ASKED))
        assert self.lines(caplog)[0]["prompt"] == ASKED["prompt"]

    def test_no_text_makes_a_second_line(self, caplog):
        caplog.set_level(logging.INFO, logger=logs.REQUESTS)
        with pytest.raises(SubjectError):
            last(tiny_service(log_prompts=True).trace({**ASKED, "prompt": 'x\n{"event": "forged"}'}))
        (record,) = [record for record in caplog.records if record.name == logs.REQUESTS]
        assert "\n" not in logs.JsonFormatter().format(record)
