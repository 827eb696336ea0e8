"""How long a visitor waits: for the stored map, and for the first cells after Run, in a headless Chromium.

    python app.py --port 7860 &
    python benchmarks/page.py http://127.0.0.1:7860/ [rounds]

Needs playwright and a Chromium. Each round opens the page in a new context, without a cache, as a first visitor does.
Every round asks for another seed, so that no result is a kept one.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import sys
import time
from typing import Any

from playwright.sync_api import sync_playwright

FIRST_SEED = 1000


def main(url: str, rounds: int) -> None:
    """Measure and print a table."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    figures: dict[str, list[float]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        for number in range(rounds):
            for name, seconds in visit(browser, url, FIRST_SEED + int(time.time()) % 100_000 + number).items():
                figures.setdefault(name, []).append(seconds)
        browser.close()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, {rounds} rounds; seconds")
    print(f"{'':32} median  (lowest to highest)")
    for name, seconds in figures.items():
        print(f"{name:32} {statistics.median(seconds):6.2f}  ({min(seconds):.2f} to {max(seconds):.2f})")


def visit(browser: Any, url: str, seed: int) -> dict[str, float]:
    """One visitor: the page, then one map."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(120_000)
    begun = time.perf_counter()
    page.goto(f"{url}?seed={seed}", wait_until="commit")
    page.wait_for_selector(".ct-story .ct-grid")
    story = time.perf_counter() - begun
    page.wait_for_selector("#ct-map-hidden .js-plotly-plot .heatmaplayer image")
    stored = time.perf_counter() - begun
    page.get_by_text("Model ready").wait_for()
    page.wait_for_function("document.querySelectorAll('#ct-chips [data-token]:not([disabled])').length > 0")
    pressed = time.perf_counter()
    page.locator("#ct-run-hidden").click()
    page.wait_for_function(
        r"/[1-9]\d* of \d+ restored runs|Done/.test(document.querySelector('#ct-status-hidden').innerText)"
    )
    first = time.perf_counter() - pressed
    page.wait_for_function("/Done/.test(document.querySelector('#ct-status-hidden').innerText)")
    whole = time.perf_counter() - pressed
    words = page.locator("#ct-status-hidden").inner_text()
    if not re.search(r"restored runs in", words):
        raise SystemExit(f"This round measured nothing: {words!r}")
    context.close()
    return {"story": story, "stored map": stored, "first cells after Run": first, "whole map after Run": whole}


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:7860/", int(sys.argv[2]) if len(sys.argv) > 2 else 5)
