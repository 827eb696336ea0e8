"""The buttons Run and Stop of one tab: what the page shows when they are pressed, and when a run has ended early.

Gradio reports a cancelled run as a failure, as it does a run with an error, at about the same time as the press on
Stop. So presses are recorded on the server by session, and the handler of a failed run waits a moment for one.

If a result is opened in the tab during a run, the tab keeps showing that result. The run continues, and its result gets
a card in the history.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gradio as gr

from causal_tracer.web.page.summary import message_html, status_html
from causal_tracer.web.page.texts import UNEXPECTED_ERROR
from causal_tracer.web.page.views import TabView

_STOP_WAIT_SECONDS = 2.0
_CONTINUES = "The run continues. Its card appears below when it is done."
_DONE = "The run is done. Its card is below."


class RunInProgress:
    """A run in a tab, and the view of the result that was opened in the tab during the run, if any."""

    def __init__(self) -> None:
        self.opened: TabView | None = None
        self._repeated: TabView | None = None

    def shown(self, view: TabView) -> TabView:
        """Return what the tab shows after an update of the run: `view`, unless a result was opened during the run."""
        opened = self.opened
        if opened is None:
            return view
        # Sent once more, since a partial map may have reached the page after the result was opened.
        repeat = TabView() if opened is self._repeated else replace(_with_note(opened, _CONTINUES), cell=None)
        self._repeated = opened
        if view.running is not False:
            return repeat
        status = view.status if view.finished is None else _with_note(opened, _DONE).status
        return replace(repeat, message=view.message, status=status, finished=view.finished, running=False)


def _with_note(view: TabView, note: str) -> TabView:
    return replace(view, status=f'{view.status or ""}<p class="ct-hint">{note}</p>')


class RunButtons:
    """Handlers of Run and Stop in one tab, for all sessions; `maps` is the tab's number of maps."""

    def __init__(self, maps: int = 1) -> None:
        self._maps = maps
        self._stopped: set[str | None] = set()
        self._pressed = threading.Condition()
        self._running: dict[str | None, RunInProgress] = {}

    def begin(self, request: gr.Request) -> tuple[Any, ...]:
        """Show at once that Run was pressed: the run itself may have to wait for its turn."""
        with self._pressed:
            self._stopped.discard(request.session_hash)
        self._running[request.session_hash] = RunInProgress()
        view = TabView(status=status_html("Waiting for its turn."), finished={}, running=True)
        return view.outputs(self._maps)

    @contextmanager
    def running(self, session: str | None) -> Iterator[RunInProgress]:
        """Provide the current run of a session. It ends with the block, or in `ended` if it fails or is stopped."""
        run = self._running.setdefault(session, RunInProgress())
        yield run
        self._end(session, run)

    def forget(self, session: str | None) -> None:
        """Drop the run of a page that was closed."""
        self._running.pop(session, None)

    def in_progress(self, session: str | None) -> bool:
        """Return whether a session has a run in progress in the tab."""
        return session in self._running

    def show_opened(self, session: str | None, view: TabView) -> TabView:
        """Return the view of a result that is opened in the tab; a run in progress no longer changes what it shows."""
        run = self._running.get(session)
        if run is None:
            return view
        run.opened = replace(view, running=None)
        return _with_note(run.opened, _CONTINUES)

    def _end(self, session: str | None, run: RunInProgress | None) -> None:
        # A stopped run may end after the next one has begun.
        if run is not None and self._running.get(session) is run:
            del self._running[session]

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
        run = self._running.get(session)
        stopped = self.was_stopped(session)
        opened = run is not None and run.opened is not None
        words = "The run was stopped." if opened else "Stopped. Cells that were not computed are grey."
        view = TabView(status=status_html(words), running=False)
        if not stopped:
            view = replace(
                view, message=message_html(UNEXPECTED_ERROR), status=status_html(UNEXPECTED_ERROR, state="ct-failed")
            )
        return view.outputs(self._maps)

    def was_stopped(self, session: str | None) -> bool:
        """End a run that failed or was stopped; wait a moment for a press on Stop, and return whether there was one."""
        run = self._running.get(session)
        with self._pressed:
            stopped = self._pressed.wait_for(lambda: session in self._stopped, _STOP_WAIT_SECONDS)
            self._stopped.discard(session)
        self._end(session, run)
        return stopped
