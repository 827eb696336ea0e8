"""Trace a tiny random model of every text decoder in transformers, and write `coverage.md`.

    OMP_NUM_THREADS=1 python benchmarks/coverage.py                # all, two minutes on two cores
    OMP_NUM_THREADS=1 python benchmarks/coverage.py gpt2 mamba     # some, printed only

Each model type runs in its own process, with a time limit. For each type:

1. A tiny model is built (`tiny_configs.py`), with the first seed for which noise on the subject changes the answer's
   probability: |TE| >= 0.01 and max |IE| >= 1e-3 for every kind. With smaller effects, any sweep would pass.
2. `trace_model` finds embedding, blocks, attention and MLP without configuration. The checks below would not notice
   swapped attention and MLP, so their names are compared with those in the source code (`tiny_configs.SITES`).
3. The full sweep is compared with plain hooks, one cell at a time, that share no code with the package (`by_hand.py`).
4. Identities are checked. Without noise all scores are high_score, and without an intervention low_score. In a hidden
   map, the last token of the last layer is high_score; the last layer's other tokens and all tokens before the subject
   are low_score. All tokens restored in one layer give high_score, if only the residual stream connects the blocks.
5. The engine chosen automatically is compared with the full sweep on every cell of every kind, to the smaller of 1e-5
   and 1e-3 of the largest indirect effect. The prompts have several lengths, and one is longer than every window and
   chunk of the models. Windows are 1, 2 and 3 on the shorter prompts.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import coverage_table, tiny_configs
from benchmarks.by_hand import HandTracer
from causal_tracer.corruption import NOISE_MULTIPLIER, GaussianNoise
from causal_tracer.errors import ModelStructureError
from causal_tracer.experiment.base_run import BaseRun, corrupted_run
from causal_tracer.experiment.embeddings import subject_embeddings
from causal_tracer.experiment.noise_levels import embedding_scale
from causal_tracer.metrics.metric import AnswerProbability
from causal_tracer.model.layers import TracedModel, trace_model
from causal_tracer.model.runs import CleanRun, clean_run
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.sites import KINDS, LayerKind
from causal_tracer.sweep.check import EngineCheck
from causal_tracer.sweep.engine import choose_engine, run_sweep
from causal_tracer.sweep.full import full_sweep
from causal_tracer.sweep.plan import Cell, Intervention, Sweep, SweepChunk, SweepPlan, map_plan

TOKENS = 12
SUBJECT = (3, 5)
SAMPLES = 2
LENGTHS: dict[int, tuple[int, ...]] = {7: (1, 3), TOKENS: (1, 2, 3), 70: (1,)}
"""The lengths of the prompts for the engine's comparison, with their windows. Linear attention has chunks of 64."""
SEEDS = 24
BATCH = 64


@dataclass
class Report:
    """The findings for one model type."""

    type: str
    model_class: str = ""
    blocks: str = ""
    attention: str = ""
    mlp: str = ""
    names_right: bool | None = None
    missing: dict[str, str] = field(default_factory=dict)
    seed: int = -1
    total_effect: float = 0.0
    effects: dict[str, float] = field(default_factory=dict)
    by_hand: float | None = None
    identities: list[str] = field(default_factory=list)
    engine: str = ""
    tried: tuple[str, ...] = ()
    resumed: float | None = None
    check_seconds: float = 0.0
    seconds: float = 0.0
    refused: str = ""
    error: str = ""

    @property
    def smallest_effect(self) -> float:
        """The smallest over kinds of the largest indirect effect."""
        return min(self.effects.values(), default=0.0)

    @property
    def sensitive(self) -> bool:
        """Whether the effects are large enough for a comparison to be meaningful."""
        return self.total_effect >= 0.01 and self.smallest_effect >= 1e-3

    @property
    def limit(self) -> float:
        """The largest allowed difference of scores."""
        return min(1e-5, 1e-3 * self.smallest_effect)

    @property
    def hidden_right(self) -> bool:
        """Whether maps equal the hooks by hand and obey the identities, on a sensitive model."""
        exact = self.by_hand is not None and self.by_hand <= self.limit and not self.identities
        return exact and self.sensitive and not self.error

    @property
    def all_right(self) -> bool:
        """Whether hidden maps are right, and attention and MLP have the names of the source code."""
        return self.hidden_right and bool(self.names_right)

    @property
    def resumed_right(self) -> bool:
        """Whether the chosen engine equals the full sweep on every cell."""
        return self.hidden_right and self.resumed is not None and self.resumed <= self.limit

    @property
    def shortcuts(self) -> int:
        """The work that the chosen engine skips: tokens and blocks (2), blocks (1), nothing (0)."""
        return {"resumed": 2, "resumed, all rows": 2, "resumed in depth": 1}.get(self.engine, 0)


