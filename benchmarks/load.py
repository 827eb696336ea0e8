"""Load test: fifty clients on one app for three minutes, on loopback.

    python benchmarks/load.py                             # the embedded model
    python benchmarks/load.py --seconds 60 --clients 20   # shorter

The app runs in its own process, with its results in a new folder. The clients request known results, small new maps,
lenses and patched runs, inspections of prompts, and invalid maps, and abandon some runs.

The exit status is 1 in three cases: an answer was neither a correct result nor a refusal with the expected message;
memory grew by more than a twentieth from the second third of the time to the last one (medians, since a run takes
memory while it lasts); or the 95th percentile of the time of known results was above 300 ms. The app's caches are so
small that they are full after the first third, so that later growth is a leak. Needs httpx and psutil, which are
installed with the app.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

PROMPT, SUBJECT = "The Space Needle is located in the city of", "The Space Needle"
KNOWN: tuple[dict[str, Any], ...] = tuple(
    {
        "request": {"prompt": PROMPT, "subject": SUBJECT, "samples": 2, "seed": seed},
        "maps": [{"kind": kind, "subject_tokens_only": True}],
    }
    for kind in ("hidden", "mlp")
    for seed in (1, 2)
)
LENS = {"request": {"prompt": PROMPT}}
PATCH = {"source": PROMPT, "base": "The Eiffel Tower is located in the city of", "pairs": [[[-1, 8], [-1, 8]]]}
INVALID: tuple[tuple[dict[str, Any], str], ...] = (
    ({"prompt": ""}, "The prompt is empty"),
    ({"subject": "Eiffel <b>Tower</b>"}, "is not in the prompt"),
    ({"samples": 0}, "samples=0"),
    ({"samples": 10**4}, "CAUSAL_TRACER_MAX_SAMPLES"),
    ({"metric": "charm"}, "is not known"),
    ({"kind": "neurons"}, "has no field"),
    ({"prompt": "word " * 3000}, "CAUSAL_TRACER_MAX_PROMPT_TOKENS"),
    ({"noise": -1}, "is not a noise level"),
)
BUSY = ("waiting already", "CAUSAL_TRACER_MAX_CLIENT", "Queue is full")
SMALL_CACHES = {
    "CAUSAL_TRACER_MAX_CLIENT_RUNS": "0",
    "CAUSAL_TRACER_MAX_SESSIONS": "300",
    "CAUSAL_TRACER_RESULT_BYTES": str(8 * 2**20),
}
MOST_P95, MOST_GROWTH = 0.3, 0.05


@dataclass
class Report:
    """The clients' observations: counts, times of known results, wrong answers, and the app's memory over time."""

    counts: Counter[str] = field(default_factory=Counter)
    known_seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)


def main() -> int:
    """Run the test and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=180)
    parser.add_argument("--pause", type=float, default=5.0, help="mean seconds between two requests of a client")
    options = parser.parse_args()
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "CAUSAL_TRACER_RESULTS_FOLDER": folder, **SMALL_CACHES}
        with open(os.path.join(folder, "app.log"), "w+", encoding="utf-8") as log:
            command = [sys.executable, "app.py", "--port", str(port), "--model", options.model]
            app = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
            try:
                report = asyncio.run(play(f"http://127.0.0.1:{port}", app.pid, options))
                report.counts["app's process ended"] = int(app.poll() is not None)
            finally:
                app.terminate()
                app.wait(timeout=30)
            log.seek(0)
            report.counts["trace-backs in the log"] = log.read().count("Traceback (most recent call last)")
    return shown(report)


async def play(address: str, pid: int, options: argparse.Namespace) -> Report:
    """Wait for the model, run all clients until the time is over, and check the app afterwards."""
    report = Report()
    # The server closes connections that are idle for five seconds.
    limits = httpx.Limits(max_connections=None, keepalive_expiry=2)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as http:
        await ready(http)
        expected = [result(await ask(http, known)) for known in KNOWN]
        end = time.monotonic() + options.seconds
        watching = asyncio.create_task(watch_memory(pid, report, end))
        await asyncio.gather(*(client(http, n, expected, report, end, options.pause) for n in range(options.clients)))
        await watching
        # After all requests, also the abandoned ones, the app must be idle and still correct.
        await free_again(http)
        for known, numbers in zip(KNOWN, expected, strict=True):
            compare(result(await ask(http, known)), numbers, report)
    return report


