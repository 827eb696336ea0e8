"""Steps of a person on the page, and assertions that wait: on a busy machine the page is always a little behind."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest

playwright_api = pytest.importorskip("playwright.sync_api")
expect = playwright_api.expect
# Far more than the page needs, for machines that do other work.
expect.set_options(timeout=120_000)


def field(page: Any, name: str) -> Any:
    return page.locator(f"#ct-{name} :is(input, textarea)").first


def fill(page: Any, prompt: str, subject: str = "", model: str = "Model ready") -> None:
    """Put a prompt and a subject into the fields once the model is as far as `model` says."""
    expect(page.locator("#ct-model")).to_contain_text(model)
    field(page, "prompt").fill(prompt)
    field(page, "subject").fill(subject)
    expect(field(page, "prompt")).to_have_value(prompt)
    expect(field(page, "subject")).to_have_value(subject)


def type_over(page: Any, name: str, text: str) -> None:
    """Mark all of a field and type, key by key."""
    field(page, name).click()
    page.keyboard.press("Control+A")
    page.keyboard.type(text)


def choose(page: Any, name: str, option: str) -> None:
    """Choose from a list of the page."""
    field(page, name).click()
    page.get_by_role("option", name=option).first.click()


def open_more(page: Any) -> None:
    if not page.locator("#ct-subject-tokens-only input").is_visible():
        page.locator("#ct-more button").first.click()
    expect(page.locator("#ct-subject-tokens-only input")).to_be_enabled()


def run(page: Any, tab: str) -> None:
    page.locator(f"#ct-run-{tab}").click()


def start_held_run(page: Any, app: Any) -> None:
    """Start a run of hidden states of a new prompt, which computes nothing until `app.may_run` is set."""
    # Held while it is read, the prompt's lens would hold up the run.
    expect(page.locator("#ct-prompt-lens-hidden .ct-prompt")).to_contain_text(field(page, "prompt").input_value())
    app.may_run.clear()
    run(page, "hidden")
    expect(page.locator("#ct-status-hidden")).to_contain_text("Starting")


def done(page: Any, tab: str) -> None:
    """Run to the end; an earlier run's "Done" does not count."""
    page.locator(f"#ct-status-{tab} .ct-status").evaluate("line => { line.dataset.earlier = ''; }")
    run(page, tab)
    expect(page.locator(f"#ct-status-{tab} .ct-status:not([data-earlier])")).to_contain_text("Done")


def link_of(page: Any, tab: str, holding: str) -> str:
    """The link to the tab's result, once it has this text."""
    page.locator(f"#ct-share-{tab} button").first.click()
    box = page.locator(f"#ct-link-{tab} textarea")
    expect(box).to_have_value(re.compile(re.escape(holding)))
    return str(box.input_value())


def click_cell(page: Any, plot: str, row: int, column: int, rows: int, columns: int) -> None:
    """Click into a map where the mouse would, once it has so many rows."""
    expect(page.locator(f"#{plot} .ytick text")).to_have_count(rows)
    area = page.locator(f"#{plot} .nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    across, down = box["width"] * (column + 0.5) / columns, box["height"] * (row + 0.5) / rows
    page.mouse.click(box["x"] + across, box["y"] + down)


def expect_subject_tokens(page: Any, tokens: list[str]) -> None:
    """The chips that are marked."""
    expect(page.locator("#ct-chips [data-token][aria-pressed='true']")).to_have_text(tokens)


def expect_marked_rows(page: Any, plot: str, labels: list[str]) -> None:
    """The rows of a map that are the subject's."""
    rows = page.locator(f"#{plot} .ytick text")
    expect(rows.filter(has_text=re.compile(r"\*$"))).to_have_text(labels)


def expect_no_overflow(page: Any) -> None:
    """Nothing is wider than the page."""
    expect_true(page, "document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def expect_true(page: Any, expression: str, arg: Any = None) -> None:
    """A JavaScript expression becomes true."""
    page.wait_for_function(expression, arg=arg, timeout=120_000)


def wait_in(page: Any, event: threading.Event) -> None:
    """Wait until an event of the app is set, while the page continues."""
    for _ in range(1200):
        if event.is_set():
            return
        page.wait_for_timeout(100)
    pytest.fail("The app did not get as far within 120 s.")


def open_tab(page: Any, title: str) -> None:
    """Open a tab; on a phone, some are in a menu."""
    tab = page.get_by_role("tab", name=title, exact=True)
    menu = page.get_by_role("button", name="More tabs")
    expect(tab.or_(menu).filter(visible=True).first).to_be_visible()
    if tab.is_visible():
        tab.click()
        return
    menu.click()
    page.get_by_role("button", name=title, exact=True).click()


def press_and_release(page: Any, pressed: Any, released: Any) -> None:
    """Press a mouse button over one element, and release it over another."""
    released.scroll_into_view_if_needed()
    pressed.hover(force=True)
    page.mouse.down()
    released.hover(force=True)
    page.mouse.up()


def cell_of(page: Any, lens: str, row: int, column: int) -> Any:
    """The cell of a lens at a token and a layer."""
    return page.locator(f"table[data-lens={lens}] tbody tr").nth(row).locator("td").nth(column)
