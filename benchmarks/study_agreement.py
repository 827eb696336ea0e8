"""Compare what different experiments say about the same facts and model: where is the largest effect, and how large?

    python benchmarks/study_agreement.py [FOLDER ...]

By default the two studies of Gemma 3 270M that come with the app are read: noise, and second prompts. Only facts that
all studies have are used. Effects are given as shares of the total effect (AIE / ATE), since the experiments have
different metrics. The layer is chosen on one half of the facts; the share is read on the other half. Intervals are from
a bootstrap that draws whole relations.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from causal_tracer.study.records import ROLES
from causal_tracer.study.statistics import DRAWS, StudyEffects, selection_half
from causal_tracer.study.stored import StoredStudy

STORED = Path(__file__).resolve().parent.parent / "causal_tracer" / "web" / "stored" / "studies"
PLACES = (
    ("hidden", "first subject"),
    ("hidden", "last subject"),
    ("mlp", "last subject"),
    ("attention", "last subject"),
    ("hidden", "further"),
    ("mlp", "last"),
    ("attention", "last"),
)


def main(folders: list[Path]) -> None:
    """Print a table in Markdown."""
    studies = [StoredStudy.open(folder) for folder in folders]
    common = set.intersection(*(set(study.effects.facts) for study in studies))
    print(f"{len(common)} facts\n")
    print(f"| map, role | {' | '.join(study.folder.name for study in studies)} |")
    print("|---|" + "---|" * len(studies))
    for name, role in PLACES:
        print(f"| {name}, {role} | {' | '.join(share(study.effects, common, name, role) for study in studies)} |")


def share(effects: StudyEffects, common: set[str], name: str, role: str) -> str:
    """Return the largest share of the total effect, with its interval and its layer."""
    values = effects.maps[name][:, ROLES.index(role)]
    usable = np.array([fact in common for fact in effects.facts]) & ~np.isnan(values).any(axis=1)
    chosen = selection_half(effects) & usable
    read = ~selection_half(effects) & usable
    layer = int(values[chosen].mean(axis=0).argmax())
    relations = np.array(effects.relations)[read]
    effect, total = values[read, layer], effects.total_effect[read]
    ratios = [effect[drawn].sum() / total[drawn].sum() for drawn in draws(relations, effects.seed)]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return f"{effect.sum() / total.sum():.0%} ({low:.0%} to {high:.0%}), layer {layer}"


def draws(relations: NDArray[np.str_], seed: int) -> list[NDArray[np.int64]]:
    """Return the facts of each bootstrap draw: all facts of relations that are drawn with replacement."""
    random = np.random.default_rng(seed)
    facts = [np.flatnonzero(relations == name) for name in sorted(set(relations))]
    return [np.concatenate([facts[at] for at in random.integers(0, len(facts), len(facts))]) for _ in range(DRAWS)]


if __name__ == "__main__":
    given = [Path(each) for each in sys.argv[1:]]
    main(given or [STORED / "gemma-3-270m", STORED / "gemma-3-270m-pairs"])