async def client(
    http: httpx.AsyncClient, number: int, expected: Sequence[Any], report: Report, end: float, pause: float
) -> None:
    """Run one client, which takes random actions until the end."""
    draw = random.Random(number)
    while time.monotonic() < end:
        await asyncio.sleep(draw.expovariate(1 / pause))
        what = draw.choices(tuple(ACTIONS), weights=(50, 10, 20, 8, 8, 4))[0]
        report.counts[what] += 1
        try:
            await ACTIONS[what](http, draw, expected, report)
        except (httpx.HTTPError, OSError, ValueError, KeyError) as error:
            report.wrong.append(f"{what}: {type(error).__name__}: {error}"[:200])


async def known(http: httpx.AsyncClient, draw: random.Random, expected: Sequence[Any], report: Report) -> None:
    """Request a known result, time it, and compare it with the first one."""
    place = draw.randrange(len(KNOWN))
    begun = time.monotonic()
    answer = await ask(http, KNOWN[place])
    report.known_seconds.append(time.monotonic() - begun)
    if not refused(answer, report):
        compare(result(answer), expected[place], report)


async def new(http: httpx.AsyncClient, draw: random.Random, expected: Sequence[Any], report: Report) -> None:
    """Request a small new map, whose clean run must be the known one."""
    answer = await ask(http, small(draw))
    if not refused(answer, report):
        found = result(answer)
        cells = [score for row in found["scores"] for score in row if score is not None]
        if not (cells and all(0 <= score <= 1 for score in cells)):
            report.wrong.append("new: scores are not probabilities")
        if not math.isclose(found["high_score"], expected[0]["high_score"], rel_tol=1e-5):
            report.wrong.append(f"new: high_score {found['high_score']}")


async def invalid(http: httpx.AsyncClient, draw: random.Random, _expected: Sequence[Any], report: Report) -> None:
    """Send an invalid request, which must be refused with the expected message."""
    changes, words = draw.choice(INVALID)
    answer = await ask(http, {"request": {"prompt": PROMPT, "subject": SUBJECT, **changes}})
    if answer[0] != "error" or words not in str(answer[1]):
        report.wrong.append(f"invalid {changes}: {str(answer)[:150]}"[:300])


async def abandon(http: httpx.AsyncClient, draw: random.Random, _expected: Sequence[Any], _report: Report) -> None:
    """Begin a long run and close the connection before its end."""
    event = await begin(http, {"request": {**small(draw)["request"], "samples": 20}})
    async with http.stream("GET", f"/gradio_api/call/trace/{event}") as stream:
        try:
            async with asyncio.timeout(draw.uniform(0.1, 3)):
                async for _ in stream.aiter_lines():
                    pass
        except TimeoutError:
            return


async def single(http: httpx.AsyncClient, _draw: random.Random, expected: Sequence[Any], report: Report) -> None:
    """Request a lens and a patched run, which must both have the prompt's answer."""
    lens = await ask_endpoint(http, "lens", [LENS])
    patched = await ask_endpoint(http, "patch", [PATCH])
    if refused(lens, report) or refused(patched, report):
        return
    if result(lens)["answer_id"] != expected[0]["answer_id"]:
        report.wrong.append(f"lens: {result(lens)['answer_id']}")
    if expected[0]["answer_id"] not in [answer["token_id"] for answer in result(patched)["answers"]]:
        report.wrong.append(f"patch: {result(patched)['answers']}")


async def inspect(http: httpx.AsyncClient, _draw: random.Random, expected: Sequence[Any], report: Report) -> None:
    """Inspect the prompt, and read the app's health."""
    found = (await ask_endpoint(http, "inspect_prompt", [PROMPT, SUBJECT]))[1][0]
    if found["answer"]["token_id"] != expected[0]["answer_id"]:
        report.wrong.append(f"inspect: {found['answer']}")
    (await http.get("/health")).raise_for_status()


ACTIONS = {"known": known, "new": new, "invalid": invalid, "abandon": abandon, "inspect": inspect, "single": single}


def small(draw: random.Random) -> dict[str, Any]:
    """Return a request for a small new map."""
    layer = draw.randrange(8)
    return {
        "request": {"prompt": PROMPT, "subject": SUBJECT, "samples": 1, "seed": draw.randrange(10**6)},
        "maps": [{"subject_tokens_only": True, "start_layer": layer, "end_layer": layer + 2}],
    }


