"""Count how often a map loads the weights of an offloaded model, with this project and with causal-tracer 1.1.0.

    python benchmarks/offload.py --peer peer/bin/python --model embedded --samples 3

accelerate offloads all weights into a mapping that counts the loads of each. The table has the loads of the block that
was loaded most often, the size of all loads, the time, and the largest difference of the scores. In this benchmark the
offloaded weights are in memory. If they are on a disk or behind a bus, loading takes most of a map's time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
# Appended at the end, so that the peer's Python finds its own causal_tracer first.
sys.path.append(str(ROOT))

import causal_tracer  # noqa: E402
from benchmarks.weight_loads import offload_counted  # noqa: E402

PROMPT, SUBJECT = "The Space Needle is located in the city of", "The Space Needle"
WINDOWS: dict[str, int] = {"hidden": 1, "mlp": 10, "attention": 10}


def measure(folder: str, kinds: list[str], samples: int, **options: Any) -> dict[str, Any]:
    """Return loads, time and scores of the maps, with the installed causal_tracer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    size = sum(parameter.nbytes for parameter in model.parameters())
    weights = offload_counted(model)
    tracer = causal_tracer.CausalTracer(
        model, AutoTokenizer.from_pretrained(folder), layer_config=causal_tracer.LLAMA_LAYER_CONFIG, noise=1.0
    )
    blocks = tracer.get_layer_names_of_kind("hidden")
    if options:
        # The first trace also checks the engine, and its loads are not counted.
        tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=1, start_layer=len(blocks) - 1)
    weights.loads.clear()
    begun = time.perf_counter()
    flows = [
        tracer.calculate_hidden_flow(PROMPT, SUBJECT, kind=kind, window=WINDOWS[kind], samples=samples, **options)
        for kind in kinds
    ]
    return {
        "seconds": time.perf_counter() - begun,
        "loads": max(weights.of_modules(blocks)) / len(kinds),
        "loaded": weights.loaded_bytes / len(kinds) / size,
        "scores": [flow.scores.tolist() for flow in flows],
    }


def main() -> None:
    """Measure in this environment and in the peer's, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="python of an environment with causal-tracer 1.1.0")
    parser.add_argument("--model", default="embedded", help="an embedded model, or a folder of a Llama-like one")
    parser.add_argument("--kinds", nargs="*", default=["hidden"], choices=list(WINDOWS))
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--batch-sizes", nargs="*", type=int, default=[1024, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="only measure, and print the measurements as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.json:
        print(json.dumps(measure(arguments.model, arguments.kinds, arguments.samples)))
        return
    folder = arguments.model
    if not Path(folder).is_dir():
        from causal_tracer.loading.embedded import embedded_model_folder

        folder = str(embedded_model_folder(folder))
    rows = {
        f"this, batches of {size}": measure(folder, arguments.kinds, arguments.samples, batch_size=size)
        for size in arguments.batch_sizes
    }
    if arguments.peer:
        options = [
            "--samples",
            str(arguments.samples),
            "--threads",
            str(arguments.threads),
            "--kinds",
            *arguments.kinds,
        ]
        command = [arguments.peer, __file__, "--json", "--model", folder, *options]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        rows["1.1.0"] = json.loads(answer.splitlines()[-1])
    else:
        rows["the full sweep, batches of 1024"] = measure(
            folder, arguments.kinds, arguments.samples, batch_size=1024, engine="full"
        )
    *_, last = rows.values()
    expected = torch.tensor(last["scores"])
    print(f"{', '.join(arguments.kinds)}, {arguments.samples} samples, {arguments.threads} thread(s)\n")
    print(
        "| | loads of a block, a map | loaded, times the model | seconds | largest difference |\n|---|---|---|---|---|"
    )
    for name, found in rows.items():
        apart = float((torch.tensor(found["scores"]) - expected).abs().max())
        print(f"| {name} | {found['loads']:.0f} | {found['loaded']:.1f} | {found['seconds']:.0f} | {apart:.1e} |")


if __name__ == "__main__":
    main()
