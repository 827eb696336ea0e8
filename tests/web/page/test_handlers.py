"""The page's event handlers, called without Gradio's server."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from urllib.parse import parse_qsl, urlsplit

import pytest

pytest.importorskip("gradio")

import gradio as gr

from causal_tracer.errors import SettingsError
from causal_tracer.web.page.fields import FIELD_NAMES, Picked, asked_for, field_values, optional_number
from causal_tracer.web.page.handlers import MapRun, PageEvents, inspect_fields, result_link
from causal_tracer.web.page.stopping import RunButtons
from causal_tracer.web.service.updates import RunUpdate, stepped, thinned
from tests.support.tiny_models import OTHER_PROMPT
from tests.support.web_tiny import ASKED, app_fields, awaited, flow_of, load_tiny, result_data, tiny_service


@pytest.mark.parametrize(("text", "number"), [("", None), ("  ", None), ("0", 0.0), (" 0.5 ", 0.5), ("1e-2", 0.01)])
def test_an_empty_field_is_no_zero(text, number):
    assert optional_number("Noise level", text) == number


def test_words_in_a_number_field_are_named():
    with pytest.raises(SettingsError, match="'loud'"):
        optional_number("Noise level", "loud")


def test_updates_are_thinned_and_the_last_one_comes():
    def updates():
        yield RunUpdate(waiting="the model")
        yield RunUpdate(waiting="the model")
        for done in range(50):
            yield RunUpdate({}, done, 50)
        yield RunUpdate({}, 50, 50)

    shown = [(update.waiting, update.done) for update in thinned(updates(), seconds=60)]
    assert shown == [("the model", 0), ("", 0), ("", 1), ("", 50)]


def test_leaving_early_closes_what_is_below():
    closed = []

    def updates():
        try:
            yield from (RunUpdate({}, done, 9) for done in range(9))
        finally:
            closed.append(True)

    shown = thinned(updates(), seconds=0)
    next(shown)
    shown.close()
    assert closed == [True]


class Run:
    """A generator whose second step lasts until it is let, and which notes when it is closed."""

    def __init__(self):
        self.stepping, self.may_step, self.closed = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, left):
        self.left = left
        try:
            yield "first"
            self.stepping.set()
            self.may_step.wait(60)
            yield "second"
            yield "third"
        finally:
            self.closed.set()


def test_steps_come_in_order_and_end():
    async def seen():
        return [step async for step in stepped(letters)]

    def letters(left):
        assert not left()
        yield from "abc"

    assert awaited(seen()) == ["a", "b", "c"]


def test_an_error_of_a_step_is_raised_where_it_is_awaited():
    def failing(left):
        yield 1
        raise SettingsError("No.")

    async def seen():
        async for _ in stepped(failing):
            pass

    with pytest.raises(SettingsError, match=r"No\."):
        awaited(seen())


def test_whoever_leaves_within_a_step_does_not_wait_for_its_end_and_the_step_is_told():
    run = Run()

    async def left_early():
        async def watch():
            async for _ in stepped(run):
                pass

        watching = asyncio.create_task(watch())
        while not run.stepping.is_set():
            await asyncio.sleep(0.01)
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        # The step continues: nobody waits for it any more.
        assert run.left()
        assert not run.closed.is_set()
        run.may_step.set()

    awaited(left_early())
    assert run.closed.wait(60)


def test_whoever_leaves_between_two_steps_closes_the_run_at_once():
    run = Run()

    async def left_early():
        async with aclosing(stepped(run)) as steps:
            async for _ in steps:
                break

    awaited(left_early())
    assert run.closed.is_set()
    assert not run.stepping.is_set()


def loading_service():
    """A service whose model never comes while the test lasts, and what lets it."""
    let = threading.Event()

    def load(source, report):
        let.wait(300)
        return load_tiny(source, report)

    return tiny_service(load), let


@pytest.mark.parametrize("loading", [True, False])
@pytest.mark.parametrize(
    ("asked", "note", "words"),
    [
        (app_fields(OTHER_PROMPT, "The Space Needle", model="tiny"), 3, "is not in the prompt"),
        (app_fields("the city of", model="tiny"), 3, "No subject could be guessed"),
        (app_fields(OTHER_PROMPT, samples=0, model="tiny"), 1, "samples=0"),
    ],
)
def test_what_cannot_be_traced_is_refused_beside_its_field_and_beside_run_at_once(loading, asked, note, words):
    service, let = loading_service() if loading else (tiny_service(), None)
    if not loading:
        flow_of(service, ASKED)
    values = field_values(asked)
    assert words in inspect_fields(service, Picked(), *values)[note]
    *_, ended = MapRun(service, "hidden", 1, RunButtons())._views(gr.Request(), Picked(), False, values, lambda: False)
    assert words in ended.status
    assert "Nothing was computed" in ended.status
    assert ended.running is False
    if let is not None:
        let.set()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"answer": "Seattle", "answer_form": "exact"},
        {"answer_id": 270},
        {"prompt": "the the the city of", "subject": "the the", "occurrence": "first"},
        {"kind": "mlp", "window": 2, "noise": 0.25, "seed": 7, "start_layer": 1, "end_layer": 2, "batch_size": 4},
        {"corruption": "mean", "subject_tokens_only": True},
    ],
    ids=str,
)
def test_the_page_that_a_result_s_link_opens_asks_for_that_result(changes):
    service = tiny_service()
    flow = flow_of(service, {**ASKED, **changes})
    page = gr.Request(headers={"referer": "http://127.0.0.1:7860/"})
    link = result_link(service, {flow.kind: flow}, page)
    opened = PageEvents(service).open_link(gr.Request(query_params=dict(parse_qsl(urlsplit(link).query))))
    values, picked = opened[: len(FIELD_NAMES)], opened[len(FIELD_NAMES)]
    again = flow_of(service, asked_for(flow.kind, picked, *values))
    assert result_data(again) == result_data(flow)
