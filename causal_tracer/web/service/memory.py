"""The app's memory: a want of it said in words, and what is free handed back."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from causal_tracer.errors import BusyError


@contextmanager
def memory_errors_in_words() -> Iterator[None]:
    """Turn a want of memory into a `BusyError`, and give back what there is: the app serves on."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_want_of_memory(error):
            raise
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise BusyError(
            "The run did not fit in the machine's memory, even in small batches. Ask for a shorter prompt, or for a "
            "smaller model."
        ) from None


def hand_back_freed_memory() -> None:
    """Hand what is free back to the system.

    glibc keeps it in the arena of each thread, so that an app with many of them grows for hours.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    # Other C libraries have no such call, and no such habit.
    if trim is not None:
        trim(0)


def _is_want_of_memory(error: Exception) -> bool:
    # On the CPU torch raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
