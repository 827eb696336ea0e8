"""Attention knockout: compute the paper's three curves over the shipped facts, or time the sweeps on one prompt.

    python benchmarks/knockout.py curves --out knockout            # a study, and its figure as knockout/spans.html
    OMP_NUM_THREADS=1 python benchmarks/knockout.py speed           # one map by each sweep, in one process

The curves are those of Geva et al. 2023 (arXiv 2304.14767), Figure 2: the mean change of the answer's probability,
relative to the clean run, when the last token's attention to the subject, to the other tokens, or to itself is blocked
in windows of nine layers. Facts that the model does not know are left out. Intervals are 95 %, over relations.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from causal_tracer import CausalTracer, MapSpec, RunOptions, TraceRequest
from causal_tracer.plots.saving import save_figure
from causal_tracer.reproduce.dissecting_recall import KIND, recall_curves, recall_settings
from causal_tracer.study.facts import facts_digest, load_facts
from causal_tracer.study.figures import study_figures
from causal_tracer.study.runner import run_study
from causal_tracer.study.stored import StoredStudy

PROMPT, SUBJECT = "The Space Needle is located in the city of", "The Space Needle"
CONTEXT = (
    "Visitors to the Pacific Northwest often ask what to see first. Local guides name the market, the ferries and the "
    "old tower from the world's fair, which can be seen from most of the bay. "
)


def curves(model: str, out: Path, limit: int | None) -> None:
    """Run the study, write its figure, and print each curve's lowest point."""
    facts = load_facts("shipped")
    settings = recall_settings(model=model, facts="shipped", facts_digest=facts_digest(facts))
    outcome = run_study(out, settings, facts, lambda: CausalTracer.from_pretrained(model).context, limit=limit)
    effects = StoredStudy.open(outcome.folder).effects
    save_figure(study_figures(effects)[f"spans {KIND}"], out / "spans.html")
    print(f"{len(effects.facts)} facts of {len(set(effects.relations))} relations")
    for span, found in recall_curves(effects).items():
        print(f"| {span} | " + " | ".join(f"{value:.0f}" for value in found.mean) + " |")
        layer = int(found.mean.argmin())
        low, high = found.low[layer], found.high[layer]
        print(f"  lowest at layer {layer}: {found.mean[layer]:.1f} % ({low:.1f} to {high:.1f})")


def speed(model: str, rounds: int) -> None:
    """Time a knockout map by the resumed and the full sweep, without and with a context, and print medians."""
    tracer = CausalTracer.from_pretrained(model, progress=False)
    for prompt in (PROMPT, CONTEXT + PROMPT):
        time_sweeps(tracer, prompt, rounds)


def time_sweeps(tracer: CausalTracer, prompt: str, rounds: int) -> None:
    """Time the knockout map of one prompt. The first maps, which include the engine's check, are not timed."""
    request, spec = TraceRequest(prompt, SUBJECT, direction="corrupt", corruption="none"), MapSpec("knockout")
    engines = {"resumed": RunOptions(audit=False), "resumed, audited": RunOptions(), "full": RunOptions(engine="full")}
    flows = {name: tracer.trace(request, spec=spec, options=options) for name, options in engines.items()}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, options in engines.items():
            begun = time.perf_counter()
            tracer.trace(request, spec=spec, options=options)
            seconds[name].append(time.perf_counter() - begun)
    difference = float((flows["full"].scores - flows["resumed"].scores).abs().max())
    tokens, layers = flows["full"].scores.shape
    print(f"{tokens} tokens x {layers} layers, {flows['resumed'].settings.engine}, off by {difference:.1e}")
    for name, found in seconds.items():
        print(f"{name}: {statistics.median(found):.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["curves", "speed"])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--out", type=Path, default=Path("knockout"))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.what == "curves":
        curves(given.model, given.out, given.limit)
    else:
        speed(given.model, given.rounds)
