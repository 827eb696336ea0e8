"""Compare the estimated cost of a study with its real cost.

    python benchmarks/study.py --model embedded --limit 6 --samples 2

Both are given in CPU seconds, which depend less on other load of the machine, and in wall-clock seconds. The estimate
is that of `causal_tracer.study.cost`, which `causal-tracer study --dry-run` prints. The real cost is the time of
`run_study` on the same facts, without loading the model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from causal_tracer import CausalTracer, TraceRequest
from causal_tracer.study.cost import estimate_cost
from causal_tracer.study.facts import alternating_relations, facts_digest, load_facts
from causal_tracer.study.runner import run_study
from causal_tracer.study.settings import StudySettings


def main() -> None:
    """Estimate, run, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--facts", default="shipped")
    parser.add_argument("--limit", type=int, default=6)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--tries", type=int, default=2)
    arguments = parser.parse_args()
    facts = load_facts(arguments.facts)
    request = TraceRequest("", samples=arguments.samples)
    settings = StudySettings(arguments.model, arguments.facts, facts_digest(facts), request)
    context = CausalTracer.from_pretrained(arguments.model).context
    wanted = alternating_relations(facts)[: arguments.limit]
    begun = time.perf_counter(), time.process_time()
    estimate = estimate_cost(context, settings, facts, wanted, tries=arguments.tries, clock=time.process_time)
    estimating = time.perf_counter() - begun[0], time.process_time() - begun[1]
    # CPU seconds per wall-clock second turn the estimate, which is in CPU seconds, into wall-clock seconds.
    share = estimating[1] / estimating[0]
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter(), time.process_time()
        outcome = run_study(Path(folder) / "study", settings, facts, lambda: context, limit=arguments.limit)
        took = time.perf_counter() - begun[0], time.process_time() - begun[1]
    print(estimate.text())
    print(f"estimating took {estimating[0]:.0f} s, and {estimating[1]:.0f} CPU seconds")
    print(f"audit: largest difference {max((found.largest for found in outcome.audit), default=0.0):.1e}")
    print("| model | facts | samples | CPU: estimate / real | off by | wall clock: estimate / real |")
    print("|---|---|---|---|---|---|")
    processor, traced = estimate.hours * 3600, outcome.counts.get("traced", 0)
    print(
        f"| {arguments.model} | {traced} | {arguments.samples} | {processor:.0f} / {took[1]:.0f} s "
        f"| {processor / took[1] - 1:+.0%} | {processor / share:.0f} / {took[0]:.0f} s |"
    )


if __name__ == "__main__":
    main()
