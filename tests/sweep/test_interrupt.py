"""Ctrl-C during a sweep (a real signal to a real process) stops it at once and leaves the model unchanged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from causal_tracer.model.hooks import replacing_forward

pytestmark = pytest.mark.slow

CHILD = """
import json, signal, sys, time
from causal_tracer import CausalTracer
from tests.support.unchanged import assert_unchanged, fingerprint
from tests.support.tiny_models import PROMPT, SUBJECT, build_tiny_model, tiny_tokenizer

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
name, engine, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = build_tiny_model(name)
tracer = CausalTracer(model, tiny_tokenizer())
expected = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2, engine=engine)
before = fingerprint(model)
for _ in range(rounds):
    told = []

    def tell(done, total):
        # During the sweep, after the cells that need no run.
        if done > total // 50 and not told:
            told.append(done)
            print("running", flush=True)

    try:
        tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=1000, batch_size=20, engine=engine, progress=tell)
        print("not stopped", flush=True)
    except KeyboardInterrupt:
        print(json.dumps({"stopped": time.monotonic()}), flush=True)
    assert_unchanged(model, before)
    assert tracer.context.traced.lock.acquire(blocking=False)
    tracer.context.traced.lock.release()
after = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2, engine=engine)
assert after.sample_scores.equal(expected.sample_scores)
print("whole", flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("llama", "auto"),
        pytest.param("gpt2", "full", marks=pytest.mark.nightly),
        pytest.param("qwen3_next", "auto", marks=pytest.mark.nightly),
    ],
)
def test_an_interrupt_stops_the_sweep_within_a_second_and_leaves_the_model_bit_identical(
    name: str, engine: str
) -> None:
    rounds = 3
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, name, engine, str(rounds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=root,
    )
    try:
        assert process.stdout is not None
        for _ in range(rounds):
            assert process.stdout.readline() == "running\n", process.communicate()[1]
            sent = time.monotonic()
            process.send_signal(signal.SIGINT)
            line = process.stdout.readline()
            assert line != "not stopped\n"
            assert json.loads(line)["stopped"] - sent < 1
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert rest == "whole\n", errors


class Interrupted(nn.Linear):
    """A module that raises KeyboardInterrupt when its forward is about to be replaced."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward":
            raise KeyboardInterrupt
        super().__setattr__(name, value)


def test_an_interrupt_before_a_forward_is_replaced_stays_one_and_leaves_no_other_replaced() -> None:
    modules = [nn.Linear(2, 2), Interrupted(2, 2)]
    with pytest.raises(KeyboardInterrupt), replacing_forward(modules, lambda number, own, args, kwargs: None):
        pass
    assert all("forward" not in module.__dict__ for module in modules)
