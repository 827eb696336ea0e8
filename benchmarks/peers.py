"""Compute the same maps with this project and with other tools, and compare numbers, times and peak memory.

    python benchmarks/peers.py --rounds 3
    python benchmarks/peers.py --layers 8 10 --samples 2    # a few layers, to compare the numbers

The script makes an environment for each tool, with the releases pinned in `peer_environments.py`. Each tool traces in
its own process, with the same model folder, noise, number of threads and dtype (float32). The code for each tool
(`peer_tools/`) is written for speed: many runs in a forward pass, and only the logits of the last token, if the tool
allows that. Loading the model and a small first map are not timed; a map's clean and corrupted runs are. Tools take
turns in each round. The tables have medians over all rounds. A map that differs from this project's by more than 1e-4
is marked wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.peer_environments import ROOT, THIS, TOOLS, ToolError, Worker, install
from causal_tracer import CausalTracer
from causal_tracer.experiment.set_up import prompt_for
from causal_tracer.loading.embedded import embedded_model_folder

PROMPT, SUBJECT, SEED = "The Space Needle is located in the city of", "The Space Needle", 1
WINDOWS = {"hidden": 1, "mlp": 10, "attention": 10}
MODELS = ("embedded", "embedded:smollm2-135m-instruct")
TOLERANCE = 1e-4

Task = dict[str, Any]
"""The fields of `Task` in `peer_tools/serving.py`."""


@dataclass(frozen=True)
class Timing:
    """The measurements of one map by one tool.

    Attributes:
        seconds: The time of the map.
        peak_mib: The process's peak resident memory during the map, with the model.
        idle_mib: The process's resident memory after the first small map.
        difference: The largest difference of the map's numbers from this project's.
    """

    seconds: float
    peak_mib: float
    idle_mib: float
    difference: float


def largest_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Return the largest difference of two maps' probabilities; infinite if one of them is NaN.

    Args:
        first: A map, with "scores" [tokens, layers], "low" and "high".
        second: The other map.
    """
    pairs = [(first[name], second[name]) for name in ("low", "high")]
    for row, other in zip(first["scores"], second["scores"], strict=True):
        pairs.extend(zip(row, other, strict=True))
    differences = [abs(a - b) for a, b in pairs]
    return max(float("inf") if np.isnan(difference) else difference for difference in differences)


