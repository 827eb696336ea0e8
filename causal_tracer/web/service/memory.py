"""Memory of the app: out-of-memory errors turned into the app's own, and free memory returned to the system."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from causal_tracer.errors import BusyError


@contextmanager
def memory_errors_as_busy() -> Iterator[None]:
    """Turn an out-of-memory error into a `BusyError`, and free what can be freed, so that the app keeps serving."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On the CPU torch raises a plain RuntimeError.
        out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not out_of_memory:
            raise
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise BusyError(
            "The run did not fit in the machine's memory, even in small batches. Ask for a shorter prompt, or for a "
            "smaller model."
        ) from None


def return_freed_memory() -> None:
    """Return freed memory to the system.

    glibc keeps it in the arena of each thread, so an app with many threads would grow for hours.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    # Other C libraries have no `malloc_trim`, and do not keep memory in this way.
    if trim is not None:
        trim(0)
