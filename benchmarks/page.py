"""Measure a visitor's waiting times: first paint, tokens and lens while typing, a run, Stop, and a card of the history.

    python app.py --port 7860 &
    python benchmarks/page.py http://127.0.0.1:7860/ [rounds]

Needs playwright and Chromium, and an app that was just started. Each round opens the page with an empty cache, as at a
first visit, and uses another seed and another prompt, so that no result is a stored one.

The times of opening the page are measured in a Chromium without a debugger, by a small extension that watches the page.
With a debugger attached, such as Playwright, Chromium parses Plotly several times and takes half a second longer.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import sync_playwright

FIRST_SEED = 1000
PROMPT, TYPED = "The Space Needle is located in the city of", "The capital city of France is {} the city of"
# One for each round, since the lens of a prompt that was typed before is known.
WORDS = "now today still indeed clearly surely always officially really currently certainly formally".split()
OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
PATIENCE_SECONDS = 60
MANIFEST = {
    "manifest_version": 3,
    "name": "clock",
    "version": "1",
    "content_scripts": [{"matches": ["http://*/*"], "js": ["clock.js"], "run_at": "document_start"}],
}
# Reports each element once, at the first frame that has it.
CLOCK = """
const waited = {
  'story': '.ct-story .ct-grid',
  'stored map': '#ct-map-hidden .js-plotly-plot .heatmaplayer image',
};
function look() {
  for (const [name, selector] of Object.entries(waited)) {
    if (!document.querySelector(selector)) continue;
    fetch(`ADDRESS?name=${name}&seconds=${performance.now() / 1000}`);
    delete waited[name];
  }
  if (Object.keys(waited).length) requestAnimationFrame(look);
}
look();
"""


def main(url: str, rounds: int) -> None:
    """Measure and print a table."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        raise SystemExit("Chromium was not found. Install it, or set the variable CHROMIUM to its path.")
    if rounds > len(WORDS):
        raise SystemExit(f"{rounds} rounds were asked for, and there are {len(WORDS)} prompts. Ask for fewer.")
    figures: dict[str, list[float]] = {}
    seed = FIRST_SEED + int(time.time()) % 100_000
    load = os.getloadavg()[0]
    with clock() as (times, extension):
        for _ in range(rounds):
            _keep(figures, opened(path, url, times, extension))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        for number in range(rounds):
            _keep(figures, visit(browser, url, seed + number, TYPED.format(WORDS[number])))
        browser.close()
    print(f"{os.cpu_count()} cores, load average {load:.1f} at the start, {rounds} rounds; seconds")
    print(f"{'':32} median  (lowest to highest)")
    for name, seconds in figures.items():
        print(f"{name:32} {statistics.median(seconds):6.2f}  ({min(seconds):.2f} to {max(seconds):.2f})")


@contextmanager
def clock() -> Iterator[tuple[queue.Queue[tuple[str, float]], Path]]:
    """Yield a queue that receives the extension's times, and the extension's folder."""
    times: queue.Queue[tuple[str, float]] = queue.Queue()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told = parse_qs(urlsplit(self.path).query)
            times.put((told["name"][0], float(told["seconds"][0])))
            self.send_response(204)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Print nothing, to keep the output to the table."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server, tempfile.TemporaryDirectory() as folder:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        (Path(folder) / "manifest.json").write_text(json.dumps(MANIFEST), encoding="utf-8")
        (Path(folder) / "clock.js").write_text(CLOCK.replace("ADDRESS", address), encoding="utf-8")
        yield times, Path(folder)
        server.shutdown()


def opened(path: str, url: str, times: queue.Queue[tuple[str, float]], extension: Path) -> dict[str, float]:
    """Open the page as at a first visit, and return the times until the story and the stored map are there."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                *(path, "--headless=new", *OPTIONS, "--window-size=1280,800", f"--user-data-dir={profile}"),
                *(f"--load-extension={extension}", f"--disable-extensions-except={extension}", url),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return dict(times.get(timeout=PATIENCE_SECONDS) for _ in range(2))
        finally:
            process.terminate()
            process.wait()


def visit(browser: Any, url: str, seed: int, prompt: str) -> dict[str, float]:
    """Type a prompt, run it, stop it, run it again, and open its card later; return the time of each step."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{url}?seed={seed}", wait_until="commit")
    page.get_by_text("Model ready").wait_for()
    page.wait_for_function("document.querySelectorAll('#ct-chips [data-token]:not([disabled])').length > 0")
    found = _typed(page, prompt)
    run, stop = page.locator("#ct-run-hidden"), page.locator("#ct-stop-hidden")
    pressed = time.perf_counter()
    run.click()
    _status(page, r"[1-9]\d* of \d+ restored runs|Done")
    first = time.perf_counter() - pressed
    _status(page, r"about \d+ s left")
    pressed = time.perf_counter()
    stop.click()
    _status(page, "Stopped")
    page.wait_for_selector("#ct-run-hidden:enabled")
    stopped = time.perf_counter() - pressed
    pressed = time.perf_counter()
    run.click()
    _status(page, "Done")
    whole = time.perf_counter() - pressed
    words = page.locator("#ct-status-hidden").inner_text()
    if not re.search(r"restored runs in", words):
        raise SystemExit(f"The run of this round was not computed: {words!r}")
    found |= {"first cells after Run": first, "Stop": stopped, "whole map after Run": whole}
    # The card is opened after the fields have changed.
    page.locator("#ct-prompt textarea").first.fill(PROMPT)
    _chips(page, "Space")
    pressed = time.perf_counter()
    page.locator("#ct-history [data-open]").first.click()
    _status(page, "Opened from the history")
    page.wait_for_function(
        "prompt => document.querySelector('#ct-details-hidden').innerText.includes(prompt)", arg=prompt
    )
    context.close()
    return {**found, "a card of the history": time.perf_counter() - pressed}


def _typed(page: Any, prompt: str) -> dict[str, float]:
    """Type another prompt, and return the times from the last key until its tokens and its lens are there."""
    box = page.locator("#ct-prompt textarea").first
    box.fill(prompt[:-1])
    _chips(page, "France")
    box.press("End")
    pressed = time.perf_counter()
    box.press(prompt[-1])
    _chips(page, "of")
    tokens = time.perf_counter() - pressed
    page.wait_for_function(
        "() => [...document.querySelectorAll('#ct-prompt-lens-hidden tbody th')].at(-1)?.innerText === 'of'"
    )
    return {"tokens and answers after a key": tokens, "lens after a key": time.perf_counter() - pressed}


def _chips(page: Any, token: str) -> None:
    """Wait until a token of the prompt has this text, and the model's answers are there."""
    page.wait_for_function(
        "token => [...document.querySelectorAll('#ct-chips [data-token]')].some(chip => chip.innerText === token) "
        "&& document.querySelector('#ct-chips [data-answer]')",
        arg=token,
    )


def _status(page: Any, pattern: str) -> None:
    page.wait_for_function(
        "pattern => new RegExp(pattern).test(document.querySelector('#ct-status-hidden').innerText)", arg=pattern
    )


def _keep(figures: dict[str, list[float]], found: dict[str, float]) -> None:
    for name, seconds in found.items():
        figures.setdefault(name, []).append(seconds)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:7860/", int(sys.argv[2]) if len(sys.argv) > 2 else 5)
