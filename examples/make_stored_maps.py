"""Compute the maps that the web app opens with, and write them where it finds them.

    python examples/make_stored_maps.py [folder]

It takes a minute or two for each kind on two cores. A slow test recomputes some of the cells and compares.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from causal_tracer import CausalTracer
from causal_tracer.request.sites import SITES
from causal_tracer.web.service import stored


def main(folder: Path) -> None:
    """Trace the example for each kind with the embedded model."""
    tracer = CausalTracer.from_pretrained("embedded")
    folder.mkdir(parents=True, exist_ok=True)
    for kind in SITES:
        flow = tracer.trace(stored.stored_request(kind), kind=kind, progress=partial(_report, kind))
        flow.save(folder / stored.stored_name(kind))
        print(f"\r{kind}: total effect {flow.total_effect:.4f}, noise {flow.settings.noise:.4f}")


def _report(kind: str, done: int, total: int) -> None:
    print(f"\r{kind}: {done} of {total}", end="", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(stored.__file__).parents[1] / "stored")