@dataclass(frozen=True, eq=False)
class Base:
    """The inputs of every sweep of one model: clean run, corrupted run, metric and prompt."""

    traced: TracedModel
    clean: CleanRun
    corrupted: BaseRun
    metric: AnswerProbability
    prompt: Prompt
    level: float

    @classmethod
    def make(cls, traced: TracedModel, level: float, tokens: int = TOKENS, samples: int = SAMPLES) -> Base:
        """Run a prompt of random tokens clean and with noise of this level."""
        generator = torch.Generator().manual_seed(5)
        # From 7 on: special tokens are at the start of the vocabulary.
        ids = tuple(int(i) for i in torch.randint(7, traced.vocab_size, (tokens,), generator=generator))
        prompt = Prompt("", ids, ("",) * tokens, "", SUBJECT, False, 1)
        clean = clean_run(traced, ids)
        metric = AnswerProbability((clean.top_id,))
        corrupted = corrupted_run(traced, prompt, GaussianNoise(level, 1), samples, metric, BATCH)
        return cls(traced, clean, corrupted, metric, prompt, level)

    def scores(self, cells: Iterable[Cell], engine_check: EngineCheck | None = None) -> torch.Tensor:
        """Return scores [samples, cells], by the full sweep or in the mode of an engine check."""
        sweep = Sweep(self.traced, self.clean, self.corrupted, SweepPlan(tuple(cells)), self.metric, BATCH)
        chunks = full_sweep(sweep) if engine_check is None else run_sweep(engine_check, sweep, lambda: False)
        return _collect(chunks, len(sweep.plan.cells), self.corrupted.samples)

    def map_cells(self, kind: LayerKind, window: int) -> tuple[Cell, ...]:
        """Return every cell of a map."""
        layers = range(self.traced.n_layers)
        return map_plan(self.traced, self.prompt, kind, window, range(len(self.prompt)), layers).cells

    @property
    def high(self) -> float:
        """The answer's probability in the clean run."""
        return float(self.clean.probabilities[self.clean.top_id])


def _collect(chunks: Iterable[SweepChunk], cells: int, samples: int) -> torch.Tensor:
    scores = torch.full((samples, cells), torch.nan)
    for chunk in chunks:
        scores[chunk.samples, chunk.cells] = chunk.scores
    return scores


def examine(model_type: str) -> Report:
    """Run all checks of one type and return the report, also if there was an error."""
    report = Report(model_type)
    started = time.perf_counter()
    try:
        base = _sensitive_base(report)
        _check_names(report, base.traced)
        _compare_by_hand(report, base)
        _check_identities(report, base)
        _compare_resumed(report, base)
    except ModelStructureError as error:
        report.refused = str(error)
    except Exception as error:  # noqa: BLE001 (the table shows every error of a model)
        where = traceback.extract_tb(error.__traceback__)[-1]
        report.error = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    report.seconds = time.perf_counter() - started
    return report


