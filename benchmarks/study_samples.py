"""Compute how much narrower a study's intervals would be with more noise samples.

    python benchmarks/study_samples.py [FOLDER ...]

By default the studies that come with the app are read. At each map's best layer, the variance of an average over facts
has two parts: facts differ, and each fact's effect is a mean over few noise samples. Only the second falls with the
number of samples. It is taken from the standard errors of the scores; the corrupted run's own error is left out. A fact
has one token of each role listed here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

STORED = Path(__file__).resolve().parent.parent / "causal_tracer" / "web" / "stored" / "studies"
PARTS = (
    ("hidden", "last subject"),
    ("mlp", "last subject"),
    ("attention", "last subject"),
    ("hidden", "last"),
    ("mlp", "last"),
    ("attention", "last"),
)
MORE_SAMPLES = 10


def main(folders: list[Path]) -> None:
    """Print a table in Markdown."""
    import pandas

    print(f"| study | map, role | layer | AIE | deviation over facts | of sampling | narrower with {MORE_SAMPLES} |")
    print("|---|---|---|---|---|---|---|")
    for folder in folders:
        settings = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["settings"]
        if settings.get("pairs"):
            # A second prompt is run once: nothing is sampled.
            continue
        samples = settings["request"]["samples"]
        cells = pandas.read_parquet(folder / "cells.parquet")
        for name, role in PARTS:
            chosen = cells[(cells["map"] == name) & (cells["role"] == role)]
            print(f"| {folder.name} | {name}, {role} | {row(chosen, samples)}")


def row(cells: Any, samples: int) -> str:
    """Return the rest of a line of the table, at the layer with the largest average effect."""
    facts = cells.assign(effect=cells.score - cells.low, error=cells.standard_error**2)
    layers = facts.groupby("layer").agg(mean=("effect", "mean"), spread=("effect", "var"), sampling=("error", "mean"))
    layer = layers["mean"].idxmax()
    best = layers.loc[layer]
    with_more = best.spread - best.sampling * (1 - samples / MORE_SAMPLES)
    return (
        f"{layer} | {best['mean']:.1%} | {np.sqrt(best.spread):.1%} | {np.sqrt(best.sampling):.1%} | "
        f"{1 - np.sqrt(with_more / best.spread):.1%} |"
    )


if __name__ == "__main__":
    main([Path(each) for each in sys.argv[1:]] or sorted(STORED.iterdir()))
