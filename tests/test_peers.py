"""The benchmark against other tools counts cells as the package does, pins what it installs, and reports failures."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peer_environments import THIS, TOOLS, Tool, ToolError, Worker, installations
from benchmarks.peer_tools.serving import Rows, Task, map_in_rows
from benchmarks.peers import Timing, largest_difference, table
from causal_tracer.request.sites import window_layers

SAMPLES, TOKENS, LAYERS = 2, 3, 6


@pytest.fixture
def task(tmp_path: Path) -> Task:
    noise_file = tmp_path / "noise.npy"
    np.save(noise_file, np.zeros((SAMPLES, 1, 4), dtype=np.float32))
    shared = {"prompt": "a b c", "subject": "a", "noise": 1.0, "seed": 1, "answer_id": 0, "subject_range": (0, 1)}
    places = {"site": "mlp", "window": 4, "layers": (1, LAYERS), "n_layers": LAYERS, "batch_rows": 5}
    return Task(ids=tuple(range(TOKENS)), noise_file=str(noise_file), **shared, **places)


def test_each_cell_is_the_mean_over_samples_of_its_own_runs(task: Task) -> None:
    sizes = []

    def forward(rows: Rows) -> torch.Tensor:
        sizes.append(len(rows))
        restored = [set(rows.at(layer)[0].tolist()) for layer in range(LAYERS)]
        layers = [sum(2**layer for layer in range(LAYERS) if row in restored[layer]) for row in range(len(rows))]
        return torch.tensor(layers) * 10.0 + rows.tokens * (torch.tensor(layers) > 0) + rows.samples * 0.5

    found = map_in_rows(task, 0.9, forward)
    expected = [
        [sum(2**at for at in window_layers(layer, 4, LAYERS)) * 10 + token + 0.25 for layer in range(1, LAYERS)]
        for token in range(TOKENS)
    ]
    assert found.scores == expected
    assert (found.low, found.high) == (0.25, 0.9)
    assert max(sizes) == 5
    assert sum(sizes) == (TOKENS * (LAYERS - 1) + 1) * SAMPLES


def test_every_peer_is_pinned_and_has_its_script() -> None:
    scripts = Path(__file__).parents[1] / "benchmarks" / "peer_tools"
    for name, tool in TOOLS.items():
        assert (scripts / tool.script).is_file()
        assert bool(tool.installs) == (name != THIS)
        if tool.installs:
            assert tool.installs[-1][-1].endswith(f"=={name.split(',')[0].split()[-1]}")
            assert "torch==2.13.0" in installations(tool, Path("peers"))[1]
    assert TOOLS["nnsight 0.8.1"].installs == TOOLS["nnsight 0.8.1, skipping"].installs


def test_differences_cover_all_numbers_and_never_hide_one_that_is_none() -> None:
    first = {"scores": [[0.1, 0.2]], "low": 0.0, "high": 0.5}
    assert largest_difference(first, first) == 0
    assert largest_difference(first, first | {"high": 0.25}) == 0.25
    assert largest_difference(first, first | {"scores": [[float("nan"), 0.2]]}) == float("inf")


def test_the_table_shows_medians_wrong_numbers_and_errors() -> None:
    timings = {
        THIS: [Timing(seconds, 500, 450, 0.0) for seconds in (2.0, 4.0, 3.0)],
        "wrong": [Timing(30.0, 900, 450, 2e-4)],
        "broken": [],
    }
    rows = list(table(timings, {"broken": "KeyError: 'Gemma3'"}))[2:]
    assert rows == [
        f"| {THIS} | 3.0 (2.0 to 4.0) | 1.0 × | 0.0e+00 | 500 (50) MiB |",
        "| wrong | 30.0 | 10.0 × | 2.0e-04, wrong | 900 (450) MiB |",
        "| broken | KeyError: 'Gemma3' | | | |",
    ]


def test_a_worker_answers_beside_a_tools_own_output_and_its_end_is_an_error(tmp_path: Path) -> None:
    script = tmp_path / "tool.py"
    script.write_text(
        "print('hello')\ninput()\nprint('map: {\"low\": 1}', flush=True)\ninput()\nraise KeyError('gone')"
    )
    # An absolute path stands for itself when it is joined to the folder of the tools.
    worker = Worker(sys.executable, Tool(str(script), 1), "model", 1, tmp_path / "log")
    assert worker.ask({}) == {"low": 1}
    with pytest.raises(ToolError, match="KeyError: 'gone'"):
        worker.ask({})
    worker.stop()
