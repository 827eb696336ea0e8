"""The state in which the engine runs a model: locked, in evaluation mode, without gradients, uncompiled.

The engine's hooks and replaced forwards act in its own thread only (`model/hooks.py`), so other threads can call the
model at the same time. There are two exceptions, because all threads share them: modules in training mode, and weights
that accelerate loads for each call. If a model has either, calls from other threads wait until the engine's run is
over, and a run first waits for the calls in progress.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from causal_tracer.model.fork_safety import fork_safe
from causal_tracer.model.hooks import setting_forward

_POLL_SECONDS = 0.002

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_locks_guard = fork_safe(threading.Lock())


def model_lock(model: nn.Module) -> threading.RLock:
    """Return the lock of a model. Models that share a base model share the lock."""
    with _locks_guard:
        return _locks.setdefault(getattr(model, "base_model", model), threading.RLock())


@contextmanager
def engine_mode(model: nn.Module) -> Iterator[None]:
    """Lock a model for one run, in evaluation mode, without gradients and without compiled modules.

    The training mode of each module is restored at the end, also after an error.
    """
    training: list[nn.Module] = []
    compiled = offloaded = False
    for module in model.modules():
        if module.training:
            training.append(module)
        own = vars(module)
        if own.get("_compiled_call_impl") is not None or "forward" in own:
            compiled = compiled or _is_compiled(module)
        if "_hf_hook" in own:
            offloaded = offloaded or any(hook.offload for hook in loading_hooks(module))
    with ExitStack() as stack:
        lock = model_lock(model)
        stack.enter_context(lock)
        if training or offloaded:
            stack.enter_context(_without_other_threads(model, lock))
        if compiled:
            stack.enter_context(_everything_eager())
        stack.enter_context(torch.no_grad())
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True


def loading_hooks(module: nn.Module) -> list[Any]:
    """Return accelerate's hooks on a module that load or move its tensors."""
    hook = vars(module).get("_hf_hook")
    hooks = getattr(hook, "hooks", (hook,))
    return [part for part in hooks if hasattr(part, "offload")]


# Compiled modules -----------------------------------------------------------------------------------------------------


def _is_compiled(module: nn.Module) -> bool:
    """Check whether a call of the module goes through `torch.compile`."""
    if vars(module).get("_compiled_call_impl") is not None:
        return True
    forward = vars(module).get("forward")
    while forward is not None:
        if hasattr(forward, "_torchdynamo_orig_callable"):
            return True
        forward = getattr(forward, "__wrapped__", None)
    return False


class _EagerRuns:
    """Forbids compilation while any run is in progress, counting the runs: torch has one stance for all threads."""

    def __init__(self) -> None:
        self._guard = fork_safe(threading.Lock())
        self._runs = 0
        self._stance: Any = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._guard:
            if self._runs == 0:
                self._stance = torch.compiler.set_stance("force_eager")
            self._runs += 1
        try:
            yield
        finally:
            with self._guard:
                self._runs -= 1
                if self._runs == 0:
                    self._stance.__exit__(None, None, None)


_everything_eager = _EagerRuns()


# Calls from other threads ---------------------------------------------------------------------------------------------


@contextmanager
def _without_other_threads(model: nn.Module, lock: threading.RLock) -> Iterator[None]:
    """Make calls of the model from other threads wait until the `with` block ends, after the calls in progress end."""
    engine = threading.get_ident()
    guarded = list({id(module): module for module in (model, getattr(model, "base_model", model))}.values())

    def make_forward(_number: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def waiting_for_engine(*args: Any, **kwargs: Any) -> Any:
            # A nested call must not wait: the engine's run waits for the outer call, so both would wait forever.
            if threading.get_ident() == engine or _count_calls(sys._getframe(), guarded) > 1:
                return original(*args, **kwargs)
            with lock:
                return original(*args, **kwargs)

        return waiting_for_engine

    with setting_forward(guarded, make_forward):
        while any(
            thread != engine and _count_calls(frame, guarded) and frame.f_code.co_name != "waiting_for_engine"
            for thread, frame in sys._current_frames().items()
        ):
            time.sleep(_POLL_SECONDS)
        yield


def _count_calls(innermost: FrameType, modules: Sequence[nn.Module]) -> int:
    """Return how many calls of these modules are on a thread's stack."""
    calls = 0
    frame: FrameType | None = innermost
    while frame is not None:
        if frame.f_code is nn.Module._call_impl.__code__ and any(frame.f_locals["self"] is m for m in modules):
            calls += 1
        frame = frame.f_back
    return calls
