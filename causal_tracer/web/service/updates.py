"""The updates of a run for a page or a program: thinned out, and computed only while somebody waits for them."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from anyio import to_thread

from causal_tracer.results.flow import HiddenFlow

Cancelled = Callable[[], bool]
"""Called during a run; True stops it."""

Step = TypeVar("Step")


@dataclass(frozen=True, eq=False)
class RunUpdate:
    """A trace in progress.

    Attributes:
        flows: The maps by name, NaN in cells not computed yet; empty while the run has not begun.
        done: Restored runs done.
        total: Restored runs in all.
        seconds: Seconds since the computation began.
        waiting: What the run waits for; empty once it has begun.
        cached: Whether the maps were stored already.
        position: Number of runs before this one in the model's queue.
    """

    flows: Mapping[str, HiddenFlow] = field(default_factory=dict)
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    waiting: str = ""
    cached: bool = False
    position: int = 0

    @property
    def flow(self) -> HiddenFlow | None:
        """The only map, or the first; None while the run has not begun."""
        return next(iter(self.flows.values()), None)


def stored_update(flows: Mapping[str, HiddenFlow]) -> RunUpdate:
    """Return the update of maps that were stored already."""
    runs = sum(int((~flow.sample_scores.isnan()).sum()) for flow in flows.values())
    return RunUpdate(flows, runs, runs, cached=True)


def queued_update(ahead: int) -> RunUpdate:
    """Return the update of a run that waits in the model's queue, behind this number of runs."""
    words = "another run on this model" if ahead == 1 else f"{ahead} runs before this one on this model"
    return RunUpdate(waiting=words, position=ahead)


def thinned(updates: Generator[RunUpdate], seconds: float) -> Generator[RunUpdate]:
    """Yield the first and the last update, and between them at most one in this number of seconds."""
    shown: RunUpdate | None = None
    latest: RunUpdate | None = None
    shown_at = 0.0
    try:
        for latest in updates:
            # The first cells and changes in waiting are shown at once.
            news = shown is None or latest.waiting != shown.waiting or (shown.done == 0) != (latest.done == 0)
            if news or time.monotonic() - shown_at >= seconds:
                yield latest
                shown, shown_at = latest, time.monotonic()
        if latest is not None and latest is not shown:
            yield latest
    finally:
        updates.close()


async def stepped(begin: Callable[[Cancelled], Generator[Step]]) -> AsyncGenerator[Step]:
    """Yield the steps of a generator, each taken in a thread, until the iteration is closed.

    Without this, Gradio counts a cancelled run as running until its current step is over, which may take seconds.

    Args:
        begin: Returns the generator. It is given a function that returns whether the iteration was closed.
    """
    steps = _Steps(begin)
    try:
        while (step := await to_thread.run_sync(steps.take, abandon_on_cancel=True)) is not None:
            yield step
    finally:
        steps.leave()


class _Steps(Generic[Step]):
    """A generator whose steps run in one thread, and which another thread may close during a step."""

    def __init__(self, begin: Callable[[Cancelled], Generator[Step]]) -> None:
        self._left = threading.Event()
        self._stepping = threading.Lock()
        self._steps = begin(self._left.is_set)

    def take(self) -> Step | None:
        """Return the next step; None after the last one."""
        with self._stepping:
            step = next(self._steps, None)
        # `leave` cannot close the generator during a step.
        if self._left.is_set():
            self._close()
        return step

    def leave(self) -> None:
        """Close the generator, at once or after the current step."""
        self._left.set()
        self._close()

    def _close(self) -> None:
        if self._stepping.acquire(blocking=False):
            try:
                self._steps.close()
            finally:
                self._stepping.release()
