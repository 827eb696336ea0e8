"""A run on its way, and how it reaches a page or a program: not too often, and for no longer than somebody waits."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from anyio import to_thread

from causal_tracer.request.sites import LayerKind
from causal_tracer.results.flow import HiddenFlow

Cancelled = Callable[[], bool]
"""Asked as a run goes; True stops it."""

Step = TypeVar("Step")


@dataclass(frozen=True, eq=False)
class RunUpdate:
    """A trace on its way.

    Attributes:
        flows: The maps by kind, NaN in cells that are still to come; empty while the run has not begun.
        done: Restored runs done.
        total: Restored runs in all.
        seconds: Since the computation began.
        waiting: What the run waits for, in words; empty once it has begun.
        cached: Whether the maps were there already.
        position: How many have to finish first, in the model's line.
    """

    flows: Mapping[LayerKind, HiddenFlow] = field(default_factory=dict)
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


def thinned(updates: Generator[RunUpdate], seconds: float) -> Generator[RunUpdate]:
    """The updates, but not more often than people or programs want them: first and last always."""
    shown: RunUpdate | None = None
    latest: RunUpdate | None = None
    shown_at = 0.0
    try:
        for latest in updates:
            # The first cells should not wait.
            news = shown is None or latest.waiting != shown.waiting or (shown.done == 0) != (latest.done == 0)
            if news or time.monotonic() - shown_at >= seconds:
                yield latest
                shown, shown_at = latest, time.monotonic()
        if latest is not None and latest is not shown:
            yield latest
    finally:
        updates.close()


async def stepped(begin: Callable[[Cancelled], Generator[Step]]) -> AsyncGenerator[Step]:
    """The steps of a generator, each taken in a thread, until nobody waits for them any more.

    Where a generator is handed to Gradio as it is, a run that is cancelled counts as running until its step is over,
    which may be seconds.

    Args:
        begin: Makes the generator, from a function that says whether it was left.
    """
    steps = _Steps(begin)
    try:
        while (step := await to_thread.run_sync(steps.take, abandon_on_cancel=True)) is not None:
            yield step
    finally:
        steps.leave()


class _Steps(Generic[Step]):
    """A generator that one thread steps through, and another may leave while a step is going on."""

    def __init__(self, begin: Callable[[Cancelled], Generator[Step]]) -> None:
        self._left = threading.Event()
        self._stepping = threading.Lock()
        self._steps = begin(self._left.is_set)

    def take(self) -> Step | None:
        """The next step; None after the last one."""
        with self._stepping:
            step = next(self._steps, None)
        # It was left in the meantime by somebody who could not close it.
        if self._left.is_set():
            self._close()
        return step

    def leave(self) -> None:
        """End the generator, at once or with the step that is going on."""
        self._left.set()
        self._close()

    def _close(self) -> None:
        if self._stepping.acquire(blocking=False):
            try:
                self._steps.close()
            finally:
                self._stepping.release()