def table(timings: Mapping[str, Sequence[Timing]], errors: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of one map's table. The line of a tool that failed has its error."""
    yield "| tool | seconds, median (lowest to highest) | times this | largest difference | peak memory (beyond idle) |"
    yield "|---|---|---|---|---|"
    mine = statistics.median(timing.seconds for timing in timings[THIS])
    for name, found in timings.items():
        if name in errors:
            yield f"| {name} | {errors[name]} | | | |"
            continue
        seconds = [timing.seconds for timing in found]
        median, difference = statistics.median(seconds), max(timing.difference for timing in found)
        peak = max(timing.peak_mib for timing in found)
        spread = f" ({min(seconds):.1f} to {max(seconds):.1f})" if len(seconds) > 1 else ""
        wrong = ", wrong" if difference > TOLERANCE else ""
        memory = f"{peak:.0f} ({peak - found[0].idle_mib:.0f}) MiB"
        yield f"| {name} | {median:.1f}{spread} | {median / mine:.1f} × | {difference:.1e}{wrong} | {memory} |"


def shared_fields(tracer: CausalTracer) -> Task:
    """Return the fields that all tasks on a model share, computed by this project."""
    prompt = prompt_for(tracer.context, PROMPT, SUBJECT)
    return {
        "prompt": PROMPT,
        "subject": SUBJECT,
        "ids": list(prompt.input_ids),
        "subject_range": list(prompt.subject_range),
        "answer_id": tracer.trace(PROMPT, SUBJECT, samples=1, end_layer=1).answer_id,
        "noise": tracer.noise,
        "seed": SEED,
        "n_layers": tracer.count_layers(),
    }


def save_noise(tracer: CausalTracer, samples: int, folder: Path) -> str:
    """Write the noise [samples, subject tokens, d_model] to a file, and return its path."""
    start, end = prompt_for(tracer.context, PROMPT, SUBJECT).subject_range
    shape = (samples, end - start, tracer.context.traced.d_model)
    file = folder / f"noise-{samples}.npy"
    np.save(file, (np.random.RandomState(SEED).randn(*shape) * tracer.noise).astype(np.float32))
    return str(file)


def measure(
    workers: Mapping[str, Worker], warm_up: Task, asked: Mapping[str, Task], rounds: int, once: Sequence[str]
) -> Iterator[tuple[str, dict[str, list[Timing]], dict[str, str]]]:
    """Yield each site with its timings by tool, and the errors of tools that failed.

    Args:
        workers: The tools' processes, this project's first.
        warm_up: A small map that each tool computes first.
        asked: The maps, by site.
        rounds: Number of rounds; each computes every map once.
        once: Tools that run in the first round only.
    """
    errors: dict[str, str] = {}

    def ask(name: str, task: Task) -> dict[str, Any] | None:
        if name in errors:
            return None
        try:
            return workers[name].ask(task)
        except ToolError as error:
            if name == THIS:
                raise
            errors[name] = str(error)
            return None

    warmed = {name: ask(name, warm_up) for name in workers}
    idle = {name: answer["now_mib"] for name, answer in warmed.items() if answer is not None}
    for site, task in asked.items():
        timings: dict[str, list[Timing]] = {name: [] for name in workers}
        for number in range(rounds):
            mine: dict[str, Any] = {}
            for name in workers:
                answer = None if number and name in once else ask(name, task)
                if answer is None:
                    continue
                mine = mine or answer
                difference = largest_difference(mine, answer)
                timings[name].append(Timing(answer["seconds"], answer["peak_mib"], idle[name], difference))
                print(f"{site}, round {number + 1}, {name}: {timings[name][-1]}", file=sys.stderr, flush=True)
        yield site, timings, errors


def on_model(model: str, pythons: Mapping[str, str], given: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds on one model, print each map's table, and return all timings by site and tool."""
    folder = str(embedded_model_folder(model))
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tracer = CausalTracer.from_pretrained(model, noise=given.noise)
        shared = shared_fields(tracer) | ({"batch_rows": given.batch_rows} if given.batch_rows else {})
        layers = given.layers or [0, tracer.count_layers()]
        noise_files = {samples: save_noise(tracer, samples, temporary) for samples in (1, given.samples)}
        del tracer

        def task(site: str, samples: int, reach: list[int]) -> Task:
            own = {"site": site, "window": WINDOWS[site], "layers": reach, "noise_file": noise_files[samples]}
            return {**shared, **own}

        workers = {}
        for name, python in pythons.items():
            log = given.environments / f"{Path(TOOLS[name].script).stem}.log"
            workers[name] = Worker(python, TOOLS[name], folder, given.threads, log)
            stack.callback(workers[name].stop)
        asked = {site: task(site, given.samples, layers) for site in given.sites}
        for site, timings, errors in measure(workers, task("hidden", 1, [0, 1]), asked, given.rounds, given.once):
            print(f"\n{model}, {site}, window {WINDOWS[site]}, {given.samples} samples:\n")
            print("\n".join(table(timings, errors)), flush=True)
            found[site] = {name: [asdict(timing) for timing in values] for name, values in timings.items()}
    return found


def main() -> None:
    """Make the environments, run the rounds, and print a table in Markdown for each map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=ROOT / "peers", help="folder of the tools' environments")
    parser.add_argument("--install-only", action="store_true", help="make the environments and stop")
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument("--sites", nargs="*", default=list(WINDOWS), choices=list(WINDOWS))
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS), help="this project always runs")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--once", nargs="*", default=[], choices=[*TOOLS][1:], help="tools that run in the first round only"
    )
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--layers", type=int, nargs=2, help="first layer, and one past the last (default: all)")
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument("--batch-rows", type=int, help="batch rows of a forward pass, for all tools")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="file for all timings")
    given = parser.parse_args()

    names = [THIS, *(name for name in TOOLS if name in given.tools and name != THIS)]
    pythons = {name: install(TOOLS[name], given.environments) for name in names}
    if given.install_only:
        return
    timings = {model: on_model(model, pythons, given) for model in given.models}
    if given.json:
        given.json.write_text(json.dumps(timings, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
