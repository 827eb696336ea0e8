"""Run and Stop of one tab: what the page shows when they are pressed, and when a run has ended early.

Gradio reports a cancelled run as a failure, like a broken one, at about the time when it reports the press on Stop. So
presses are noted on the server, by session, and the end of a run waits a moment for one.

A result that is opened in the tab of a run covers it: the run goes on, and ends in its card of the history.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gradio as gr

from causal_tracer.web.page.summary import message_html, status_html
from causal_tracer.web.page.texts import BROKEN
from causal_tracer.web.page.views import TabView

_PATIENCE_SECONDS = 2.0
_GOES_ON = "The run goes on. When it is done, it has a card below."
_DONE = "The run that went on is done. Its card is below."


class RunInProgress:
    """A run of a tab, and the result that was opened in the tab meanwhile, if any."""

    def __init__(self) -> None:
        self.cover: TabView | None = None
        self._repeated: TabView | None = None

    def shown(self, view: TabView) -> TabView:
        """Return a view of the run, or what the page shows in its place once a result was opened in the tab."""
        cover = self.cover
        if cover is None:
            return view
        # Shown again, once: a partial map may have been on its way to the page when the result was opened.
        again = TabView() if cover is self._repeated else replace(_noted(cover, _GOES_ON), cell=None)
        self._repeated = cover
        if view.running is not False:
            return again
        status = view.status if view.finished is None else _noted(cover, _DONE).status
        return replace(again, message=view.message, status=status, finished=view.finished, running=False)


def _noted(view: TabView, words: str) -> TabView:
    return replace(view, status=f'{view.status or ""}<p class="ct-hint">{words}</p>')


class RunButtons:
    """Run and Stop of a tab with so many maps, for all sessions."""

    def __init__(self, maps: int = 1) -> None:
        self._maps = maps
        self._stopped: set[str | None] = set()
        self._pressed = threading.Condition()
        self._running: dict[str | None, RunInProgress] = {}

    def begin(self, request: gr.Request) -> tuple[Any, ...]:
        """Show that Run was pressed, at once: the run itself may have to wait for its turn."""
        with self._pressed:
            self._stopped.discard(request.session_hash)
        self._running[request.session_hash] = RunInProgress()
        view = TabView(status=status_html("Waiting for its turn."), finished={}, running=True)
        return view.outputs(self._maps)

    @contextmanager
    def running(self, session: str | None) -> Iterator[RunInProgress]:
        """Give the run of a session that has begun; it is in progress until the block or `ended` ends it."""
        run = self._running.setdefault(session, RunInProgress())
        yield run
        self._over(session, run)

    def forget(self, request: gr.Request) -> None:
        """A page was closed: nothing is kept for it."""
        self._running.pop(request.session_hash, None)

    def in_progress(self, session: str | None) -> bool:
        """Return whether a session has a run in the tab."""
        return session in self._running

    def cover(self, session: str | None, view: TabView) -> TabView:
        """Return the view of a result that is opened in the tab, and keep a run that is in progress from drawing."""
        run = self._running.get(session)
        if run is None:
            return view
        run.cover = replace(view, running=None)
        return _noted(run.cover, _GOES_ON)

    def _over(self, session: str | None, run: RunInProgress | None) -> None:
        # A stopped run may end after the next one has begun.
        if run is not None and self._running.get(session) is run:
            del self._running[session]

    def stop(self, request: gr.Request) -> tuple[Any, ...]:
        """Show that Stop was pressed; Gradio then cancels the run, which ends between two blocks of the model."""
        with self._pressed:
            self._stopped.add(request.session_hash)
            self._pressed.notify_all()
        parts = TabView(status=status_html("Stopping."), running=True).outputs(self._maps)
        return (*parts[:-1], gr.Button(interactive=False))

    def ended(self, request: gr.Request) -> tuple[Any, ...]:
        """Show that a run has ended early, because it was stopped or because something broke."""
        session = request.session_hash
        run = self._running.get(session)
        stopped = self.was_stopped(session)
        covered = run is not None and run.cover is not None
        words = "The run was stopped." if covered else "Stopped. Cells that were not computed are grey."
        view = TabView(status=status_html(words), running=False)
        if not stopped:
            view = replace(view, message=message_html(BROKEN), status=status_html(BROKEN, state="ct-failed"))
        return view.outputs(self._maps)

    def was_stopped(self, session: str | None) -> bool:
        """End a run that has ended early, and return whether it was stopped; wait a moment for the press on Stop."""
        run = self._running.get(session)
        with self._pressed:
            stopped = self._pressed.wait_for(lambda: session in self._stopped, _PATIENCE_SECONDS)
            self._stopped.discard(session)
        self._over(session, run)
        return stopped
