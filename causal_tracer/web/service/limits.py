"""Who may do how much: work for a model's size, turns on a model, and a client's share."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from causal_tracer.errors import BusyError, SettingsError
from causal_tracer.web.service.settings import REFERENCE_PARAMETERS, ServiceSettings, limit

_SHARE_SECONDS = 600.0
# Clients that were not seen for a while are forgotten beyond this many.
_MOST_CLIENTS = 10_000


def check_work(cells: int, samples: int, parameters: int, settings: ServiceSettings) -> int:
    """Whether a request of so many cells and samples is within the limit for a model of this size.

    Returns:
        The work in restored runs of a model of 0.3 billion parameters.

    Raises:
        SettingsError: It is too much; the message names the limit.
    """
    runs = cells * samples
    weight = max(1.0, parameters / REFERENCE_PARAMETERS)
    allowed = int(settings.max_cell_samples / weight)
    if runs > allowed:
        scaled = "" if weight == 1 else f" for a model of {parameters / 1e9:.2g} billion parameters: {allowed}"
        raise SettingsError(
            f"This asks for {runs} restored runs ({cells} cells, {samples} samples), and this app takes at most "
            f"{limit('max_cell_samples', settings.max_cell_samples)}{scaled}. Ask for fewer samples, a shorter prompt, "
            "fewer layers, or the subject's tokens only."
        )
    return int(runs * weight)


class Line:
    """The line before a model: one run at a time, in the order in which they came.

    Turns may be taken and given back by different threads.
    """

    def __init__(self, most_waiting: int) -> None:
        self._most = most_waiting
        self._tickets: deque[object] = deque()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """How many are in it, the one that runs included."""
        with self._changed:
            return len(self._tickets)

    def join(self) -> object:
        """Stand at the end of the line; `leave` whatever happens then.

        Raises:
            BusyError: The line is full.
        """
        ticket = object()
        with self._changed:
            if len(self._tickets) > self._most:
                raise BusyError(
                    f"{self._most} requests are waiting already, as many as this app lets in "
                    f"({limit('max_queue', self._most)}). Try again in a minute."
                )
            self._tickets.append(ticket)
        return ticket

    def wait(self, ticket: object, seconds: float) -> int:
        """How many are before this ticket, after at most so many seconds; 0 means that it is its turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._tickets[0] is ticket, seconds)
            return self._tickets.index(ticket)

    def leave(self, ticket: object) -> None:
        """Give the turn or the place back."""
        with self._changed:
            if ticket in self._tickets:
                self._tickets.remove(ticket)
            self._changed.notify_all()


class ClientShares:
    """What each client has under way, and what it asked for in the last ten minutes.

    The empty client, the app itself, has no limits.
    """

    def __init__(self, settings: ServiceSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._running: dict[str, int] = {}
        self._work: dict[str, deque[tuple[float, int]]] = {}
        self._guard = threading.Lock()

    @contextmanager
    def request(self, client: str) -> Iterator[None]:
        """One request of a client, while it runs or waits.

        Raises:
            BusyError: It has as many under way as it may.
        """
        most = self._settings.max_client_runs
        with self._guard:
            if client and most and self._running.get(client, 0) >= most:
                raise BusyError(
                    f"You have {most} requests under way, as many as one client may "
                    f"({limit('max_client_runs', most)}). Wait until one is done, or stop one."
                )
            self._running[client] = self._running.get(client, 0) + 1
        try:
            yield
        finally:
            with self._guard:
                self._running[client] -= 1
                if not self._running[client]:
                    del self._running[client]

    def charge(self, client: str, work: int) -> None:
        """Count work against a client's share.

        Raises:
            BusyError: It has used up its share.
        """
        most = self._settings.max_client_cell_samples
        if not client or not most:
            return
        now = self._clock()
        with self._guard:
            self._forget(now)
            done = self._work.setdefault(client, deque())
            used = sum(part for _, part in done)
            if used + work > most:
                freed_in = _SHARE_SECONDS - (now - done[0][0]) if done else _SHARE_SECONDS
                raise BusyError(
                    f"This asks for {work} restored runs, and you have had {used} in the last ten minutes; one client "
                    f"may have {limit('max_client_cell_samples', most)}. Ask for less, or again in "
                    f"{max(1, round(freed_in / 60))} min."
                )
            done.append((now, work))

    def _forget(self, now: float) -> None:
        for client in list(self._work):
            done = self._work[client]
            while done and now - done[0][0] > _SHARE_SECONDS:
                done.popleft()
            if not done:
                del self._work[client]
        while len(self._work) > _MOST_CLIENTS:
            del self._work[next(iter(self._work))]


def client_of(request: Any, settings: ServiceSettings) -> str:
    """Who sent a request (a `gr.Request`): the address that the trusted proxies saw, or that of the connection.

    Only as many entries of X-Forwarded-For as there are trusted proxies count, from the end: the rest is what the
    client itself wrote.
    """
    if settings.trusted_proxies:
        forwarded = str((getattr(request, "headers", None) or {}).get("x-forwarded-for", ""))
        hops = [hop.strip() for hop in forwarded.split(",") if hop.strip()]
        if len(hops) >= settings.trusted_proxies:
            return hops[-settings.trusted_proxies][:64]
    peer = getattr(request, "client", None)
    return str(getattr(peer, "host", "") or "unknown")
