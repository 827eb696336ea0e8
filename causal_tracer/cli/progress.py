"""The progress of a long command on standard error: a progress bar on a terminal, log lines elsewhere."""

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
    """Yield a function that shows progress when it is called with (done, total). With `quiet` it shows nothing.

    Args:
        title: The unit that is counted, such as "facts".
        quiet: Show nothing.
    """
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
    """Return a function that logs its first call, its last call, and one call every ten seconds in between."""
    logged_at = -_SECONDS_BETWEEN_LINES

    def report(done: int, total: int) -> None:
        nonlocal logged_at
        now = time.monotonic()
        if done == total or now - logged_at >= _SECONDS_BETWEEN_LINES:
            logged_at = now
            _logger.info("%d of %d %s are done.", done, total, title)

    return report
