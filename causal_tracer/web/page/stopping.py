"""Run and Stop of one tab: what the page says when they are pressed, and when a run has ended early.

Gradio calls a cancelled run and a broken one a failure, and tells of it at about the time at which it tells of the
press on Stop. So presses are noted on the server, by session, and the end of a run waits a moment for one.
"""

from __future__ import annotations

import threading
from typing import Any

import gradio as gr

from causal_tracer.web.page.summary import message_html, status_html
from causal_tracer.web.page.views import TabView

_PATIENCE_SECONDS = 2.0


class RunButtons:
    """Run and Stop of one tab, which has so many maps, for all sessions."""

    def __init__(self, maps: int = 1) -> None:
        self._maps = maps
        self._stopped: set[str] = set()
        self._pressed = threading.Condition()

    def begin(self, request: gr.Request) -> tuple[Any, ...]:
        """Run is pressed: said at once, while the run itself may have to wait for its turn."""
        with self._pressed:
            self._stopped.discard(_session(request))
        return self._outputs(TabView(status=status_html("Waiting for its turn."), running=True))

    def stop(self, request: gr.Request) -> tuple[Any, ...]:
        """Stop is pressed; Gradio then cancels the run, which ends between two blocks of the model."""
        with self._pressed:
            self._stopped.add(_session(request))
            self._pressed.notify_all()
        parts = self._outputs(TabView(status=status_html("Stopping."), running=True))
        return (*parts[:-1], gr.Button(interactive=False))

    def ended(self, request: gr.Request) -> tuple[Any, ...]:
        """A run has ended early: because it was stopped, or because something broke."""
        session = _session(request)
        with self._pressed:
            stopped = self._pressed.wait_for(lambda: session in self._stopped, _PATIENCE_SECONDS)
            self._stopped.discard(session)
        if stopped:
            words = "Stopped. Cells that were not computed are grey."
            return self._outputs(TabView(status=status_html(words), running=False))
        words = "Something went wrong in the app itself. The server's log has the details."
        return self._outputs(
            TabView(message=message_html(words), status=status_html(words, state="ct-failed"), running=False)
        )

    def _outputs(self, view: TabView) -> tuple[Any, ...]:
        return view.outputs(self._maps)


def _session(request: gr.Request) -> str:
    return str(request.session_hash)
