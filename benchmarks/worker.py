"""A worker process of `speed.py`, which traces with the `causal_tracer` of its environment: this project or 1.1.0.

It reads one JSON request from each line of stdin, and answers with one JSON line on stdout.
"""

import inspect
import json
import os
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import causal_tracer
from causal_tracer import LLAMA_LAYER_CONFIG, CausalTracer

PEER = causal_tracer.__version__.startswith("1.")


def peak_mib(reset: bool = False) -> float:
    """Return the peak resident memory in MiB since the last reset (Linux only)."""
    if reset:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


def matrix_rate() -> float:
    """Return the best rate of a 2048 x 2048 float32 matrix product, in GFLOP/s."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = 0.0
    for _ in range(6):
        begun = time.perf_counter()
        a @ b
        best = max(best, 2 * 2048**3 / (time.perf_counter() - begun) / 1e9)
    return best


def trace(tracer: CausalTracer, request: dict) -> dict:
    """Trace one prompt, for one or several kinds, and return scores, time and peak memory."""
    prompt, subject, samples = request["prompt"], request["subject"], request["samples"]
    windows = request["windows"]
    before = peak_mib(reset=True)
    begun = time.perf_counter()
    if PEER:
        flows = {
            kind: tracer.calculate_hidden_flow(prompt, subject, kind=kind, window=window, samples=samples)
            for kind, window in windows.items()
        }
    else:
        flows = tracer.trace_maps(
            causal_tracer.TraceRequest(prompt, subject, samples=samples),
            {kind: causal_tracer.MapSpec(kind, window) for kind, window in windows.items()},
        )
    seconds = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "peak_mib": peak_mib() - before,
        "scores": {kind: flow.scores.tolist() for kind, flow in flows.items()},
        "engine": [getattr(getattr(flow, "settings", None), "engine", "1.1.0") for flow in flows.values()],
    }


def floor(tracer: CausalTracer, request: dict) -> float:
    """Return the floating-point operations that every exact sweep needs: see `speed.py`."""
    from causal_tracer.experiment.set_up import prompt_for
    from causal_tracer.sweep.plan import map_plan, reach

    traced = tracer.context.traced
    prompt = prompt_for(tracer.context, request["prompt"], request["subject"])
    block = 2 * sum(parameter.numel() for parameter in traced.blocks[0].parameters() if parameter.dim() > 1)
    head = 2 * traced.d_model * traced.vocab_size
    operations = 0
    for kind, window in request["windows"].items():
        for cell in map_plan(traced, prompt, kind, window, range(len(prompt)), range(traced.n_layers)).cells:
            reached = reach(cell, prompt.subject_range[0], (len(prompt) - 1,), traced.n_layers)
            if reached is not None:
                tokens = len(prompt) - reached.first_token
                operations += (traced.n_layers - reached.join) * tokens * block + head
    return operations * request["samples"]


def main(folder: str, noise: float, threads: int) -> None:
    """Serve requests until stdin ends."""
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tracer = CausalTracer(model, tokenizer, layer_config=LLAMA_LAYER_CONFIG, noise=noise)
    calls = {"trace": lambda r: trace(tracer, r), "rate": lambda r: matrix_rate(), "floor": lambda r: floor(tracer, r)}
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(calls[request["call"]](request)), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "calculate_hidden_flow" not in dict(inspect.getmembers(CausalTracer)):
        raise SystemExit("This causal_tracer has no calculate_hidden_flow.")
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
