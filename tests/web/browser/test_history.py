"""The history of runs, in a headless Chromium, with a tiny model whose results outlive the app."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.tiny_models import OTHER_PROMPT, OTHER_SUBJECT, PROMPT, SUBJECT
from tests.web.browser.conftest import Visits
from tests.web.browser.steps import (
    done,
    expect,
    expect_marked_rows,
    expect_no_overflow,
    expect_true,
    field,
    fill,
    open_more,
)

pytestmark = pytest.mark.browser


@dataclass
class Lasting:
    """An app that can be restarted, with the folder of its results, and a count of the maps that it computed."""

    restart: Callable[[], str]
    folder: Path
    runs: list[int]
    url: str = ""


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: Any) -> Iterator[Lasting]:
    pytest.importorskip("gradio")
    from causal_tracer import CausalTracer
    from causal_tracer.tracing.loop import trace_maps
    from causal_tracer.web.service.registry import LoadedTracer
    from causal_tracer.web.service.settings import ServiceSettings
    from causal_tracer.web.service.tracing import TraceService
    from causal_tracer.web.serving import build_demo, page_options
    from tests.support.tiny_models import build_tiny_model, tiny_tokenizer

    folder, runs, demos = tmp_path_factory.mktemp("results"), [0], []

    def counted(*asked: Any) -> Any:
        runs[0] += 1
        return trace_maps(*asked)

    def load(source: str, report: Any) -> Any:
        tracer = CausalTracer(build_tiny_model("gpt2"), tiny_tokenizer(), model_id="tiny", revision="r1")
        return LoadedTracer(tracer, "Tiny", "MIT", run=counted)

    def restart() -> str:
        port = None
        if demos:
            port = demos[-1].server_port
            demos[-1].close()
        service = TraceService(ServiceSettings(models=("tiny",), results_folder=str(folder)), load=load)
        service.start_loading()
        demos.append(build_demo(service))
        options = page_options(service)
        demos[-1].launch(prevent_thread_lock=True, server_name="127.0.0.1", server_port=port, quiet=True, **options)
        return str(demos[-1].local_url)

    app = Lasting(restart, folder, runs)
    app.url = restart()
    yield app
    demos[-1].close()


@pytest.fixture(scope="module")
def app(lasting: Lasting) -> Lasting:
    """The app whose pages `visits` opens."""
    return lasting


def cards(page: Any) -> Any:
    return page.locator("#ct-history [data-card]")


def traced(page: Any, prompt: str = PROMPT, subject: str = SUBJECT, **settings: str) -> None:
    """Run the first tab to its end, and wait for the run's card."""
    fill(page, prompt, subject)
    for name, value in settings.items():
        field(page, name).fill(value)
        field(page, name).press("Tab")
    done(page, "hidden")
    expect(page.locator("#ct-details-hidden")).to_contain_text(prompt)
    expect(cards(page).locator("[aria-current]")).to_have_attribute("title", re.compile(re.escape(prompt)))


def two_runs(visits: Visits) -> Any:
    """A page with a run of each prompt: the second one's card comes first."""
    page = visits.open()
    traced(page)
    expect(cards(page)).to_have_count(1)
    traced(page, OTHER_PROMPT, OTHER_SUBJECT)
    expect(cards(page)).to_have_count(2)
    return page


def open_card(page: Any, place: int) -> None:
    cards(page).nth(place).locator("[data-open]").click()


def choose(page: Any, *places: int) -> None:
    for place in places:
        cards(page).nth(place).locator("[data-choose]").check()


