"""Locks that stay usable after a fork: a copied lock would stay locked, since its thread does not exist there."""

from __future__ import annotations

import os
import threading


def fork_safe(lock: threading.Lock) -> threading.Lock:
    """Make forks wait until a lock is free, and return the lock. Use it for locks that are held briefly."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock
