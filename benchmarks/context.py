"""Measure the time and memory of a map without and with text before the subject.

    python benchmarks/context.py --model embedded --context 0 200 --rounds 3

All maps are of the same sentence, so the tokens from the subject on are the same. Cells before the subject change
nothing and are not computed. Times are medians of CPU seconds, which depend less on other load of the machine; the
lengths take turns in each round. Memory is the peak of the process beyond its memory with the loaded and checked model.
The memory of all three kinds in one sweep, which has three times the cells, shows whether it grows with their number.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.worker import peak_mib  # noqa: E402
from causal_tracer import CausalTracer, MapSpec, RunOptions, TraceRequest  # noqa: E402
from causal_tracer.request.sites import KINDS  # noqa: E402

SENTENCE, SUBJECT = "The Space Needle is located in the city of", "The Space Needle"
BEFORE = (
    "We left the hotel early, because the guide had told us that the queues grow long before noon. The morning was "
    "grey and a fine rain was falling on the market, where people were setting out flowers, bread and fish. On the bus "
    "a boy asked his mother why the hills had no snow, and she said that winter had been mild this year. We passed two "
    "bridges, a library built of glass, and a park with old trees around a pond. Near the water stood a museum of "
    "music, bright red and silver, and next to it a small railway that runs above the street. The guide spoke about "
    "the fair for which most of this was made, about the engineers who drew the first plans on a paper napkin, and "
    "about the restaurant that turns slowly while one eats. Some of us took pictures; others looked for a place to "
    "drink coffee and to dry their coats. Then the clouds opened, and for a moment everything shone. Somebody in the "
    "group opened the little book with the questions that we had been given at the start of the trip, and read the "
    "next one aloud, slowly, so that all could hear it."
).split()


def prompt_with_context(tracer: CausalTracer, tokens: int) -> str:
    """Return the sentence after a text of at least this many tokens."""
    plain = len(tracer.tokenizer(SENTENCE)["input_ids"])
    for words in range(len(BEFORE) + 1):
        text = " ".join([*BEFORE[:words], SENTENCE])
        if len(tracer.tokenizer(text)["input_ids"]) - plain >= tokens:
            return text
    raise SystemExit(f"The text has fewer than {tokens} tokens.")


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument(
        "--context", nargs="*", type=int, default=[0, 200], help="minimum numbers of tokens before the sentence"
    )
    parser.add_argument("--kinds", nargs="*", default=["hidden"])
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tracer = CausalTracer.from_pretrained(arguments.model, dtype="float32", noise=1.0)
    prompts = {tokens: prompt_with_context(tracer, tokens) for tokens in arguments.context}
    options = RunOptions(batch_size=arguments.batch_size)
    chosen = {kind: MapSpec(kind) for kind in arguments.kinds}
    every = {kind: MapSpec(kind) for kind in KINDS}
    seconds: dict[int, list[float]] = {tokens: [] for tokens in prompts}
    peaks: dict[int, list[float]] = {tokens: [] for tokens in prompts}
    all_peaks: dict[int, list[float]] = {tokens: [] for tokens in prompts}
    told: dict[int, tuple[int, int, str]] = {}
    for text in prompts.values():
        # The first trace of a length checks the model.
        tracer.calculate_hidden_flow(text, SUBJECT, samples=1, start_layer=tracer.count_layers() - 1)
    for number in range(arguments.rounds):
        for tokens, text in prompts.items():
            resident = peak_mib(reset=True)
            begun = time.process_time()
            flows = tracer.trace_maps(TraceRequest(text, SUBJECT, samples=arguments.samples), chosen, options)
            seconds[tokens].append(time.process_time() - begun)
            peaks[tokens].append(peak_mib() - resident)
            settings = next(iter(flows.values())).settings
            told[tokens] = (len(tracer.tokenizer(text)["input_ids"]), settings.batch_size, settings.engine)
            print(f"round {number}, {tokens}: {seconds[tokens][-1]:.2f} s", file=sys.stderr)
            if number == 0:
                resident = peak_mib(reset=True)
                tracer.trace_maps(TraceRequest(text, SUBJECT, samples=arguments.samples), every, options)
                all_peaks[tokens].append(peak_mib() - resident)
    print(
        f"{arguments.model}, {', '.join(arguments.kinds)}, {arguments.samples} samples, {arguments.threads} thread(s), "
        f"torch {torch.__version__}, {arguments.rounds} rounds\n"
    )
    print("| tokens in all | batch | sweep | CPU seconds | times the first | peak memory, these / all three kinds |")
    print("|---|---|---|---|---|---|")
    first = statistics.median(seconds[arguments.context[0]])
    for tokens in prompts:
        length, batch, engine = told[tokens]
        median = statistics.median(seconds[tokens])
        print(
            f"| {length} | {batch} | {engine} | {median:.2f} | {median / first:.2f} | "
            f"{max(peaks[tokens]):.0f} / {max(all_peaks[tokens]):.0f} MiB |"
        )


if __name__ == "__main__":
    main()
