"""Compare one call for a list of prompts of mixed lengths with one call for each prompt, in CPU seconds a prompt.

    python benchmarks/many_prompts.py --model embedded:smollm2-135m-instruct --prompts 100

Lists of ten prompts and single calls take turns, so that both run under the same load of the machine. By default maps
are small (one sample, only the subject's tokens), because the handling of many prompts is measured, not their maps.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from causal_tracer import CausalTracer, HiddenFlowQuery, load_model  # noqa: E402

SUBJECTS = (
    *("Mount Fuji", "The Danube", "Lake Victoria", "Table Mountain", "The Sagrada Familia", "The Golden Gate Bridge"),
    *("Machu Picchu", "The Great Barrier Reef", "Angkor Wat", "The Brandenburg Gate", "Petra", "Stonehenge"),
    *(
        "The Blue Mosque",
        "Hagia Sophia",
        "The Kremlin",
        "Niagara Falls",
        "The Hermitage",
        "Alhambra",
        "Uluru",
        "Versailles",
    ),
)
FRAMES = (
    "{} is in",
    "{} can be found in the country of",
    "Many travellers dream of it: {} lies in",
    "On the last day of our long journey we finally came to see it. {}, as everybody knows, is in the country called",
    "Question: in which part of the world would one have to look for {}? Answer: one would have to look in",
)


def queries(count: int) -> list[HiddenFlowQuery]:
    """Return prompts of five lengths, mixed."""
    pairs = itertools.islice(itertools.product(SUBJECTS, FRAMES), count)
    return [HiddenFlowQuery(frame.format(subject), subject) for subject, frame in pairs]


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--layers", type=int, help="restore only in this many last layers")
    parser.add_argument("--all-tokens", action="store_true", help="restore at all tokens, not only at the subject's")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    loaded = load_model(arguments.model, device="cpu", dtype="float32")
    tracer = CausalTracer(loaded.model, loaded.tokenizer)
    first_layer = max(0, tracer.count_layers() - arguments.layers) if arguments.layers else 0
    options = {
        "samples": arguments.samples,
        "patch_subject_tokens_only": not arguments.all_tokens,
        "start_layer": first_layer,
    }
    asked = queries(arguments.prompts)
    tracer.calculate_hidden_flow(asked[0].text, asked[0].subject, **options)
    lengths = {len(tracer.tokenizer(query.text)["input_ids"]) for query in asked}
    together, alone = [], []
    apart = 0.0
    for start in range(0, len(asked), 10):
        part = asked[start : start + 10]
        maps = {}
        for how in ("list", "single") if start % 20 else ("single", "list"):
            begun = time.process_time()
            if how == "list":
                maps[how] = tracer.calculate_hidden_flows(part, **options)
                together.append((time.process_time() - begun) / len(part))
            else:
                maps[how] = [tracer.calculate_hidden_flow(query.text, query.subject, **options) for query in part]
                alone.append((time.process_time() - begun) / len(part))
        apart = max(
            apart,
            *(float((a.scores - b.scores).nan_to_num().abs().max()) for a, b in zip(*maps.values(), strict=True)),
        )
        print(f"{start + len(part)}: {together[-1]:.3f} s in a list, {alone[-1]:.3f} s alone", file=sys.stderr)
    print("| model | prompts | tokens | in a list | one at a time | ratio, median of tens | largest difference |")
    print("|---|---|---|---|---|---|---|")
    ratio = statistics.median(one / many for one, many in zip(alone, together, strict=True))
    each = f"{statistics.mean(together):.3f} s a prompt | {statistics.mean(alone):.3f} s a prompt"
    tokens = f"{min(lengths)}–{max(lengths)}"
    print(f"| {arguments.model} | {len(asked)} | {tokens} | {each} | {ratio:.2f} × | {apart:.1e} |")


if __name__ == "__main__":
    main()
