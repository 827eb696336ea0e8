"""Finished results: found again by everything that determines them, also after failures of the disk."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from causal_tracer.errors import ModelLoadError
from causal_tracer.request.records import MapSpec, StoredRequest
from causal_tracer.request.sites import KINDS
from causal_tracer.web.page.detail import cell_details
from causal_tracer.web.service import result_store
from causal_tracer.web.service.app_fields import APP_CORRUPTIONS
from causal_tracer.web.service.field_checks import check_fields
from causal_tracer.web.service.registry import ModelIdentity, load_tracer
from causal_tracer.web.service.result_store import ResultKey, ResultStore, memory_of, result_key
from causal_tracer.web.service.settings import ServiceSettings
from tests.support.tiny_models import OTHER_PROMPT
from tests.support.web_tiny import ASKED, flow_of, last, load_tiny, save_tiny, tiny_flow, tiny_service

KEY = ResultKey("ab" * 32, lasting=True)
MIB = 2**20
IDENTITY = ModelIdentity("hub tiny r1", lasting=True)


def store(folder: Path | None, memory: int = 64 * MIB, disk: int = 64 * MIB) -> ResultStore:
    return ResultStore(folder, memory, disk)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


def keys_of(asked, identity=IDENTITY):
    checked = check_fields(asked, ServiceSettings())
    requests = [StoredRequest(checked.request, spec, checked.options) for spec in checked.specs.values()]
    return [result_key(identity, request).digest for request in requests]


def no_model(_source, _report):
    raise ModelLoadError("There is no model here.")


class TestKeys:
    def test_everything_that_determines_a_result_is_in_the_key(self):
        changes = [
            {"prompt": OTHER_PROMPT},
            {"subject": "Space"},
            {"chat": True},
            {"subject": ""},
            {"kind": "mlp"},
            {"samples": 4},
            {"window": 2},
            {"noise": 0},
            {"noise": 0.5},
            {"seed": 2},
            {"subject_tokens_only": True},
            {"start_layer": 1},
            {"end_layer": 2},
            {"answer": " Rome"},
            {"answer_id": 5},
            {"answer_form": "exact"},
            {"occurrence": "first"},
            {"batch_size": 8},
            *({"corruption": name} for name in APP_CORRUPTIONS if name != "gaussian"),
        ]
        keys = [key for asked in (ASKED, *({**ASKED, **change} for change in changes)) for key in keys_of(asked)]
        keys += keys_of(ASKED, ModelIdentity("hub tiny r2", lasting=True))
        assert len(set(keys)) == len(keys)

    def test_the_same_asked_in_another_way_has_the_same_key(self):
        same = {**ASKED, "samples": 3.0, "subject": f" {ASKED['subject']} ", "window": None, "batch_size": 64}
        assert keys_of(same) == keys_of(ASKED)
        assert keys_of({**ASKED, "kind": "all", "window": 1})[0] == keys_of(ASKED)[0]

    def test_versions_are_in_the_key(self, monkeypatch):
        before = keys_of(ASKED)
        monkeypatch.setattr(result_store, "_runtime", lambda: ("9.9",))
        assert keys_of(ASKED) != before

    def test_a_severed_map_is_another(self):
        checked = check_fields(ASKED, ServiceSettings())
        plain, severed = (
            StoredRequest(checked.request, spec, checked.options)
            for spec in (MapSpec("hidden"), MapSpec("hidden", severed="mlp"))
        )
        assert result_key(IDENTITY, plain) != result_key(IDENTITY, severed)


class TestMemory:
    def test_least_recently_used_goes_first_and_the_bound_holds(self):
        flow = tiny_flow()
        size = memory_of(replace(flow, layer_outputs=OrderedDict()))
        held = store(None, memory=2 * size + size // 2)
        first, second, third = (ResultKey(letter * 64, lasting=True) for letter in "abc")
        held.put(first, flow)
        held.put(second, flow)
        assert held.get(first) is not None
        held.put(third, flow)
        assert [held.get(key) is not None for key in (first, second, third)] == [True, False, True]
        assert held.nbytes <= 2 * size + size // 2

    def test_the_same_key_twice_counts_once(self):
        held = store(None)
        held.put(KEY, tiny_flow())
        size = held.nbytes
        held.put(KEY, tiny_flow())
        assert held.nbytes == size > 0

    def test_activations_are_not_kept(self):
        held = store(None)
        held.put(KEY, tiny_flow())
        assert tiny_flow().layer_outputs
        assert not held.get(KEY).layer_outputs

    def test_what_is_larger_than_the_bound_is_not_held(self):
        held = store(None, memory=10)
        held.put(KEY, tiny_flow())
        assert held.get(KEY) is None
        assert held.nbytes == 0


class TestDisk:
    def test_another_process_finds_identical_numbers(self, tmp_path):
        store(tmp_path).put(KEY, tiny_flow())
        found = store(tmp_path).get(KEY)
        assert found.to_dict() == tiny_flow().to_dict()

    def test_what_no_other_process_may_find_stays_in_memory(self, tmp_path):
        kept = store(tmp_path)
        kept.put(ResultKey("cd" * 32, lasting=False), tiny_flow())
        assert files(tmp_path) == []

    @pytest.mark.parametrize(
        "damage",
        [
            lambda body: b"",
            lambda body: body[: len(body) // 2],
            lambda body: body.replace(b"0.", b"1.", 1),
            lambda body: body.partition(b"\n")[2],
            lambda body: b"\xff" * len(body),
        ],
        ids=["empty", "cut", "a digit", "no checksum", "no text"],
    )
    def test_a_damaged_entry_is_removed_and_computed_again(self, tmp_path, damage):
        service = tiny_service(results_folder=str(tmp_path))
        flow = flow_of(service, ASKED)
        (name,) = files(tmp_path)
        path = tmp_path / name
        path.write_bytes(damage(path.read_bytes()))
        again = tiny_service(results_folder=str(tmp_path))
        again.start_loading()
        update = last(again.trace(ASKED))
        assert not update.cached
        assert update.flow.to_dict() == flow.to_dict()
        assert last(tiny_service(results_folder=str(tmp_path)).trace(ASKED)).flow is not None
        assert files(tmp_path) == [name]

    def test_a_valid_checksum_of_another_thing_is_damaged_too(self, tmp_path):
        store(tmp_path).put(KEY, tiny_flow())
        (name,) = files(tmp_path)
        body = b'{"format": "something"}'
        (tmp_path / name).write_bytes(result_store.hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        assert store(tmp_path).get(KEY) is None
        assert files(tmp_path) == []

    def test_a_full_disk_costs_only_the_file(self, tmp_path, monkeypatch, caplog):
        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        kept = store(tmp_path)
        kept.put(KEY, tiny_flow())
        assert files(tmp_path) == []
        assert kept.get(KEY) is not None
        assert "No space left" in caplog.text

    def test_a_folder_that_cannot_be_made_costs_only_the_file(self, tmp_path):
        (tmp_path / "file").write_text("")
        kept = store(tmp_path / "file" / "folder")
        kept.put(KEY, tiny_flow())
        assert kept.get(KEY) is not None

    def test_the_oldest_files_make_room(self, tmp_path):
        kept = store(tmp_path)
        kept.put(KEY, tiny_flow())
        size = (tmp_path / files(tmp_path)[0]).stat().st_size
        keys = [ResultKey(letter * 64, lasting=True) for letter in "bcd"]
        small = store(tmp_path, disk=3 * size + size // 2)
        for number, key in enumerate(keys):
            os.utime(tmp_path / f"{KEY.digest}.flow", (1, 1))
            small.put(key, tiny_flow())
            os.utime(tmp_path / f"{key.digest}.flow", (10 + number, 10 + number))
        assert files(tmp_path) == [f"{key.digest}.flow" for key in keys]
        # Read again, the oldest becomes the newest.
        assert store(tmp_path).get(keys[0]) is not None
        small.put(KEY, tiny_flow())
        assert files(tmp_path) == sorted(f"{key.digest}.flow" for key in (KEY, keys[0], keys[2]))

    def test_leftovers_of_a_killed_process_go_after_a_while(self, tmp_path):
        old, new = tmp_path / "x.1.2.part", tmp_path / "y.1.2.part"
        for path in (old, new):
            path.write_bytes(b"half")
        os.utime(old, (time.time() - 7200, time.time() - 7200))
        store(tmp_path).put(KEY, tiny_flow())
        assert files(tmp_path) == [f"{KEY.digest}.flow", new.name]

    @pytest.mark.slow
    def test_killed_while_it_writes_leaves_no_half_result(self, tmp_path):
        script = (
            "import os, signal, sys\n"
            "from pathlib import Path\n"
            "from causal_tracer.web.service.result_store import ResultKey, ResultStore\n"
            "from causal_tracer.web.service.stored import stored_map\n"
            "store = ResultStore(Path(sys.argv[1]), 2**26, 2**26)\n"
            "flow = stored_map('hidden')\n"
            "store.put(ResultKey('ef' * 32, True), flow)\n"
            # The next one is killed between the writing and the moving.
            "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
            f"store.put(ResultKey('{KEY.digest}', True), flow)\n"
        )
        ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=120, check=False)
        assert ended.returncode == -signal.SIGKILL
        assert [name for name in files(tmp_path) if name.endswith(".part")]
        kept = store(tmp_path)
        assert kept.get(KEY) is None
        assert kept.get(ResultKey("ef" * 32, lasting=True)) is not None
        kept.put(KEY, tiny_flow())
        assert store(tmp_path).get(KEY).to_dict() == tiny_flow().to_dict()

    def test_two_apps_share_a_folder(self, tmp_path):
        flow = tiny_flow()
        size = memory_of(flow)
        stores = [store(tmp_path, memory=size // 2, disk=2 * size) for _ in range(2)]
        keys = [ResultKey(f"{number:02d}" * 32, lasting=True) for number in range(6)]
        wrong: list[object] = []

        def work(kept: ResultStore) -> None:
            try:
                for _ in range(4):
                    for key in keys:
                        kept.put(key, flow)
                        found = kept.get(key)
                        if found is not None and not torch.equal(found.sample_scores, flow.sample_scores):
                            wrong.append(key)
            except Exception as error:  # noqa: BLE001
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(kept,)) for kept in stores for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert wrong == []
        assert not [name for name in files(tmp_path) if name.endswith(".part")]


class TestService:
    def test_a_repeated_request_does_not_touch_the_model(self, monkeypatch):
        service = tiny_service()
        first = last(service.trace(ASKED))
        assert not first.cached
        slot = service._slots["tiny"]
        monkeypatch.setattr(slot, "loaded", None)
        (again,) = service.trace(ASKED)
        details = cell_details(again.flow, again.flow.subject_range[1] - 1, 1)
        assert again.cached
        assert again.done == again.total == first.total
        assert again.flow.to_dict() == first.flow.to_dict()
        assert len(details.samples) == ASKED["samples"]
        assert details.restored
        assert again.flow.top_tokens.clean

    def test_all_kinds_take_those_that_are_known(self):
        service = tiny_service()
        hidden = last(service.trace(ASKED))
        rest = list(service.trace({**ASKED, "kind": "all", "window": None}))
        assert rest[-1].total == 2 * hidden.total
        assert all(update.flows["hidden"].scores.isfinite().all() for update in rest if update.flows)
        assert list(rest[-1].flows) == list(KINDS)
        assert last(service.trace({**ASKED, "kind": "mlp", "window": None})).cached

    def test_after_a_restart_a_folder_s_result_needs_no_model(self, tmp_path):
        folder = save_tiny(tmp_path / "model")
        settings = {"models": (str(folder),), "results_folder": str(tmp_path / "results")}
        flow = flow_of(tiny_service(load_tracer, **settings), ASKED)
        restarted = tiny_service(no_model, **settings)
        update = last(restarted.trace(ASKED))
        assert update.cached
        assert restarted.status().state == "waiting"
        assert update.flow.to_dict() == flow.to_dict()

    def test_a_model_that_has_changed_has_other_results(self, tmp_path):
        folder = save_tiny(tmp_path / "model")
        settings = {"models": (str(folder),), "results_folder": str(tmp_path / "results")}
        flow_of(tiny_service(load_tracer, **settings), ASKED)
        os.utime(folder / "model.safetensors", (1, 1))
        with pytest.raises(ModelLoadError):
            last(tiny_service(no_model, **settings).trace(ASKED))

    def test_a_hub_model_is_known_by_its_commit_once_it_is_loaded(self, tmp_path):
        settings = {"results_folder": str(tmp_path)}
        flow_of(tiny_service(**settings), ASKED)
        again = tiny_service(**settings)
        again.start_loading()
        assert again._slots["tiny"].wait(300)
        assert last(again.trace(ASKED)).cached

    def test_who_waited_for_the_same_gets_it_without_a_second_run(self):
        service = tiny_service()
        first, second = service.trace(ASKED), service.trace(ASKED)
        while next(first).done == 0:
            pass
        assert next(second).position == 1
        last(first)
        update = last(second)
        assert update.cached

    def test_a_stopped_run_is_not_kept(self):
        service = tiny_service(load_tiny)
        run = service.trace(ASKED)
        while next(run).done == 0:
            pass
        run.close()
        assert not last(service.trace(ASKED)).cached
