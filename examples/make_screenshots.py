"""Take screenshots of the web page: the story and the workbench for the docs, or each tab for review.

    python examples/make_screenshots.py [folder]            the screenshots of the docs, light and dark
    python examples/make_screenshots.py --tabs folder       each tab: desktop and phone, light and dark

The screenshots of the docs show stored results and need no model. Those of the tabs load the embedded model, because
lenses are computed. Both need the app's packages, playwright and Chromium.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from playwright.sync_api import sync_playwright

from causal_tracer.web.page.explore import TAB_TITLES
from causal_tracer.web.service.tracing import TraceService
from causal_tracer.web.serving import build_demo, page_options

LAST_STEP = 4
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
# The element that shows that a tab is complete. Other tabs are complete when their map is there.
COMPLETE = {
    "lens": "#ct-lens-grid table",
    "patch": "#ct-patch-lenses table",
    "compare": "#ct-compare-words",
    "studies": "#ct-study-findings table",
}

STILL = "!document.getAnimations().some(its => its.playState === 'running' && its.effect.getTiming().iterations === 1)"


def main(folder: Path, *, tabs: bool) -> None:
    """Write the screenshots."""
    folder.mkdir(parents=True, exist_ok=True)
    service = TraceService()
    demo = build_demo(service)
    demo.launch(prevent_thread_lock=True, server_name="127.0.0.1", quiet=True, **page_options(service))
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        for theme in ("light", "dark"):
            if tabs:
                take_tabs(browser, demo.local_url, theme, folder)
            else:
                take_docs(browser, demo.local_url, theme, folder)
        browser.close()
    demo.close()


def opened(browser: Any, url: str, theme: str, size: Any) -> Any:
    """Open the app's page, and return it when the model is ready and its answers are shown."""
    page = browser.new_page(viewport=size, color_scheme=theme, reduced_motion="reduce")
    page.set_default_timeout(120_000)
    page.goto(f"{url}?__theme={theme}")
    _wait(page)
    return page


def take_docs(browser: Any, url: str, theme: str, folder: Path) -> None:
    """Take screenshots of the story's last step and of the workbench."""
    page = opened(browser, url, theme, DESKTOP)
    for _ in range(LAST_STEP):
        page.keyboard.press("ArrowRight")
    page.screenshot(path=folder / f"page_story_{theme}.png")
    _visit_again(page)
    page.screenshot(path=folder / f"page_workbench_{theme}.png")


def take_tabs(browser: Any, url: str, theme: str, folder: Path) -> None:
    """Take a screenshot of each tab on a desktop and on a phone."""
    for device, size in (("desktop", DESKTOP), ("phone", PHONE)):
        page = opened(browser, url, theme, size)
        _visit_again(page)
        for name, title in TAB_TITLES.items():
            _open_tab(page, title)
            if name == "patch":
                page.locator("#ct-run-patch").click()
            page.wait_for_selector(COMPLETE.get(name, f"[id^='ct-map-{name}'] .main-svg"))
            page.wait_for_function(STILL)
            page.screenshot(path=folder / f"{name}_{device}_{theme}.png", full_page=device == "phone")
        page.close()


def _visit_again(page: Any) -> None:
    """Reload the page, as on a second visit, on which it opens without the story."""
    page.reload()
    _wait(page)


def _wait(page: Any) -> None:
    page.wait_for_selector("#ct-map-hidden .heatmaplayer image")
    page.get_by_text("Model ready").wait_for()
    page.locator("#ct-chips [data-answer]:enabled").first.wait_for()


def _open_tab(page: Any, title: str) -> None:
    tab = page.get_by_role("tab", name=title, exact=True)
    if not tab.is_visible():
        # On a phone most tabs are in a menu.
        page.get_by_role("button", name="More tabs").click()
        tab = page.get_by_role("button", name=title, exact=True)
    tab.click()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent / "docs")
    parser.add_argument("--tabs", action="store_true", help="take each tab instead of the screenshots of the docs")
    given = parser.parse_args()
    main(given.folder, tabs=given.tabs)
