"""A map of GPT-2 XL's shape on a GPU: 48 blocks of width 1600, random weights, against causal-tracer 1.1.0.

    python benchmarks/gpu.py [--peer peer/bin/python] [--dtypes bfloat16 tf32 float32] [--rounds 3]

Twelve tokens, a subject of four at the start, ten noise samples, windows 1, 10, 10, all three kinds in one call: about
191 TFLOP in the blocks and the head. Prints the median time of each precision in Markdown. `--device cpu --layers 2`
tries the script without a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = [f"w{number}" for number in range(12)]
WINDOWS: dict[str, int] = {"hidden": 1, "mlp": 10, "attention": 10}


def build(dtype: torch.dtype, device: str, layers: int) -> tuple[Any, Any]:
    """The model, and a tokenizer of twelve words."""
    config = GPT2Config(n_layer=layers, n_embd=1600, n_head=25)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).to(device=device, dtype=dtype).eval()
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return model, PreTrainedTokenizerFast(tokenizer_object=words, unk_token=WORDS[0], eos_token=WORDS[0])


def measure(dtype: str, device: str, layers: int, rounds: int) -> float:
    """Median seconds of one call, after one to warm up, with whichever causal_tracer is installed."""
    import causal_tracer

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    model, tokenizer = build(torch.float32 if dtype == "tf32" else getattr(torch, dtype), device, layers)
    peer = causal_tracer.__version__.startswith("1.")
    options = {"device": torch.device(device)} if peer else {}
    tracer = causal_tracer.CausalTracer(model, tokenizer, noise=0.1, **options)
    prompt, subject = " ".join(WORDS), " ".join(WORDS[:4])
    seconds = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        if peer:
            for kind, window in WINDOWS.items():
                tracer.calculate_hidden_flow(prompt, subject, kind=kind, window=window)
        else:
            tracer.calculate_hidden_flow_of_kinds(prompt, subject, windows=WINDOWS)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


def main() -> None:
    """Measure, here and with the peer's python, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="python of an environment with causal-tracer 1.1.0")
    parser.add_argument("--dtypes", nargs="*", default=["bfloat16", "tf32", "float32"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="only measure, and print seconds by dtype as JSON")
    arguments = parser.parse_args()
    found = {dtype: measure(dtype, arguments.device, arguments.layers, arguments.rounds) for dtype in arguments.dtypes}
    if arguments.json:
        print(json.dumps(found))
        return
    theirs: dict[str, float] = {}
    if arguments.peer:
        options = ["--device", arguments.device, "--layers", str(arguments.layers), "--rounds", str(arguments.rounds)]
        command = [arguments.peer, __file__, "--json", *options, "--dtypes", *arguments.dtypes]
        theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    name = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else arguments.device
    print(f"{name}, torch {torch.__version__}, Python {sys.version.split()[0]}\n")
    print("| precision | this | 1.1.0 | ratio |\n|---|---|---|---|")
    for dtype, seconds in found.items():
        other = theirs.get(dtype)
        compared = f"{other:.1f} s | {other / seconds:.1f} ×" if other else "– | –"
        print(f"| {dtype} | {seconds:.2f} s | {compared} |")


if __name__ == "__main__":
    main()