def _sensitive_base(report: Report) -> Base:
    best: tuple[float, Base, int, dict[str, float], float] | None = None
    for seed in range(SEEDS):
        model = tiny_configs.build(report.type, seed)
        report.model_class = type(model).__name__
        traced = trace_model(model)
        base = Base.make(traced, NOISE_MULTIPLIER * embedding_scale(traced))
        low = base.corrupted.scores.mean()
        total = float((base.high - low).abs())
        effects = {}
        for kind in KINDS:
            if cells := base.map_cells(kind, 1):
                effects[kind] = float((base.scores(cells).mean(dim=0) - low).abs().max())
        rank = min([total / 10, *effects.values()])
        if best is None or rank > best[0]:
            best = (rank, base, seed, effects, total)
        if rank >= 1e-3:
            break
    if best is None:
        raise RuntimeError("no model was built")
    _, base, report.seed, report.effects, report.total_effect = best
    return base


def _check_names(report: Report, traced: TracedModel) -> None:
    names = traced.site_names
    report.blocks = f"{names['hidden'][0][0].rsplit('.', 1)[0]} ({traced.n_layers})"
    inside: dict[str, list[str]] = {}
    for kind in ("attention", "mlp"):
        inside[kind] = []
        for layer, (block,) in enumerate(names["hidden"]):
            inside[kind].append("+".join(name.removeprefix(f"{block}.") for name in names[kind][layer]))
        missing = traced.missing_layers(kind)
        if missing:
            report.missing[kind] = ",".join(map(str, missing))
    report.attention, report.mlp = (_short(inside[kind]) for kind in ("attention", "mlp"))
    expected = tiny_configs.expected_sites(report.type, traced.model.config)
    report.names_right = (inside["attention"], inside["mlp"]) == expected


def _short(names: list[str]) -> str:
    kinds = list(dict.fromkeys(name or "none" for name in names))
    return " / ".join(kinds)


def _compare_by_hand(report: Report, base: Base) -> None:
    traced = base.traced
    names = traced.site_names
    token_dims = dict.fromkeys((name for (name,) in names["hidden"]), 2 if traced.stacked_streams else 1)
    hand = HandTracer(traced.model, traced.embedding_name, token_dims)
    ids = base.prompt.input_ids
    everything = [name for kind in KINDS for layer in names[kind] for name in layer]
    probabilities, clean = hand.clean(ids, everything)
    answer = int(probabilities.argmax())
    worst = abs(float(probabilities[answer]) - base.high)
    noise = base.corrupted.embeddings[0] - subject_embeddings(traced, base.corrupted.prompt).embedded
    worst = max(
        worst, abs(float(hand.cell(ids, SUBJECT[0], noise, {}, clean)[answer]) - float(base.corrupted.scores[0]))
    )
    positions = (SUBJECT[1] - 1, SUBJECT[1] + 1, TOKENS - 1)
    for kind in KINDS:
        for window in (1, 3):
            cells = [cell for cell in base.map_cells(kind, window) if cell.position in positions]
            scores = base.scores(cells)[0]
            for cell, score in zip(cells, scores, strict=True):
                restored = [n for layer in _window(cell.layer, window, traced.n_layers) for n in names[kind][layer]]
                found = hand.cell(ids, SUBJECT[0], noise, {name: [cell.position] for name in restored}, clean)
                worst = max(worst, abs(float(found[answer]) - float(score)))
    report.by_hand = worst


def _window(layer: int, window: int, n_layers: int) -> list[int]:
    first = layer - window // 2
    return [number for number in range(first, first + window) if 0 <= number < n_layers]


