"""Time maps on a GPU, of a model with GPT-2 XL's shape (48 blocks of width 1600, random weights), and with 1.1.0.

    python benchmarks/gpu.py [--peer peer/bin/python] [--dtypes bfloat16 tf32 float32] [--rounds 3]

The prompt has twelve tokens, with a subject of four at the start. All three kinds are traced in one call with ten noise
samples and windows 1, 10, 10, which takes about 191 TFLOP in the blocks and the head. The script prints a table in
Markdown: median times, FLOP/s, memory, and the largest difference of the scores from 1.1.0's in the same precision and
from strict float32. Differences are in units of the scores' range, since with random weights every answer has a
probability of about 2e-5. `--device cpu --layers 3 --width 128 --rounds 1` tries the script without a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = [f"w{number}" for number in range(12)]
WINDOWS: dict[str, int] = {"hidden": 1, "mlp": 10, "attention": 10}
SAMPLES = 10
REQUEST = {"prompt": " ".join(WORDS), "subject": " ".join(WORDS[:4]), "windows": WINDOWS, "samples": SAMPLES}


def build(dtype: torch.dtype, device: str, layers: int, width: int) -> tuple[Any, Any]:
    """Return the model, and a tokenizer with twelve words."""
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).to(device=device, dtype=dtype).eval()
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return model, PreTrainedTokenizerFast(tokenizer_object=words, unk_token=WORDS[0], eos_token=WORDS[0])


def measure(dtype: str, device: str, layers: int, width: int, rounds: int) -> dict[str, Any]:
    """Return the median time of a call after a first one, scores and memory, for the installed causal_tracer."""
    import causal_tracer

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    model, tokenizer = build(torch.float32 if dtype == "tf32" else getattr(torch, dtype), device, layers, width)
    on_gpu = device.startswith("cuda")
    peer = causal_tracer.__version__.startswith("1.")
    options = {"device": torch.device(device)} if peer else {}
    tracer = causal_tracer.CausalTracer(model, tokenizer, noise=0.1, **options)
    prompt, subject = REQUEST["prompt"], REQUEST["subject"]
    before = torch.cuda.memory_allocated() if on_gpu else 0
    seconds = []
    flows: dict[str, Any] = {}
    for _ in range(rounds + 1):
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        if peer:
            flows = {
                kind: tracer.calculate_hidden_flow(prompt, subject, kind=kind, window=window, samples=SAMPLES)
                for kind, window in WINDOWS.items()
            }
        else:
            flows = tracer.trace_maps(
                causal_tracer.TraceRequest(prompt, subject, samples=SAMPLES),
                {kind: causal_tracer.MapSpec(kind, window) for kind, window in WINDOWS.items()},
            )
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    found: dict[str, Any] = {
        "seconds": statistics.median(seconds[1:]),
        "peak": (torch.cuda.max_memory_allocated() - before) / 2**30 if on_gpu else None,
        "scores": [flow.scores.tolist() for flow in flows.values()],
    }
    if not peer:
        from worker import floor

        settings = next(iter(flows.values())).settings
        found |= {"operations": floor(tracer, REQUEST), "batch": settings.batch_size, "sweep": settings.engine}
    return found


def largest_difference(first: dict[str, Any] | None, second: dict[str, Any] | None) -> str:
    """Return the largest absolute difference of two measurements' scores, in units of the scores' range, as text."""
    if first is None or second is None:
        return "–"
    scores, others = torch.tensor(first["scores"]), torch.tensor(second["scores"])
    return f"{float((scores - others).abs().max() / (others.max() - others.min())):.1e}"


def main() -> None:
    """Measure in this environment and in the peer's, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="python of an environment with causal-tracer 1.1.0")
    parser.add_argument("--dtypes", nargs="*", default=["bfloat16", "tf32", "float32"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--width", type=int, default=1600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="only measure, and print the measurements as JSON")
    arguments = parser.parse_args()
    shape = {"device": arguments.device, "layers": arguments.layers, "width": arguments.width}
    if not arguments.json:
        # Only in this process: the peer's Python must find its own causal_tracer.
        sys.path.append(str(Path(__file__).resolve().parent.parent))
    mine = {dtype: measure(dtype, **shape, rounds=arguments.rounds) for dtype in arguments.dtypes}
    if arguments.json:
        print(json.dumps(mine))
        return
    theirs: dict[str, Any] = {}
    if arguments.peer:
        options = [f"--{name}={value}" for name, value in (shape | {"rounds": arguments.rounds}).items()]
        command = [arguments.peer, __file__, "--json", *options, "--dtypes", *arguments.dtypes]
        theirs = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    name = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else arguments.device
    print(
        f"{name}, torch {torch.__version__}, Python {sys.version.split()[0]}, {arguments.layers} × {arguments.width}, "
        f"medians of {arguments.rounds}\n"
    )
    print("| precision | this | TFLOP/s | batch | peak memory | 1.1.0 | ratio | difference from 1.1.0 | from float32 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for dtype, found in mine.items():
        other = theirs.get(dtype)
        compared = f"{other['seconds']:.2f} s | {other['seconds'] / found['seconds']:.1f} ×" if other else "– | –"
        peak = "–" if found["peak"] is None else f"{found['peak']:.1f} GiB"
        rate = found["operations"] / found["seconds"] / 1e12
        print(
            f"| {dtype} ({found['sweep']}) | {found['seconds']:.2f} s | {rate:.1f} | {found['batch']} | {peak} | "
            f"{compared} | {largest_difference(found, other)} | {largest_difference(found, mine.get('float32'))} |"
        )


if __name__ == "__main__":
    main()
