"""Compare the resumed sweep with the full sweep, and with nnsight, on maps between two prompts and on ablations.

    python benchmarks/two_prompts.py                  # Gemma 3 270M, three rounds
    python benchmarks/two_prompts.py --nnsight        # also the same map by nnsight (pip install nnsight)

All sweeps run in one process and take turns in each round; the table has medians. The first map, which includes the
first-use check, is not counted. The nnsight sweep is written for speed: many cells as batch rows of one trace, and only
the logits of the last token.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from causal_tracer import CausalTracer, MapSpec, OtherPrompt, RunOptions, TraceRequest

PROMPT, SUBJECT = "The Space Needle is located in the city of", "The Space Needle"
SECOND = OtherPrompt("The Eiffel Tower is located in the city of", "The Eiffel Tower")
LONGER = OtherPrompt("The Leaning Tower of Pisa is located in the city of", "The Leaning Tower of Pisa")
IN_THE_CLEAN_RUN = {"direction": "corrupt", "corruption": "none"}
CASES: dict[str, tuple[TraceRequest, MapSpec]] = {
    "second prompt, hidden": (TraceRequest(PROMPT, SUBJECT, second=SECOND), MapSpec("hidden")),
    "second prompt, MLP": (TraceRequest(PROMPT, SUBJECT, second=SECOND), MapSpec("mlp")),
    "longer second prompt, hidden": (TraceRequest(PROMPT, SUBJECT, second=LONGER), MapSpec("hidden")),
    "second prompt into the first, hidden": (
        TraceRequest(PROMPT, SUBJECT, second=SECOND, direction="corrupt"),
        MapSpec("hidden"),
    ),
    "zero ablation, MLP": (TraceRequest(PROMPT, SUBJECT, **IN_THE_CLEAN_RUN), MapSpec("mlp", 1, source="zero")),
    "mean ablation, MLP": (
        TraceRequest(PROMPT, SUBJECT, **IN_THE_CLEAN_RUN, mean_over=(SECOND.text, LONGER.text)),
        MapSpec("mlp", 1, source="mean"),
    ),
}
_ROWS = 90


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a function takes, and its result."""
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


def by_nnsight(tracer: CausalTracer) -> torch.Tensor:
    """Return the first case's map as nnsight computes it: logit differences [tokens, layers]."""
    from nnsight import LanguageModel

    model = LanguageModel(tracer.model, tokenizer=tracer.tokenizer)
    first, second = (tracer.tokenizer(text, return_tensors="pt").input_ids for text in (PROMPT, SECOND.text))
    layers = range(len(model.model.layers))
    clean = []
    with torch.no_grad():
        with model.trace(first):
            for layer in layers:
                clean.append(model.model.layers[layer].output[0].save())
            answer = model.lm_head.output[0, -1].argmax().save()
        with model.trace(second):
            foil = model.lm_head.output[0, -1].argmax().save()
        cells = [(token, layer) for token in range(first.shape[1]) for layer in layers]
        scores = torch.empty(first.shape[1], len(layers))
        for start in range(0, len(cells), _ROWS):
            part = cells[start : start + _ROWS]
            with model.trace(second.expand(len(part), -1), logits_to_keep=1):
                for layer in layers:
                    for row, (token, own) in enumerate(part):
                        if own == layer:
                            model.model.layers[layer].output[row, token, :] = clean[layer][token]
                logits = model.lm_head.output[:, -1].save()
            for (token, layer), row in zip(part, logits, strict=True):
                scores[token, layer] = row[answer] - row[foil]
    return scores


def main() -> None:
    """Trace each case a few times by both sweeps, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--nnsight", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tracer = CausalTracer.from_pretrained(given.model)
    tracer.trace(PROMPT, SUBJECT, samples=1)
    print("| map | cells | resumed | full | ratio | largest difference |\n|---|---|---|---|---|---|")
    for name, (request, spec) in CASES.items():
        seconds: dict[str, list[float]] = {"auto": [], "full": []}
        flows = {}
        for _ in range(given.rounds):
            for engine in ("auto", "full"):
                options = RunOptions(engine=engine)
                spent, flows[engine] = timed(lambda r=request, s=spec, o=options: tracer.trace(r, spec=s, options=o))
                seconds[engine].append(spent)
        fast, slow = (statistics.median(seconds[engine]) for engine in ("auto", "full"))
        difference = float((flows["auto"].scores - flows["full"].scores).abs().nan_to_num(0.0).max())
        cells = int((~flows["full"].scores.isnan()).sum())
        times = f"{fast:.2f} s | {slow:.1f} s | {slow / fast:.1f} ×"
        print(f"| {name} | {cells} | {times} | {difference:.1e} |", flush=True)
    if given.nnsight:
        request, spec = CASES["second prompt, hidden"]
        ours, theirs = [], []
        for _ in range(given.rounds):
            spent, flow = timed(lambda: tracer.trace(request, spec=spec))
            ours.append(spent)
            spent, scores = timed(lambda: by_nnsight(tracer))
            theirs.append(spent)
        fast, slow = statistics.median(ours), statistics.median(theirs)
        difference = float((flow.scores - scores).abs().max())
        print(f"nnsight {slow:.2f} s, this {fast:.2f} s: {slow / fast:.1f} ×, largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
