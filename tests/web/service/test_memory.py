"""The app hands freed memory back, so that it does not grow with every request."""

from __future__ import annotations

import ctypes
import sys

import psutil
import pytest

from causal_tracer.web.service.memory import return_freed_memory


def resident() -> int:
    return psutil.Process().memory_info().rss


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps what is freed")
def test_what_is_freed_between_pieces_in_use_is_handed_back():
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this C library has no malloc_trim")
    # Too small to be mapped one by one, so that freeing alone leaves them in the arena.
    pieces = [bytearray(100_000) for _ in range(1500)]
    kept = pieces[::50]
    del pieces
    before = resident()
    return_freed_memory()
    assert before - resident() > 50 * 2**20
    assert sum(map(len, kept)) == 100_000 * len(kept)


def test_a_c_library_without_the_call_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    return_freed_memory()
