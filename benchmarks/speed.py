"""Compare this project with causal-tracer 1.1.0: time, memory, and the largest difference of the scores.

    python -m venv peer
    peer/bin/pip install torch==2.13.0 transformers accelerate matplotlib tqdm
    peer/bin/pip install --no-deps causal-tracer==1.1.0
    python benchmarks/speed.py --peer peer/bin/python --model embedded --rounds 3

Both use the same model, prompt, noise, seed and number of threads. Each runs in its own process, and they take turns in
each round. The table has medians over rounds.

The floor is the time for the operations that every exact sweep needs, at the best rate of a 2048 x 2048 float32 matrix
product. These operations are, for each run: all blocks from the one where the run departs from the corrupted run, at
all tokens from the restored one on, and the head at one token. Attention scores are not counted. The rate is measured
before and after each round. A round in which the rate changed by more than a fifth is dropped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROMPT = {"prompt": "The Space Needle is located in the city of", "subject": "The Space Needle", "samples": 10}
CASES = {
    "hidden": {"hidden": 1},
    "mlp, window 10": {"mlp": 10},
    "attention, window 10": {"attention": 10},
    "all three": {"hidden": 1, "mlp": 10, "attention": 10},
}


class Worker:
    """A worker process, which traces on request (`worker.py`)."""

    def __init__(self, python: str, folder: str, noise: float, threads: int, *, ours: bool) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if ours:
            environment["PYTHONPATH"] = str(ROOT)
        self._process = subprocess.Popen(
            [python, str(ROOT / "benchmarks" / "worker.py"), folder, str(noise), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, call: str, **request: Any) -> Any:
        """Send a request and return its result."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise SystemExit("A worker has no pipes.")
        stdin.write(json.dumps({"call": call, **request}) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise SystemExit("A worker process ended. Run benchmarks/worker.py by hand to see its error.")
        return json.loads(line)


def largest_difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Return the largest absolute difference of the scores of two traces."""
    return max(
        abs(a - b)
        for kind in first["scores"]
        for row, other in zip(first["scores"][kind], second["scores"][kind], strict=True)
        for a, b in zip(row, other, strict=True)
    )


def main() -> None:
    """Run the rounds and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", required=True, help="python of an environment with causal-tracer 1.1.0")
    parser.add_argument("--model", default="embedded", help="an embedded model")
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    arguments = parser.parse_args()

    sys.path.insert(0, str(ROOT))
    from causal_tracer.loading.embedded import embedded_model_folder

    folder = str(embedded_model_folder(arguments.model))
    ours = Worker(sys.executable, folder, arguments.noise, arguments.threads, ours=True)
    peer = Worker(arguments.peer, folder, arguments.noise, arguments.threads, ours=False)
    ours.ask("trace", **PROMPT | {"samples": 1}, windows={"hidden": 1})
    print(
        "| case | 1.1.0 | this | ratio | largest difference | peak memory 1.1.0 / this | share of the floor | rounds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.cases:
        kept: list[tuple[float, float, float, float, float, float]] = []
        for _ in range(arguments.rounds):
            before = ours.ask("rate")
            theirs = peer.ask("trace", **PROMPT, windows=CASES[name])
            mine = ours.ask("trace", **PROMPT, windows=CASES[name])
            after = ours.ask("rate")
            if abs(after - before) > 0.2 * max(before, after):
                print(f"dropped a round: {before:.0f} then {after:.0f} GFLOP/s", file=sys.stderr)
                continue
            least = ours.ask("floor", **PROMPT, windows=CASES[name]) / (max(before, after) * 1e9)
            kept.append(
                (
                    theirs["seconds"],
                    mine["seconds"],
                    largest_difference(theirs, mine),
                    theirs["peak_mib"],
                    mine["peak_mib"],
                    least / mine["seconds"],
                )
            )
        if not kept:
            print(f"| {name} | no quiet round |")
            continue
        slow, fast, difference, their_peak, my_peak, share = (
            statistics.median(column) for column in zip(*kept, strict=True)
        )
        print(
            f"| {name} | {slow:.1f} s | {fast:.1f} s | {slow / fast:.1f} × | {difference:.1e} "
            f"| {their_peak:.0f} / {my_peak:.0f} MiB | {share:.0%} | {len(kept)} of {arguments.rounds} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
