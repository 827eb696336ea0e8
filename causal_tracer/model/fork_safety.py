"""Locks that a forked process can use: a fork copies a lock as it is, and who held it is not there to release it."""

from __future__ import annotations

import os
import threading


def usable_in_forks(lock: threading.Lock) -> threading.Lock:
    """The lock, which from now on nobody holds at the moment of a fork; for locks that are never held for long."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock
