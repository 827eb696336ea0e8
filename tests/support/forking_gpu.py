"""A stand-in for `spaces.GPU` as it is on ZeroGPU: each call runs in a process forked for it.

As there: arguments, results and errors cross by pickle; the task runs in a thread of the new process; of an exception
only its class's name comes back, as a `gr.Error`; leaving the generator stops the task at its next yield.
"""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import gradio as gr

_PATIENCE = 60

_forking = multiprocessing.get_context("fork")


@dataclass
class ForkingGpu:
    """The decorator, with a record of what it saw.

    Attributes:
        durations: The seconds that each call asked for.
        crossed: Everything that went into a call's process or came out of it.
        stopped: How many tasks were left before their end.
    """

    durations: list[int] = field(default_factory=list)
    crossed: list[Any] = field(default_factory=list)
    stopped: int = 0

    def __call__(self, duration: Callable[..., int]) -> Callable[[Callable[..., Iterator[Any]]], Callable[..., Any]]:
        def decorate(task: Callable[..., Iterator[Any]]) -> Callable[..., Generator[Any, None, None]]:
            @wraps(task)
            def call(*args: Any) -> Generator[Any, None, None]:
                self.durations.append(duration(*args))
                self.crossed.extend(args)
                yield from self._forked(task, pickle.dumps(args))

            return call

        return decorate

    def _forked(self, task: Callable[..., Iterator[Any]], arguments: bytes) -> Generator[Any, None, None]:
        here, there = _forking.Pipe()
        stop = _forking.Event()
        process = _forking.Process(target=_work, args=(task, arguments, there, stop), daemon=True)
        process.start()
        there.close()
        try:
            while True:
                if not here.poll(_PATIENCE):
                    process.kill()
                    raise AssertionError(f"The process of a call has said nothing for {_PATIENCE} seconds.")
                kind, value = pickle.loads(here.recv_bytes())
                if kind == "end":
                    return
                if kind == "error":
                    raise gr.Error(value, print_exception=False)
                self.crossed.append(value)
                yield value
        except EOFError:
            raise gr.Error("GPU task aborted", print_exception=False) from None
        except GeneratorExit:
            stop.set()
            self.stopped += 1
            raise
        finally:
            here.close()
            process.join(30)
            assert process.exitcode is not None, "the task still ran half a minute after it was left"


def _work(task: Callable[..., Iterator[Any]], arguments: bytes, answers: Any, stop: Any) -> None:
    def run() -> None:
        try:
            for value in task(*pickle.loads(arguments)):
                if stop.is_set():
                    return
                answers.send_bytes(pickle.dumps(("value", value)))
        except Exception as error:  # noqa: BLE001 - so does ZeroGPU
            answers.send_bytes(pickle.dumps(("error", type(error).__name__)))
        else:
            answers.send_bytes(pickle.dumps(("end", None)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
