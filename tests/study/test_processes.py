"""Studies in processes of their own: killed at any moment, and shared out by accelerate."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from causal_tracer.study.journal import journal_files, read_journal
from causal_tracer.study.store import cells_table, read_manifest, read_records
from causal_tracer.study.stored import StoredStudy
from causal_tracer.study.team import own_devices
from tests.support.study_model import NOISE, build_model, known_facts
from tests.support.tiny_models import tiny_tokenizer

pytest.importorskip("pyarrow")
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
# With --cpu, accelerate leaves the starting to MPI. This way torchrun does it, as for GPUs.
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with the model and the facts that it knows."""
    import json

    folder = tmp_path_factory.mktemp("inputs")
    build_model().save_pretrained(folder / "model")
    tiny_tokenizer(bos=True).save_pretrained(folder / "model")
    (folder / "facts.json").write_text(json.dumps([asdict(fact) for fact in known_facts()]))
    return folder


def command(inputs, out, *options):
    """The study's command line, after the interpreter or the launcher."""
    given = ["--model", str(inputs / "model"), "--facts", str(inputs / "facts.json"), "--out", str(out)]
    given += ["--samples", "40", "--audit-share", "0", "--noise", str(NOISE), "--no-report", *options]
    return ["-m", "causal_tracer", "study", *given]


def finish(arguments):
    done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def written(out):
    """Whole lines in each journal."""
    return [path.read_bytes().count(b"\n") for path in journal_files(out)]


def wait_for(condition, process):
    until = time.monotonic() + 800
    while not condition():
        assert process.poll() is None, "the study ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.02)


def start(arguments):
    return subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def rows(out):
    names = ["fact", "map", "position", "layer"]
    return (
        cells_table(read_records(out), StoredStudy.open(out).settings)
        .sort_by([(name, "ascending") for name in names])
        .to_pylist()
    )


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """The cells of a study that one process did without a stop."""
    out = tmp_path_factory.mktemp("whole") / "study"
    done = finish([sys.executable, *command(inputs, out)])
    assert "complete (" in done.stdout
    return rows(out)


@pytest.mark.nightly
def test_a_study_killed_at_any_moment_loses_at_most_the_fact_in_work(inputs, whole, tmp_path):
    out = tmp_path / "study"
    process = start([sys.executable, *command(inputs, out)])
    wait_for(lambda: sum(written(out)) >= 3, process)
    process.kill()
    process.wait()
    kept = sum(written(out))
    assert len(read_records(out)) == kept < len(known_facts())
    finish([sys.executable, *command(inputs, out)])
    assert rows(out) == whole


@pytest.mark.nightly
def test_two_processes_one_killed_resumed_with_three_give_the_same_rows(inputs, whole, tmp_path):
    out = tmp_path / "study"
    process = start([*LAUNCH, "--num_processes", "2", *command(inputs, out)])
    wait_for(lambda: len(written(out)) == 2 and min(written(out)) >= 1, process)
    ranks = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        ranks[child.environ().get("RANK")] = child.pid
    os.kill(ranks["1"], signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    before = [record["fact"]["fact_id"] for path in journal_files(out) for record in read_journal(path)]
    assert len(set(before)) == len(before) < len(known_facts())
    finish([*LAUNCH, "--num_processes", "3", *command(inputs, out)])
    assert read_manifest(out)["state"] == "complete"
    assert rows(out) == whole


@pytest.mark.nightly
def test_what_stops_the_first_process_stops_them_all(inputs, tmp_path):
    out = tmp_path / "study"
    finish([sys.executable, *command(inputs, out, "--limit", "1")])
    other = [*LAUNCH, "--num_processes", "2", *command(inputs, out, "--seed", "9")]
    done = subprocess.run(other, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode != 0
    assert "seed was 1 and is 9" in done.stderr


class TestOwnDevices:
    """Each process of a host sees its own GPUs, so that two sharded models never share one."""

    def test_processes_take_theirs_in_turn(self):
        taken = [own_devices({"LOCAL_RANK": str(rank)}, 2) for rank in range(3)]
        assert taken == ["0,1", "2,3", "4,5"]

    def test_a_choice_of_devices_made_before_holds(self):
        environment = {"CUDA_VISIBLE_DEVICES": "3, 5,GPU-7,9", "LOCAL_RANK": "1"}
        assert own_devices(environment, 2) == "GPU-7,9"
        assert own_devices({"CUDA_VISIBLE_DEVICES": "6"}, 1) == "6"
        assert own_devices({"CUDA_VISIBLE_DEVICES": "", "LOCAL_RANK": "1"}, 1) == ""

    def test_too_few_are_refused(self):
        from causal_tracer.errors import SettingsError

        with pytest.raises(SettingsError, match="has 3"):
            own_devices({"CUDA_VISIBLE_DEVICES": "0,1,2", "LOCAL_RANK": "1"}, 2)
