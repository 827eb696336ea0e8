"""Locks stay usable in forked processes."""

from __future__ import annotations

import os
import threading

import pytest

from causal_tracer.model.fork_safety import fork_safe


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_waits_until_the_lock_is_free():
    lock = fork_safe(threading.Lock())
    lock.acquire()
    threading.Timer(0.05, lock.release).start()
    child = os.fork()
    if child == 0:
        os._exit(0 if lock.acquire(timeout=2) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lock.acquire(timeout=2)
    lock.release()