def test_a_click_brings_a_run_back_without_computing(visits, lasting, record_property):
    page = two_runs(visits)
    second = cards(page).first
    expect(second).to_contain_text("other prompt")
    expect(second).to_contain_text("TE ")
    assert second.locator("svg path").count() > 1
    runs = lasting.runs[0]
    page.evaluate(
        """() => { const details = document.querySelector('#ct-details-hidden'); const before = details.textContent;
          const clicked = () => { window.clicked = performance.now(); };
          document.addEventListener('click', clicked, { capture: true, once: true });
          const look = () => { if (details.textContent === before) requestAnimationFrame(look);
                               else window.took = performance.now() - window.clicked; }; look(); }"""
    )
    open_card(page, 1)
    expect(page.locator("#ct-details-hidden")).to_contain_text(PROMPT)
    expect(page.locator("#ct-details-hidden")).to_contain_text("computed earlier")
    expect_marked_rows(page, "ct-map-hidden", ["Space*", "Needle*"])
    expect(field(page, "prompt")).to_have_value(PROMPT)
    expect(field(page, "subject")).to_have_value(SUBJECT)
    expect(cards(page).nth(1).locator("[data-open]")).to_have_attribute("aria-current", "true")
    expect(page.locator("#ct-chips")).to_contain_text("Needle")
    assert lasting.runs[0] == runs > 0
    record_property("milliseconds", page.evaluate("Math.round(window.took)"))


def test_the_fields_that_a_card_fills_in_are_inspected_together_and_nothing_hidden_follows(visits):
    page = two_runs(visits)
    asked: list[int] = []
    page.on("request", lambda request: asked.append((request.post_data_json or {}).get("fn_index")))

    def changing(part: str) -> list[int]:
        """Return the events whose answers change this part of the page."""
        events = page.evaluate(
            """part => { const { components, dependencies } = window.gradio_config;
              const { id } = components.find(each => each.props.elem_id === part);
              return dependencies.filter(each => each.outputs.includes(id)).map(each => each.id); }""",
            part,
        )
        assert events
        return list(events)

    def asked_for(part: str) -> int:
        return sum(number in changing(part) for number in asked)

    # The last event after an inspection, which asks whether the map or a lens is to be shown.
    after = page.evaluate(
        """inspections => window.gradio_config.dependencies
          .filter(each => each.backend_fn && inspections.includes(each.trigger_after)).map(each => each.id).at(-1)""",
        changing("ct-chips"),
    )
    with page.expect_request(lambda request: (request.post_data_json or {}).get("fn_index") == after):
        open_card(page, 1)
    expect(page.locator("#ct-chips")).to_contain_text("Needle")
    expect(page.locator("#ct-details-hidden")).to_contain_text(PROMPT)
    # Prompt and subject change. Twice, if the machine is so busy that they change in turn.
    assert 1 <= asked_for("ct-chips") <= 2
    assert asked_for("ct-python-lines") == asked_for("ct-lens-status") == 0


def test_a_card_says_what_differs_from_the_run_before(visits):
    page = visits.open()
    open_more(page)
    traced(page, samples="2")
    traced(page, samples="4")
    expect(cards(page).first).to_contain_text("samples 2 → 4")
    page.get_by_role("tab", name="MLP").click()
    done(page, "mlp")
    expect(cards(page).first).to_contain_text("MLP")
    expect(cards(page)).to_have_count(3)


def test_a_reload_and_a_restart_keep_the_strip(visits, lasting):
    page = two_runs(visits)
    page.reload()
    expect(cards(page)).to_have_count(2)
    lasting.restart()
    page.reload()
    expect(cards(page)).to_have_count(2)
    expect(page.locator("#ct-model")).to_contain_text("Model ready")
    runs = lasting.runs[0]
    open_card(page, 1)
    expect(page.locator("#ct-details-hidden")).to_contain_text(PROMPT)
    expect(page.locator("#ct-status-hidden")).to_contain_text("Opened from the history")
    assert lasting.runs[0] == runs


def test_a_lost_result_says_so_and_is_computed_by_a_click(visits, lasting):
    page = two_runs(visits)
    page.get_by_role("tab", name="MLP").click()
    done(page, "mlp")
    expect(cards(page)).to_have_count(3)
    lasting.restart()
    for path in lasting.folder.glob("*.flow"):
        path.unlink()
    page.reload()
    expect(page.locator("#ct-model")).to_contain_text("Model ready")
    page.reload()
    expect(cards(page).first).to_contain_text("No longer kept: a click computes it again")
    open_card(page, 0)
    expect(page.locator("#ct-status-mlp")).to_contain_text("Done")
    expect(page.locator("#ct-details-mlp")).to_contain_text("computed just now")
    expect(cards(page)).to_have_count(3)
    expect(cards(page).first).not_to_contain_text("No longer kept")
    expect(cards(page).nth(1)).to_contain_text("No longer kept")
    # A comparison computes the lost results.
    choose(page, 1, 2)
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#ct-compare-words")).to_contain_text("By token role")
    expect(page.locator("#ct-stop-compare")).to_be_hidden()
    expect(cards(page).filter(has_text="No longer kept")).to_have_count(0)
    expect(cards(page)).to_have_count(3)


