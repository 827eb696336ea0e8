"""Compare the logit lens of this project with nnsight's: numbers, times, and the floor of both.

    python -m venv peer_nn
    peer_nn/bin/pip install torch==2.13.0 transformers==5.24.0 nnsight
    python benchmarks/lens.py --peer peer_nn/bin/python --rounds 7

Both use the same model, prompt and number of threads, in their own processes, and take turns. Each computes, for every
token and layer, the five most probable tokens, the answer's probability and rank, and the entropy. The floor is the
time of the matrix product alone: (tokens x layers) rows by d_model by vocabulary, in the process of this project's
lens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROMPT, ANSWER, TOP = "The Space Needle is located in the city of", " Seattle", 5


def this_lens(folder: str) -> Callable[[str], dict[str, Any]]:
    """Return a function that calls this project's lens, the matrix product, or the model, by name."""
    import torch

    from causal_tracer import CausalTracer

    tracer = CausalTracer.from_pretrained(folder)
    weight: Any = tracer.context.traced.head.weight
    ids = torch.tensor([tracer.tokenizer(PROMPT).input_ids])
    rows = torch.randn(tracer.count_layers() * ids.shape[1], weight.shape[1])
    products = torch.empty(len(weight), len(rows))

    def lens() -> dict[str, Any]:
        found = tracer.lens(PROMPT, ANSWER, TOP)
        return {
            "ids": found.top_ids.tolist(),
            "probabilities": found.top_probabilities.tolist(),
            "entropies": found.entropies.tolist(),
            "answer": found.answer_probabilities.tolist(),
            "ranks": found.answer_ranks.tolist(),
        }

    @torch.no_grad()
    def product() -> dict[str, Any]:
        torch.mm(weight, rows.T, out=products)
        return {}

    @torch.no_grad()
    def run() -> dict[str, Any]:
        tracer.model(ids, logits_to_keep=1, use_cache=False)
        return {}

    calls = {"lens": lens, "product": product, "run": run}
    return lambda name: calls[name]()


def nnsight_lens(folder: str) -> Callable[[str], dict[str, Any]]:
    """Return a function that computes the lens with nnsight as in its documentation, with this project's numbers."""
    import torch
    from nnsight import LanguageModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = LanguageModel(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer=tokenizer)
    answer = tokenizer.encode(ANSWER, add_special_tokens=False)[0]

    def lens(_name: str) -> dict[str, Any]:
        layers = []
        with torch.no_grad(), model.trace(PROMPT):
            for layer in model.model.layers:
                output = layer.output
                stream = output[0] if isinstance(output, tuple) else output
                probabilities = model.lm_head(model.model.norm(stream)).softmax(dim=-1)
                layers.append(probabilities.reshape(-1, probabilities.shape[-1]).save())
        read: dict[str, list[Any]] = {name: [] for name in ("ids", "probabilities", "entropies", "answer", "ranks")}
        for found in layers:
            best = found.topk(TOP)
            read["ids"].append(best.indices)
            read["probabilities"].append(best.values)
            read["entropies"].append(-(found * found.clamp(min=1e-38).log()).sum(dim=-1))
            read["answer"].append(found[:, answer])
            read["ranks"].append((found > found[:, answer, None]).sum(dim=-1) + 1)
        return {name: torch.stack(values, dim=1).tolist() for name, values in read.items()}

    return lens


def work(which: str, folder: str, threads: int) -> None:
    """Read a call's name from each line of standard input, and answer with its time and its result."""
    import torch

    torch.set_num_threads(threads)
    # Standard output is for answers only, so other output goes to standard error.
    answers, sys.stdout = sys.stdout, sys.stderr
    call = this_lens(folder) if which == "this" else nnsight_lens(folder)
    for line in sys.stdin:
        begun = time.perf_counter()
        result = call(line.strip())
        seconds = time.perf_counter() - begun
        answers.write(json.dumps({"seconds": seconds, "result": result}) + "\n")
        answers.flush()


class Worker:
    """A process that computes the lens on request."""

    def __init__(self, python: str, which: str, folder: str, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        if which == "this":
            environment["PYTHONPATH"] = str(ROOT)
        words = [python, str(Path(__file__).resolve()), "--work", which, "--folder", folder, "--threads", str(threads)]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, name: str) -> dict[str, Any]:
        """Return the answer to one call."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise SystemExit("A worker has no pipes.")
        stdin.write(f"{name}\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise SystemExit("A worker process ended.")
        answer: dict[str, Any] = json.loads(line)
        return answer


def differences(first: dict[str, Any], second: dict[str, Any]) -> dict[str, float]:
    """Return the largest absolute difference of each quantity, or for ids and ranks the number of differing ones."""
    import torch

    found = {}
    for name, values in first.items():
        one, other = torch.tensor(values), torch.tensor(second[name])
        found[name] = float((one - other).abs().max()) if one.is_floating_point() else int((one != other).sum())
    return found


def main() -> None:
    """Run the rounds and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="python of an environment with nnsight")
    parser.add_argument("--model", default="embedded", help="an embedded model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.folder, arguments.threads)
        return

    sys.path.insert(0, str(ROOT))
    from causal_tracer.loading.embedded import embedded_model_folder

    folder = str(embedded_model_folder(arguments.model))
    mine = Worker(sys.executable, "this", folder, arguments.threads)
    cases = {"this": (mine, "lens"), "floor: the product": (mine, "product"), "a run of the model": (mine, "run")}
    if arguments.peer:
        cases["nnsight"] = (Worker(arguments.peer, "nnsight", folder, arguments.threads), "lens")
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    seconds["this, first call"] = [mine.ask("lens")["seconds"]]
    results: dict[str, Any] = {}
    for number in range(-1, arguments.rounds):
        for name, (worker, call) in cases.items():
            answer = worker.ask(call)
            results[name] = answer["result"]
            # The first round warms up.
            if number >= 0:
                seconds[name].append(answer["seconds"])
    print("| | seconds, median (lowest to highest) |\n|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f}) |")
    if arguments.peer:
        ratio = statistics.median(seconds["nnsight"]) / statistics.median(seconds["this"])
        print(f"\n{ratio:.1f} x; differences: {differences(results['this'], results['nnsight'])}")


if __name__ == "__main__":
    main()
