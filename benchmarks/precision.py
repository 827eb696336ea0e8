"""Measure the largest difference of scores in half precision from float32, by each engine.

    python benchmarks/precision.py --models embedded embedded:smollm2-135m-instruct --dtypes bfloat16 float16

The cells are those of the subject's tokens and the last token, in all layers, with the paper's windows (1, 10, 10).
Each dtype uses the noise and the answer of float32. It runs by three engines: the whole model for every cell ("full"),
resumed in depth only, and resumed in depth and position, with earlier tokens in a key/value cache. Differences are
those of probabilities, as means over samples. The total effect is given for comparison.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from causal_tracer import CausalTracer, HiddenFlow, MapSpec, TraceRequest  # noqa: E402
from causal_tracer.errors import NumericsError  # noqa: E402
from causal_tracer.prompts.prompt import make_prompt  # noqa: E402
from causal_tracer.sweep.check import EngineCheck  # noqa: E402
from causal_tracer.sweep.resume_mode import RESUME_MODES  # noqa: E402

PROMPT, SUBJECT = "The Space Needle is located in the city of", "The Space Needle"
MAPS = {"hidden": MapSpec("hidden", 1), "mlp": MapSpec("mlp", 10), "attention": MapSpec("attention", 10)}
ENGINES = {mode.name: EngineCheck(mode, ()) for mode in RESUME_MODES if mode.name != "resumed, all rows"} | {
    "full": EngineCheck(None, ())
}


def maps_of(tracer: CausalTracer, engine: str, samples: int, answer_id: int | None) -> dict[str, HiddenFlow]:
    """Return the maps computed by this engine, also if the engine's check on the model would refuse it."""
    prompt = make_prompt(tracer.tokenizer, PROMPT, SUBJECT)
    positions = (*range(*prompt.subject_range), len(prompt) - 1)
    request = TraceRequest(PROMPT, SUBJECT, samples=samples, answer_id=answer_id)
    maps = {name: replace(spec, positions=positions) for name, spec in MAPS.items()}
    with mock.patch("causal_tracer.tracing.loop.choose_engine", return_value=ENGINES[engine]):
        return tracer.trace_maps(request, maps)


def difference(found: HiddenFlow, expected: HiddenFlow) -> float:
    """Return the largest absolute difference of scores; infinite if only one of the maps has a cell."""
    if not torch.equal(found.scores.isnan(), expected.scores.isnan()):
        return math.inf
    return float((found.scores - expected.scores).nan_to_num().abs().max())


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["embedded", "embedded:smollm2-135m-instruct"])
    parser.add_argument("--dtypes", nargs="*", default=["bfloat16", "float16"])
    parser.add_argument("--sweeps", nargs="*", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--noise", type=float, help="noise level (default: three standard deviations of the embedding)")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.samples} samples, {arguments.threads} thread(s), torch {torch.__version__}\n")
    print("| model | dtype | sweep | hidden | mlp, 10 | attention, 10 | clean | corrupted | total effect | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for model in arguments.models:
        tracer = CausalTracer.from_pretrained(model, dtype="float32", device="cpu", noise=arguments.noise)
        exact = maps_of(tracer, "full", arguments.samples, None)
        noise, answer_id = tracer.noise, exact["hidden"].answer_id
        for dtype in ("float32", *arguments.dtypes):
            del tracer
            gc.collect()
            tracer = CausalTracer.from_pretrained(model, dtype=dtype, device="cpu", noise=noise)
            for engine in arguments.sweeps:
                begun = time.perf_counter()
                try:
                    flows = maps_of(tracer, engine, arguments.samples, answer_id)
                except NumericsError as error:
                    print(f"| {model} | {dtype} | {engine} | {str(error).split('. ')[0]} | | | | | | |", flush=True)
                    continue
                seconds = time.perf_counter() - begun
                apart = " | ".join(f"{difference(flows[name], exact[name]):.1e}" for name in MAPS)
                flow, right = flows["hidden"], exact["hidden"]
                ends = f"{abs(flow.high_score - right.high_score):.1e} | {abs(flow.low_score - right.low_score):.1e}"
                effect = right.high_score - right.low_score
                print(f"| {model} | {dtype} | {engine} | {apart} | {ends} | {effect:.3f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