def test_cards_are_pinned_named_and_deleted_by_keyboard(visits):
    page = two_runs(visits)
    cards(page).first.locator("[data-open]").focus()
    page.keyboard.press("ArrowRight")
    expect(cards(page).nth(1).locator("[data-open]")).to_be_focused()
    page.keyboard.press("n")
    page.keyboard.type("Space <b>Needle</b>")
    page.keyboard.press("Enter")
    expect(cards(page).nth(1).locator("b")).to_have_text("Space <b>Needle</b>")
    expect(cards(page).nth(1).locator("[data-open]")).to_be_focused()
    page.keyboard.press("p")
    expect(cards(page).first.locator("b")).to_have_text("Space <b>Needle</b>")
    expect(cards(page).first.locator("[data-open]")).to_be_focused()
    expect(cards(page).first.get_by_role("button", name="Unpin")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Delete")
    expect(cards(page)).to_have_count(1)
    expect(cards(page).first.locator("[data-open]")).to_be_focused()
    page.get_by_role("button", name="Undo").click()
    expect(cards(page)).to_have_count(2)
    page.reload()
    expect(cards(page).first.locator("b")).to_have_text("Space <b>Needle</b>")
    cards(page).first.get_by_role("button", name="Delete").click()
    expect(cards(page)).to_have_count(1)


def test_two_cards_give_a_difference_on_a_diverging_scale(visits):
    page = two_runs(visits)
    expect(page.get_by_role("button", name="Compare")).to_be_disabled()
    choose(page, 0, 1)
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#ct-compare-words")).to_contain_text("By token role")
    for prompt in (PROMPT, OTHER_PROMPT):
        expect(page.locator("#ct-compare-details")).to_contain_text(prompt)
    expect(page.locator("#ct-map-compare-1 .ytick text").first).to_have_text("before")
    # The same for the keyboard and screen readers; it stays open when something else is compared.
    page.locator("#ct-table-compare summary").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="The difference as a table")).to_be_visible()
    expect_true(
        page,
        """() => {
          const { z, zmin, zmax } = document.querySelector('#ct-map-compare-1 .js-plotly-plot').data[0];
          const texts = (from, selector) => [...from.querySelectorAll(selector)].map(each => each.textContent);
          const rows = [...document.querySelectorAll('#ct-table-compare tbody tr')];
          const labels = texts(document, '#ct-map-compare-1 .ytick text');
          return zmin === -zmax && zmin < 0 && rows.length === labels.length && rows.every((row, place) =>
            texts(row, 'th')[0] === labels[place] && texts(row, 'td').length === z[place].length
            && texts(row, 'td').every((text, column) => Math.abs(Number(text) - z[place][column]) < 6e-4));
        }""",
    )


def test_three_cards_stand_side_by_side_on_one_scale(visits):
    page = visits.open()
    traced(page)
    for count, (kind, title) in enumerate([("mlp", "MLP"), ("attention", "Attention")], start=2):
        page.get_by_role("tab", name=title).click()
        done(page, kind)
        expect(cards(page)).to_have_count(count)
    choose(page, 0, 1, 2)
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#ct-compare-words")).to_contain_text("One scale for all maps")
    for number in (1, 2, 3):
        expect(page.locator(f"#ct-map-compare-{number} .heatmaplayer image")).to_be_visible()
    expect(page.locator("#ct-map-compare-4")).to_have_count(0)
    expect_true(
        page,
        """() => { const scales = [1, 2, 3].map(n => document.querySelector(`#ct-map-compare-${n} .js-plotly-plot`)
          .data[0]).map(({ zmin, zmax }) => `${zmin} ${zmax}`); return new Set(scales).size === 1; }""",
    )


