"""A stopped run is called stopped and a broken one failed, whichever news arrives first."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio")

from causal_tracer.web.page import stopping
from causal_tracer.web.page.stopping import RunButtons
from causal_tracer.web.page.views import TabView
from causal_tracer.web.service.stored import stored_map


def session(name: str) -> Any:
    return SimpleNamespace(session_hash=name)


def test_a_run_that_ends_before_stop_is_noted_is_called_stopped() -> None:
    buttons = RunButtons()
    buttons.begin(session("a"))
    shown: list[Any] = []
    ending = threading.Thread(target=lambda: shown.append(buttons.ended(session("a"))))
    ending.start()
    buttons.stop(session("a"))
    ending.join(timeout=10)
    assert "Stopped" in shown[0][1]


def test_a_run_that_breaks_is_called_failed_also_when_another_session_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_STOP_WAIT_SECONDS", 0.01)
    buttons = RunButtons()
    buttons.begin(session("a"))
    buttons.stop(session("b"))
    message, status, *_ = buttons.ended(session("a"))
    assert "Something went wrong" in message
    assert "ct-failed" in status


def test_run_after_stop_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_STOP_WAIT_SECONDS", 0.01)
    buttons = RunButtons()
    buttons.stop(session("a"))
    buttons.begin(session("a"))
    assert "ct-failed" in buttons.ended(session("a"))[1]


class TestOpenedResult:
    """A result that is opened in the tab of a run."""

    PARTIAL = TabView(status="filling", cell="", running=True)
    OPENED = TabView(status="opened", cell="none", link="link", running=False)

    def test_it_stays_and_the_run_continues(self) -> None:
        buttons, flows = RunButtons(), {"hidden": stored_map("hidden")}
        buttons.begin(session("a"))
        with buttons.running("a") as run:
            assert run.shown(self.PARTIAL) is self.PARTIAL
            opened = buttons.show_opened("a", self.OPENED)
            assert ("opened" in str(opened.status), "continues" in str(opened.status)) == (True, True)
            # Run stays off and Stop stays on.
            assert opened.running is None
            # Sent once more, since a partial map may have arrived late; a cell chosen in the meantime stays.
            assert run.shown(self.PARTIAL) == replace(opened, cell=None)
            assert run.shown(self.PARTIAL) == TabView()
            last = run.shown(replace(self.PARTIAL, status="Done", flows=flows, finished=flows, running=False))
            assert (last.flows, last.finished, last.running) == (None, flows, False)
            assert ("opened" in str(last.status), "The run is done" in str(last.status)) == (True, True)
        assert not buttons.in_progress("a")

    def test_without_a_run_and_for_other_sessions_nothing_changes(self) -> None:
        buttons = RunButtons()
        buttons.begin(session("b"))
        assert buttons.show_opened("a", self.OPENED) is self.OPENED
        with buttons.running("b") as run:
            assert run.shown(self.PARTIAL) is self.PARTIAL

    def test_a_failure_of_the_run_is_shown(self) -> None:
        buttons = RunButtons()
        with buttons.running("a") as run:
            buttons.show_opened("a", self.OPENED)
            last = run.shown(TabView(status="Nothing was computed.", message="why", running=False))
        assert (last.status, last.message, last.link, last.running) == ("Nothing was computed.", "why", "link", False)

    def test_the_message_of_a_stopped_run_does_not_mention_cells(self) -> None:
        buttons = RunButtons()
        buttons.begin(session("a"))
        buttons.show_opened("a", self.OPENED)
        buttons.stop(session("a"))
        status = buttons.ended(session("a"))[1]
        assert ("The run was stopped." in status, "grey" in status) == (True, False)
        assert not buttons.in_progress("a")

    def test_a_stopped_run_that_ends_late_leaves_the_next_one_in_progress(self) -> None:
        buttons = RunButtons()
        with buttons.running("a"):
            buttons.begin(session("a"))
        assert buttons.in_progress("a")
        buttons.forget("a")
        assert not buttons.in_progress("a")
