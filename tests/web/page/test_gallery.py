"""The gallery's cards, and what a chosen one puts on the page, without a browser or a model."""

from __future__ import annotations

import re
from html import escape
from typing import Any

import pytest

pytest.importorskip("gradio")

import gradio as gr

from causal_tracer.web.page import explore
from causal_tracer.web.page.fields import FIELD_NAMES, asked_for
from causal_tracer.web.page.gallery import GalleryEvents, gallery_html
from causal_tracer.web.page.history_events import HistoryEvents
from causal_tracer.web.service.field_checks import check_fields
from causal_tracer.web.service.gallery import GALLERY, gallery_entry
from causal_tracer.web.service.settings import ServiceSettings
from causal_tracer.web.service.tracing import TraceService
from tests.support.web_tiny import tiny_service

PAGE = gr.Request(headers={"referer": "http://127.0.0.1:7860/"}, query_params={})
TABS = {name: tuple(explore.stored_flows(name)) for name in explore.MAP_TABS}


def never(*_: Any) -> Any:
    raise AssertionError("No model is needed.")


def opened(service: TraceService, name: str) -> tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]:
    """Return what changes in the tabs, the fields by name, and what was picked, the tab and the message."""
    events = GalleryEvents(HistoryEvents(service, TABS))
    outputs = events.open(PAGE, gr.SelectData(None, {"index": 0, "value": name}))
    fields = len(FIELD_NAMES)
    return outputs[: -fields - 3], dict(zip(FIELD_NAMES, outputs[-fields - 3 : -3], strict=True)), outputs[-3:]


def status_of(parts: tuple[Any, ...]) -> str:
    """The line beside Run that is changed."""
    (line,) = [part for part in parts if isinstance(part, str) and 'class="ct-status' in part]
    return str(line)


def test_twelve_cards_with_a_picture_a_title_and_a_sentence() -> None:
    html = gallery_html()
    cards = re.findall(
        r'<button type="button" data-entry="([\w-]+)">(<svg.*?</svg>)<b>(.*?)</b><span[^>]*>(.*?)</', html
    )
    assert [name for name, *_ in cards] == [entry.name for entry in GALLERY]
    assert all(title and sentence.endswith(".") for _, _, title, sentence in cards)
    assert "http" not in html
    # The page is read with each visit.
    assert len(html) < 60_000


@pytest.mark.parametrize("entry", GALLERY, ids=lambda entry: entry.name)
def test_a_card_shows_its_map_its_sentence_and_its_fields_without_a_model(entry: Any) -> None:
    service = TraceService(ServiceSettings(models=("embedded", "embedded:smollm2-135m-instruct")), load=never)
    parts, fields, (picked, tab, message) = opened(service, entry.name)
    flows = next(part for part in parts if isinstance(part, dict) and set(part) <= set(TABS) and part)
    assert next(iter(flows.values())).prompt
    assert escape(entry.sentence) in status_of(parts)
    assert any(isinstance(part, str) and "a stored result" in part for part in parts)
    assert (fields["prompt"], fields["subject"]) == (entry.fields["prompt"], entry.fields.get("subject", ""))
    assert picked.prompt == entry.fields["prompt"]
    assert tab.selected == entry.fields["kind"]
    assert "ct-warning" not in message
    assert any(isinstance(part, str) and part.startswith("http://127.0.0.1:7860/?prompt=") for part in parts)


def test_run_then_asks_for_the_same() -> None:
    service = TraceService(ServiceSettings(), load=never)
    for entry in GALLERY:
        _, fields, (picked, *_) = opened(service, entry.name)
        values = [fields[name] for name in FIELD_NAMES]
        fields["model"] = "embedded"
        again = check_fields(asked_for(entry.fields["kind"], picked, *values), ServiceSettings())
        first = check_fields(entry.fields, ServiceSettings())
        assert (again.request, again.specs, again.options) == (first.request, first.specs, first.options)


def test_without_its_model_the_page_says_so_and_keeps_the_chosen_one() -> None:
    parts, fields, _ = opened(tiny_service(), "classic")
    assert fields["model"] == gr.skip()
    assert fields["prompt"] == gallery_entry("classic").fields["prompt"]
    assert "Gemma 3 270M" in status_of(parts)
    assert "is not available here: Run uses the chosen model." in status_of(parts)


def test_an_unknown_name_changes_nothing_and_is_said() -> None:
    parts, fields, (_, _, message) = opened(tiny_service(), "<img>")
    assert all(part == gr.skip() for part in (*parts, *fields.values()))
    assert "&lt;img&gt;" in message
    assert "ct-warning" in message