def test_a_link_opens_several_runs(visits, lasting):
    page = two_runs(visits)
    choose(page, 0, 1)
    page.get_by_role("button", name="Link").click()
    link = page.get_by_role("textbox", name="Link").input_value()
    assert link.startswith(f"{lasting.url}?runs=")
    other = visits.open(link.removeprefix(lasting.url))
    expect(cards(other)).to_have_count(2)
    expect(cards(other).first).to_contain_text("TE ")
    expect(cards(other).locator(":checked")).to_have_count(2)
    expect(page.locator("#ct-link-message .ct-warning")).to_have_count(0)
    other.get_by_role("button", name="Compare").click()
    expect(other.locator("#ct-compare-words")).to_contain_text("By token role")


def test_a_link_s_run_that_is_not_kept_is_computed_by_a_click(visits):
    entry = {"model": "tiny", "request": {"prompt": PROMPT, "samples": 2, "seed": 77}, "maps": [{"kind": "attention"}]}
    page = visits.open(f"?runs={quote(json.dumps([entry, {'model': 'tiny', 'request': 7, 'maps': [{}]}]))}")
    expect(page.locator("#ct-history .ct-warning")).to_contain_text("An entry of the link was left out")
    expect(cards(page)).to_contain_text("Not computed here yet: a click computes it")
    open_card(page, 0)
    expect(page.locator("#ct-status-attention")).to_contain_text("Done")
    expect(page.locator("#ct-details-attention")).to_contain_text("2 noise samples, seed 77")
    expect(cards(page)).to_contain_text("TE ")
    expect(cards(page)).to_have_count(1)


def test_an_opened_file_gets_a_card(visits, tmp_path):
    page = two_runs(visits)
    page.locator("#ct-share-hidden button").first.click()
    with page.expect_download() as download:
        page.locator("#ct-json-hidden").click()
    path = tmp_path / "flow.json"
    shutil.copy(download.value.path(), path)
    page.locator("input[data-testid$='upload-button']").first.set_input_files(path)
    expect(cards(page)).to_have_count(3)
    expect(cards(page).first).to_contain_text("opened from a file")
    open_card(page, 2)
    expect(page.locator("#ct-details-hidden")).to_contain_text(PROMPT)
    open_card(page, 0)
    expect(page.locator("#ct-details-hidden")).to_contain_text(OTHER_PROMPT)


def test_what_cannot_be_read_is_left_out_with_a_message(visits):
    page = two_runs(visits)
    page.evaluate(
        """() => { const key = 'causal-tracer-history'; const list = JSON.parse(localStorage.getItem(key));
          list[0].answer = '<img src=x onerror=alert(1)>'; list[1].maps = 'all';
          localStorage.setItem(key, JSON.stringify(list)); }"""
    )
    page.reload()
    expect(cards(page)).to_have_count(1)
    expect(page.locator("#ct-history .ct-warning")).to_contain_text("An entry of this browser's history was left out")
    expect(cards(page)).to_contain_text("<img src=x")
    expect(page.locator("#ct-history img")).to_have_count(0)


def test_pages_of_one_browser_share_the_strip(visits):
    page = two_runs(visits)
    other = page.context.new_page()
    other.goto(visits.url)
    expect(cards(other)).to_have_count(2)
    cards(other).first.get_by_role("button", name="Delete").click()
    expect(cards(page)).to_have_count(1)


def test_many_runs_leave_the_page_as_it_is(visits, lasting):
    page = two_runs(visits)
    nodes = "document.querySelectorAll('#ct-history *').length"
    each = page.evaluate(nodes) / 2
    page.evaluate(
        """() => { const key = 'causal-tracer-history'; const [card] = JSON.parse(localStorage.getItem(key));
          const list = [...Array(40).keys()].map(seed => ({ ...card, request: { ...card.request, seed: seed + 2 } }));
          localStorage.setItem(key, JSON.stringify(list.slice(0, 24))); }"""
    )
    page.reload()
    expect(cards(page)).to_have_count(24)
    traced(page, f"{PROMPT} Rome", SUBJECT)
    expect(cards(page)).to_have_count(24)
    assert page.evaluate(nodes) < 25 * 1.5 * each
    expect_no_overflow(page)
