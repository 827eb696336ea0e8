"""Locks that are free in a forked process: the thread that holds a copied lock does not exist there."""

from __future__ import annotations

import os
import threading


def usable_in_forks(lock: threading.Lock) -> threading.Lock:
    """Return the lock, registered so that a fork waits until it is free; for locks that are held briefly."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock
