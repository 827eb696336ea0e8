"""Check attention knockout on a tiny random model of every text decoder in transformers.

    OMP_NUM_THREADS=1 python benchmarks/knockout_coverage.py             # all
    OMP_NUM_THREADS=1 python benchmarks/knockout_coverage.py gpt2 llama  # some

For each type the script reports the layers whose attention can be blocked, or the reason why none can. It compares
every cell of a knockout map by the full sweep with attention computed by hand (`knockout_by_hand.py`), and the chosen
engine with the full sweep. The prompts have several lengths, and one is longer than every window and chunk. A type is
wrong if a difference is larger than 1e-5, or than 1e-3 of the largest effect. Models are built with the first seed for
which a knockout changes the answer's probability.
"""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import tiny_configs
from benchmarks.coverage import SEEDS, TOKENS, Base, run_all
from benchmarks.knockout_by_hand import knocked_out
from causal_tracer.errors import ModelStructureError
from causal_tracer.model.layers import trace_model
from causal_tracer.sweep.engine import choose_engine
from causal_tracer.sweep.plan import Cell, knockout_plan

LENGTHS = {7: 2, TOKENS: 3, 40: 1}
"""The lengths of the prompts, each with its window."""


@dataclass
class Report:
    """The findings for one model type."""

    type: str
    layers: str = ""
    effect: float = 0.0
    by_hand: float = 0.0
    engine: str = ""
    resumed: float = 0.0
    refused: str = ""
    error: str = ""

    @property
    def state(self) -> str:
        """The outcome in one word: "refused", "error", "insensitive", "right" or "wrong"."""
        if self.refused or self.error:
            return "refused" if self.refused else "error"
        limit = min(1e-5, 1e-3 * self.effect)
        if self.effect < 1e-3:
            return "insensitive"
        return "right" if self.by_hand <= limit and self.resumed <= limit else "wrong"


def cells_of(base: Base, window: int, query: int) -> tuple[Cell, ...]:
    """Return the cells of a knockout map."""
    rows = {key: (key,) for key in range(query + 1)} | {query + 1: tuple(range(query))}
    return knockout_plan(base.traced, "knockout", window, (query,), rows, range(base.traced.n_layers)).cells


def examine(model_type: str) -> Report:
    """Run all checks of one type and return the report, also if there was an error."""
    report = Report(model_type)
    try:
        base = _sensitive_base(report)
        _compare_by_hand(report, base)
        _compare_resumed(report, base)
    except ModelStructureError as error:
        report.refused = str(error)
    except Exception as error:  # noqa: BLE001 (the table shows every error of a model)
        where = traceback.extract_tb(error.__traceback__)[-1]
        report.error = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    return report


def _clean(base: Base) -> Base:
    """Return a copy in which interventions are made in the clean run."""
    start, end = base.prompt.subject_range
    embedded = base.traced.embedding(torch.tensor([base.prompt.input_ids[start:end]])).detach().float()
    return replace(base, corrupted=replace(base.corrupted, embeddings=embedded, scores=torch.tensor([base.high])))


def _sensitive_base(report: Report) -> Base:
    best: tuple[float, Base] | None = None
    for seed in range(SEEDS):
        traced = trace_model(tiny_configs.build(report.type, seed))
        base = _clean(Base.make(traced, 0.0, samples=1))
        effect = float((base.scores(cells_of(base, 1, TOKENS - 1)) - base.high).abs().max())
        if best is None or effect > best[0]:
            best = effect, base
        if effect >= 1e-2:
            break
    if best is None:
        raise RuntimeError("no model was built")
    report.effect, base = best
    blocked = len(base.traced.knockout_sites)
    report.layers = f"{blocked} of {base.traced.n_layers}"
    return base


def _compare_by_hand(report: Report, base: Base) -> None:
    blocks = [names[0] for names in base.traced.site_names["hidden"]]
    for window, query in ((1, TOKENS - 1), (3, TOKENS - 3)):
        cells = cells_of(base, window, query)
        for cell, score in zip(cells, base.scores(cells)[0].tolist(), strict=True):
            (blocked,) = cell.interventions
            edges = [(query, key) for key in blocked.keys]
            found = knocked_out(base.traced.model, base.prompt.input_ids, [blocks[n] for n in blocked.layers], edges)
            report.by_hand = max(report.by_hand, abs(float(found[base.clean.top_id]) - score))


def _compare_resumed(report: Report, base: Base) -> None:
    engines = []
    for tokens, window in LENGTHS.items():
        other = _clean(Base.make(base.traced, 0.0, min(tokens, base.traced.context_length or tokens), samples=1))
        tokens = len(other.prompt)
        chosen = choose_engine(base.traced, "auto", tokens, knockout=True)
        engines.append(chosen.name)
        for query in (tokens - 1, tokens - 3):
            cells = cells_of(other, window, query)
            difference = (other.scores(cells, chosen) - other.scores(cells)).abs().nan_to_num(torch.inf)
            report.resumed = max(report.resumed, float(difference.max()))
    report.engine = "; ".join(dict.fromkeys(engines))


def main() -> None:
    """Check the given types, and print a line for each and the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types, by their names in transformers (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="number of processes at a time")
    parser.add_argument("--seconds", type=int, default=200, help="time limit for each type")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    counts: Counter[str] = Counter()
    engines: Counter[str] = Counter()
    types = given.types or tiny_configs.decoder_types()
    for report in run_all(types, given.jobs, given.seconds, examine, Report):
        counts[report.state] += 1
        engines[report.engine] += 1
        numbers = f"effect {report.effect:.1g}, by hand {report.by_hand:.1e}, {report.engine} {report.resumed:.1e}"
        print(f"{report.type}: {report.state}, {report.refused or report.error or f'{report.layers}, {numbers}'}")
    print(dict(counts), dict(engines))


if __name__ == "__main__":
    main()
