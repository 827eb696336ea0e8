"""Setting the calling thread's torch settings to their defaults while the engine works.

A caller may have turned on autocast or inference mode, or set another default device. The engine's numbers must not
depend on these settings, so every public function runs in `standard_torch_state`. The settings belong to the calling
thread; other threads keep theirs. The default dtype belongs to the whole process and is not changed: the engine gives
a dtype for every tensor that it creates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def standard_torch_state() -> Iterator[None]:
    """Run the `with` block without gradients, autocast and inference mode, and create tensors on the CPU by default."""
    with ExitStack() as stack:
        # Leaving inference mode turns gradients on, so this comes first.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if not _makes_tensors_on_cpu():
            stack.enter_context(torch.device("cpu"))
        yield


def _makes_tensors_on_cpu() -> bool:
    try:
        return torch.get_default_device().type == "cpu"
    except (AssertionError, RuntimeError):
        return False  # a type of device that this machine does not have


in_standard_torch_state = standard_torch_state()
"""Decorator: run a function in `standard_torch_state`."""


def stepping_in_standard_torch_state(function: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
    """Decorate a generator function to run each step in `standard_torch_state`, and the caller in its own state."""

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        with standard_torch_state():
            steps = function(*args, **kwargs)
        done = object()
        try:
            while True:
                with standard_torch_state():
                    step = next(steps, done)
                if step is done:
                    return
                yield step  # type: ignore[misc]
        finally:
            close = getattr(steps, "close", None)
            if close is not None:
                close()

    return inside
