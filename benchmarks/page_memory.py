"""Measure whether an open page grows over twenty streamed runs: its elements, nodes, listeners and memory.

    CAUSAL_TRACER_RESULTS_FOLDER=off python app.py --port 7860 &
    python benchmarks/page_memory.py http://127.0.0.1:7860/ [runs]

Needs playwright and Chromium. Each run has another seed, so that no result is a stored one. Memory is read after a
garbage collection.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from typing import Any

from playwright.sync_api import sync_playwright

OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
SAMPLES = 2


def main(url: str, runs: int) -> None:
    """Run, measure and print a line for each run."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        raise SystemExit("Chromium was not found. Install it, or set the variable CHROMIUM to its path.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        page.set_default_timeout(300_000)
        page.goto(f"{url}?samples={SAMPLES}", wait_until="commit")
        page.get_by_text("Model ready").wait_for()
        page.locator("#ct-more button").first.click()
        probe = page.context.new_cdp_session(page)
        probe.send("Performance.enable")
        print(f"{'run':>4} {'elements':>9} {'nodes':>8} {'listeners':>10} {'MiB':>7}")
        for number in range(1, runs + 1):
            _run(page, int(time.time()) % 1_000_000 + number)
            print(f"{number:>4} {_counts(page, probe)}", flush=True)
        browser.close()


def _run(page: Any, seed: int) -> None:
    page.locator("#ct-seed input").first.fill(str(seed))
    page.evaluate("document.querySelector('#ct-status-hidden .ct-status').dataset.earlier = ''")
    page.locator("#ct-run-hidden").click()
    done = page.locator("#ct-status-hidden .ct-status:not([data-earlier])").filter(has_text=re.compile("^Done"))
    done.wait_for()
    if "restored runs in" not in done.inner_text():
        raise SystemExit(f"This run was not computed: {done.inner_text()!r}")


def _counts(page: Any, probe: Any) -> str:
    """Return the numbers of elements, nodes in memory and event listeners, and the memory in MiB, as text."""
    probe.send("HeapProfiler.collectGarbage")
    metrics = {each["name"]: each["value"] for each in probe.send("Performance.getMetrics")["metrics"]}
    elements = page.evaluate("document.querySelectorAll('*').length")
    memory = metrics["JSHeapUsedSize"] / 2**20
    return f"{elements:>9} {metrics['Nodes']:>8.0f} {metrics['JSEventListeners']:>10.0f} {memory:>7.1f}"


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:7860/", int(sys.argv[2]) if len(sys.argv) > 2 else 20)
