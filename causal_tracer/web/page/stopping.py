"""The buttons Run and Stop of one tab: what the page shows when they are pressed, and when a run has ended early.

Gradio reports a cancelled run as a failure, as it does a run with an error, at about the same time as the press on
Stop. So presses are recorded on the server by session, and the handler of a failed run waits a moment for one.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import gradio as gr

from causal_tracer.web.page.summary import message_html, status_html
from causal_tracer.web.page.views import TabView

_STOP_WAIT_SECONDS = 2.0


class RunButtons:
    """Handlers of Run and Stop in one tab, for all sessions; `maps` is the tab's number of maps."""

    def __init__(self, maps: int = 1) -> None:
        self._maps = maps
        self._stopped: set[str | None] = set()
        self._pressed = threading.Condition()

    def begin(self, request: gr.Request) -> tuple[Any, ...]:
        """Show at once that Run was pressed: the run itself may have to wait for its turn."""
        with self._pressed:
            self._stopped.discard(request.session_hash)
        return TabView(status=status_html("Waiting for its turn."), running=True).outputs(self._maps)

    def stop(self, request: gr.Request) -> tuple[Any, ...]:
        """Show that Stop was pressed. Gradio then cancels the run, which ends between two blocks of the model."""
        with self._pressed:
            self._stopped.add(request.session_hash)
            self._pressed.notify_all()
        parts = TabView(status=status_html("Stopping."), running=True).outputs(self._maps)
        return (*parts[:-1], gr.Button(interactive=False))

    def ended(self, request: gr.Request) -> tuple[Any, ...]:
        """Show that a run has ended early: it was stopped, or an unexpected error occurred."""
        session = request.session_hash
        with self._pressed:
            stopped = self._pressed.wait_for(lambda: session in self._stopped, _STOP_WAIT_SECONDS)
            self._stopped.discard(session)
        view = TabView(status=status_html("Stopped. Cells that were not computed are grey."), running=False)
        if not stopped:
            words = "Something went wrong in the app itself. The server's log has the details."
            view = replace(view, message=message_html(words), status=status_html(words, state="ct-failed"))
        return view.outputs(self._maps)
