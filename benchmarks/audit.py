"""Measure the time of a map's checks: its audit, its clean run, and the fingerprint of the model.

    python benchmarks/audit.py                        # Gemma 3 270M, three rounds

Each check is timed inside its map, so that both run under the same load of the machine. The first map, which includes
the first-use check, is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from causal_tracer import CausalTracer, TraceRequest
from causal_tracer.request.sites import LayerKind

PROMPT, SUBJECT = "The Space Needle is located in the city of", "The Space Needle"
GUARDS = {
    "audit": "causal_tracer.sweep.audited.audit_scores",
    "clean run": "causal_tracer.experiment.answers.clean_run",
    "fingerprint": "causal_tracer.sweep.engine.fingerprint",
}
CASES: tuple[tuple[LayerKind, int, int], ...] = (
    ("hidden", 1, 10),
    ("mlp", 10, 10),
    ("attention", 10, 10),
    ("hidden", 1, 2),
)


@contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """Add up the seconds that each check takes."""

    def timing(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - started

        return run

    patches = []
    for name, place in GUARDS.items():
        module, attribute = place.rsplit(".", 1)
        patches.append(mock.patch(place, timing(name, getattr(sys.modules[module], attribute))))
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def main() -> None:
    """Trace each case a few times, and print the checks' shares of the map's time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tracer = CausalTracer.from_pretrained(given.model)
    tracer.trace(PROMPT, SUBJECT, samples=1)
    for kind, window, samples in CASES:
        request = TraceRequest(PROMPT, SUBJECT, samples=samples)
        shares: dict[str, list[float]] = defaultdict(list)
        for _ in range(given.rounds):
            spent: dict[str, float] = defaultdict(float)
            started = time.perf_counter()
            with timed(spent):
                flow = tracer.trace(request, kind=kind, window=window)
            whole = time.perf_counter() - started
            shares["map"].append(whole)
            for name in GUARDS:
                shares[name].append(spent[name] / whole)
        cells = len(flow.audit.cells) if flow.audit else 0
        off = flow.audit.largest_difference if flow.audit else 0.0
        told = ", ".join(f"{name} {statistics.median(shares[name]):.1%}" for name in GUARDS)
        seconds = statistics.median(shares["map"])
        print(f"{kind}, window {window}, {samples} samples: {seconds:.1f} s; {told}; {cells} cells off by {off:.1g}")


if __name__ == "__main__":
    main()