def _check_identities(report: Report, base: Base) -> None:
    low, high, layers = base.corrupted.scores, base.high, base.traced.n_layers

    def require(what: str, found: torch.Tensor, expected: torch.Tensor | float) -> None:
        wrong = float((found - expected).abs().max())
        if not wrong <= 1e-5:
            report.identities.append(f"{what}: off by {wrong:.1g}")

    hidden = base.scores(base.map_cells("hidden", 1))
    cells = base.map_cells("hidden", 1)
    last = [i for i, cell in enumerate(cells) if cell.layer == layers - 1]
    if report.type not in tiny_configs.READS_EARLIER_BLOCKS:
        require("last layer, last token", hidden[:, [i for i in last if cells[i].position == TOKENS - 1]], high)
    require("last layer, other tokens", hidden[:, [i for i in last if cells[i].position < TOKENS - 1]], low[:, None])
    for kind in KINDS:
        cells = base.map_cells(kind, 2)
        before = [cell for cell in cells if cell.position < SUBJECT[0]]
        if before:
            require(f"{kind}, before the subject", base.scores(before), low[:, None])
    require("no intervention", base.scores([Cell(0, 0, ())]), low[:, None])
    everywhere = [Cell(0, n, (Intervention((n,), "hidden", tuple(range(TOKENS))),)) for n in range(layers)]
    if report.type not in tiny_configs.AROUND_THE_STREAM:
        require("all tokens at one layer", base.scores(everywhere), high)
    quiet = Base.make(base.traced, 0.0)
    for kind in KINDS:
        if cells := quiet.map_cells(kind, 3):
            require(f"{kind}, no noise", quiet.scores(cells), quiet.high)


def _compare_resumed(report: Report, base: Base) -> None:
    started = time.perf_counter()
    engine_check = choose_engine(base.traced, "auto", TOKENS)
    report.check_seconds = time.perf_counter() - started
    report.engine, report.tried = engine_check.name, engine_check.tried
    worst = 0.0
    for tokens, windows in LENGTHS.items():
        if base.traced.context_length is not None and tokens > base.traced.context_length:
            tokens = base.traced.context_length
        other = Base.make(base.traced, base.level, tokens, SAMPLES if tokens <= TOKENS else 1)
        engine_check = choose_engine(base.traced, "auto", tokens)
        if engine_check.name != report.engine:
            report.engine = f"{report.engine}; {engine_check.name} at {tokens} tokens"
        for kind in KINDS:
            for window in windows:
                if cells := other.map_cells(kind, window):
                    difference = other.scores(cells, engine_check) - other.scores(cells)
                    worst = max(worst, float(difference.abs().nan_to_num(torch.inf).max()))
    report.resumed = worst


def run_all(
    types: list[str], jobs: int, seconds: int, examine: Callable[[str], Any] = examine, kind: type[Any] = Report
) -> Iterable[Any]:
    """Run each type in its own process, and yield the reports as the processes end."""
    waiting, running = list(types), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            model_type = waiting.pop(0)
            read, write = os.pipe()
            sys.stdout.flush()
            # Forked, because importing transformers again would take longer than most types.
            if (pid := os.fork()) == 0:
                os.close(read)
                signal.alarm(seconds)
                with os.fdopen(write, "w") as pipe:
                    json.dump(asdict(examine(model_type)), pipe)
                os._exit(0)
            os.close(write)
            running[pid] = (model_type, read)
        pid, status = os.wait()
        model_type, read = running.pop(pid)
        with os.fdopen(read) as pipe:
            text = pipe.read()
        if text and status == 0:
            yield kind(**json.loads(text))
        else:
            yield kind(model_type, error=f"took more than {seconds} s" if status else "the process wrote no report")


def main() -> None:
    """Check the given types, print a line for each, and write the table if all types were checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types, by their names in transformers (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="number of processes at a time")
    parser.add_argument("--seconds", type=int, default=300, help="time limit for each type")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    started = time.perf_counter()
    decoders, wrappers = tiny_configs.decoder_types(), list(tiny_configs.WRAPPERS)
    reports = {}
    for report in run_all(given.types or decoders + wrappers, given.jobs, given.seconds):
        reports[report.type] = report
        print(coverage_table.row(report), flush=True)
    if not given.types:
        seconds = time.perf_counter() - started
        text = coverage_table.page([reports[t] for t in decoders], [reports[t] for t in wrappers], seconds)
        (Path(__file__).parent / "coverage.md").write_text(text)


if __name__ == "__main__":
    main()
