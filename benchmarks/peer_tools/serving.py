"""The code that the tools of `peers.py` share: the task, its runs as batch rows, and the loop that answers requests.

Each tool imports it in its own environment, so it needs only PyTorch, NumPy, transformers and the standard library.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Task:
    """One map to compute, as `peers.py` requests it.

    Attributes:
        prompt: The prompt's text.
        subject: The subject's text.
        ids: The prompt's token ids.
        subject_range: The first token of the subject, and one past its last token.
        answer_id: The token whose probability is the score.
        noise_file: A NumPy file with the noise [samples, subject tokens, d_model], float32.
        noise: The noise's standard deviation, for tools that draw the same noise themselves.
        seed: The noise's seed, for the same tools.
        site: "hidden", "mlp" or "attention".
        window: Number of layers restored together.
        layers: The first layer of the map, and one past its last layer.
        n_layers: Number of blocks of the model.
        batch_rows: Batch rows of a forward pass.
    """

    prompt: str
    subject: str
    ids: tuple[int, ...]
    subject_range: tuple[int, int]
    answer_id: int
    noise_file: str
    noise: float
    seed: int
    site: str
    window: int
    layers: tuple[int, int]
    n_layers: int
    batch_rows: int

    def drawn(self) -> Tensor:
        """Return the noise [samples, subject tokens, d_model]."""
        return torch.from_numpy(np.load(self.noise_file))

    @property
    def samples(self) -> int:
        """The number of noise samples."""
        return len(np.load(self.noise_file, mmap_mode="r"))

    def restored(self, layer: int) -> range:
        """Return the layers that a cell restores, as in ROME's code."""
        return range(max(0, layer - self.window // 2), min(self.n_layers, layer - (-self.window // 2)))


@dataclass(frozen=True, eq=False)
class Rows:
    """The runs of one forward pass, one for each batch row. A corrupted run restores no layers.

    Attributes:
        starts: The first layer that each run restores [rows].
        ends: One past the last layer that each run restores [rows].
        tokens: The token at which each run restores [rows].
        samples: The noise sample of each run [rows].
    """

    starts: Tensor
    ends: Tensor
    tokens: Tensor
    samples: Tensor

    def __len__(self) -> int:
        return len(self.samples)

    def at(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the rows that restore this layer, and the token of each."""
        rows = ((self.starts <= layer) & (layer < self.ends)).nonzero()[:, 0]
        return rows, self.tokens[rows]


@dataclass(frozen=True)
class Map:
    """One map: the answer's probabilities, as means over samples.

    Attributes:
        scores: The probability in each cell's restored run [tokens, layers].
        low: The probability in the corrupted run.
        high: The probability in the clean run.
    """

    scores: list[list[float]]
    low: float
    high: float


def map_in_rows(task: Task, high: float, forward: Callable[[Rows], Tensor]) -> Map:
    """Compute a map with one batch row for each cell and sample.

    Runs are ordered by the first layer that they restore, so that the rows of a batch have similar windows.

    Args:
        task: The map.
        high: The answer's probability in the clean run.
        forward: Returns the answer's probability in each run [rows].
    """
    layers, tokens = range(*task.layers), range(len(task.ids))
    windows = [task.restored(layer) for layer in layers]
    cells = [(window.start, window.stop, token) for window in windows for token in tokens]
    cells.append((task.n_layers, task.n_layers, 0))
    runs = torch.tensor([(*cell, sample) for cell in cells for sample in range(task.samples)])
    found = torch.cat([forward(Rows(*part.T)) for part in runs.split(task.batch_rows)])
    means = found.view(len(cells), task.samples).double().mean(dim=1)
    return Map(means[:-1].view(len(layers), -1).T.tolist(), float(means[-1]), high)


def probabilities(logits: Tensor, answer: int) -> Tensor:
    """Return the answer's probability in each row of logits [rows, vocabulary]."""
    return (logits[:, answer] - logits.logsumexp(dim=-1)).exp()


def load_model(folder: str) -> Any:
    """Load a folder's model in float32 and evaluation mode."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def load_tokenizer(folder: str) -> Any:
    """Load a folder's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def memory_mib(name: str) -> float:
    """Return this process's resident memory in MiB (Linux only): "VmRSS" for now, "VmHWM" for the peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def _answer(trace: Callable[[Task], Map], request: dict[str, Any]) -> dict[str, Any]:
    """Return one map with its time and memory."""
    task = Task(**{name: tuple(value) if isinstance(value, list) else value for name, value in request.items()})
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    begun = time.perf_counter()
    found = trace(task)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "peak_mib": memory_mib("VmHWM"), "now_mib": memory_mib("VmRSS"), **vars(found)}


def serve(load: Callable[[str], Callable[[Task], Map]]) -> None:
    """Load a tool, and answer each task on standard input with a line that begins with "map: ".

    A task is one line of JSON. The command line has the model's folder and the number of threads.

    Args:
        load: Takes the folder and returns the function that computes a map.
    """
    folder, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.set_grad_enabled(False)
    trace = load(folder)
    for line in sys.stdin:
        print("map: " + json.dumps(_answer(trace, json.loads(line))), flush=True)
