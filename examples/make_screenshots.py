"""Take the README's pictures of the web page: the story of a first visit, and the workbench, light and dark.

    python examples/make_screenshots.py [folder]

It shows stored results, so it needs no model; it needs the app's packages, playwright and a Chromium.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from playwright.sync_api import sync_playwright

from causal_tracer.web.service.tracing import TraceService
from causal_tracer.web.serving import build_demo, page_options

LAST_STEP = 4


def main(folder: Path) -> None:
    """Write the pictures."""
    service = TraceService()
    demo = build_demo(service)
    demo.launch(prevent_thread_lock=True, server_name="127.0.0.1", quiet=True, **page_options(service))
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        for theme in ("light", "dark"):
            size = {"width": 1280, "height": 800}
            page = browser.new_page(viewport=size, color_scheme=theme, reduced_motion="reduce")
            page.set_default_timeout(60_000)
            page.goto(f"{demo.local_url}?__theme={theme}")
            page.wait_for_selector("#ct-map-hidden .heatmaplayer image")
            for _ in range(LAST_STEP):
                page.keyboard.press("ArrowRight")
            page.screenshot(path=folder / f"page_story_{theme}.png")
            # A second visit: without the story.
            page.reload()
            page.wait_for_selector("#ct-map-hidden .heatmaplayer image")
            page.screenshot(path=folder / f"page_workbench_{theme}.png")
        browser.close()
    demo.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "docs")
