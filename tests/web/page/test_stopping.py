"""A stopped run is called stopped and a broken one failed, whichever news arrives first."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio")

from causal_tracer.web.page import stopping
from causal_tracer.web.page.stopping import RunButtons


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