async def begin(http: httpx.AsyncClient, asked: dict[str, Any]) -> str:
    """Request a trace, and return the id of its event stream."""
    posted = await http.post("/gradio_api/call/trace", json={"data": [asked]})
    posted.raise_for_status()
    return str(posted.json()["event_id"])


async def ask(http: httpx.AsyncClient, asked: dict[str, Any]) -> tuple[str, Any]:
    """Request a trace, and return its last event and data."""
    return await outcome(http, "trace", await begin(http, asked))


async def ask_endpoint(http: httpx.AsyncClient, endpoint: str, data: list[Any]) -> tuple[str, Any]:
    """Call an endpoint, and return its last event and data."""
    posted = await http.post(f"/gradio_api/call/{endpoint}", json={"data": data})
    posted.raise_for_status()
    return await outcome(http, endpoint, str(posted.json()["event_id"]))


async def outcome(http: httpx.AsyncClient, endpoint: str, event: str) -> tuple[str, Any]:
    """Read an event stream to its end, and return its last event and data."""
    kind, data = "none", "null"
    async with http.stream("GET", f"/gradio_api/call/{endpoint}/{event}") as stream:
        stream.raise_for_status()
        async for line in stream.aiter_lines():
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                data = line[6:]
    return kind, json.loads(data)


def result(answer: tuple[str, Any]) -> Any:
    """Return the result in an answer."""
    if answer[0] != "complete":
        raise ValueError(f"no result: {answer}")
    return answer[1][0]


def refused(answer: tuple[str, Any], report: Report) -> bool:
    """Return whether the app refused a request because it is busy."""
    if answer[0] == "error" and any(words in str(answer[1]) for words in BUSY):
        report.counts["refused: busy"] += 1
        return True
    return False


def compare(found: Any, expected: Any, report: Report) -> None:
    """Report a result whose numbers differ from the expected ones."""
    if any(found[name] != expected[name] for name in ("scores", "high_score", "low_score", "answer_id")):
        report.wrong.append("known: numbers differ from the first result")


async def ready(http: httpx.AsyncClient) -> None:
    """Wait until the model is loaded."""
    for _ in range(600):
        try:
            if "ready" in (await http.get("/health")).json()["models"].values():
                return
        except (httpx.HTTPError, ValueError):
            pass
        await asyncio.sleep(0.5)
    raise SystemExit("The app's model was not ready after five minutes.")


async def free_again(http: httpx.AsyncClient) -> None:
    """Wait until the app has no running request."""
    for _ in range(240):
        if (await http.get("/health")).json()["running"] == 0:
            return
        await asyncio.sleep(0.5)
    raise SystemExit("The app still runs requests whose clients have gone.")


async def watch_memory(pid: int, report: Report, end: float) -> None:
    """Record the app's memory until the end."""
    begun = time.monotonic()
    while time.monotonic() < end:
        report.memory.append((time.monotonic() - begun, psutil.Process(pid).memory_info().rss))
        await asyncio.sleep(2)


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def shown(report: Report) -> int:
    """Print the report, and return the exit status."""
    seconds = sorted(report.known_seconds)
    p50, p95 = statistics.median(seconds), seconds[math.ceil(0.95 * len(seconds)) - 1]
    third = len(report.memory) // 3
    middle, last = (
        statistics.median(rss for _, rss in part) for part in (report.memory[third:-third], report.memory[-third:])
    )
    most = max(rss for _, rss in report.memory)
    growth = last / middle - 1
    for name, count in sorted(report.counts.items()):
        print(f"{name:>24}: {count}")
    print(
        f"{'known results':>24}: median {1000 * p50:.0f} ms, p95 {1000 * p95:.0f} ms, most {1000 * seconds[-1]:.0f} ms"
    )
    print(
        f"{'memory':>24}: {middle / 2**20:.0f} MiB in the second third, {last / 2**20:.0f} MiB in the last "
        f"({growth:+.1%}), {most / 2**20:.0f} MiB at most"
    )
    print(f"{'wrong answers':>24}: {len(report.wrong)}")
    for words, count in Counter(report.wrong).most_common(10):
        print(f"{count:>26} × {words}")
    broken = report.counts["app's process ended"] or report.counts["trace-backs in the log"]
    return int(bool(report.wrong or broken or p95 > MOST_P95 or growth > MOST_GROWTH))


if __name__ == "__main__":
    sys.exit(main())
