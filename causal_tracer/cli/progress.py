"""The progress of a long command on standard error: a bar on a terminal, log lines anywhere else."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress_reporter(title: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yield a function to call with (done, total) as often as needed; with `quiet`, nothing is shown."""
    if quiet:
        yield lambda _done, _total: None
    elif sys.stderr.isatty():
        yield from _bar(title)
    else:
        yield _log_lines(title)


def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    from tqdm import tqdm

    bars: list[tqdm] = []

    def report(done: int, total: int) -> None:
        if not bars:
            bars.append(tqdm(desc=title, total=total, leave=False, file=sys.stderr, dynamic_ncols=True))
        bars[0].total = total
        bars[0].update(done - bars[0].n)

    try:
        yield report
    finally:
        for bar in bars:
            bar.close()


def _log_lines(title: str) -> Callable[[int, int], None]:
    """Return a function that logs at the start, at the end, and every ten seconds in between."""
    said_at = -_SECONDS_BETWEEN_LINES

    def report(done: int, total: int) -> None:
        nonlocal said_at
        now = time.monotonic()
        if done == total or now - said_at >= _SECONDS_BETWEEN_LINES:
            said_at = now
            _logger.info("%d of %d %s are done.", done, total, title)

    return report
