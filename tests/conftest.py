"""Fixtures of all tests: no network, and one thread, since tiny models gain nothing from more."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # Gradio looks for a free port before it takes it: two workers may find the same one.
    os.environ["GRADIO_SERVER_PORT"] = str(7860 + 100 * int(worker.removeprefix("gw")))

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from causal_tracer.sweep import check_files
from tests.support.tiny_models import tiny_tokenizer

_LOOPBACK = ("127.0.0.1", "::1", "localhost", "0.0.0.0")


_FIXTURES_OF_MODELS = {"gemma", "smollm", "real"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark nightly and browser tests as slow, and tests with fixtures of real models as `model`."""
    for item in items:
        if _FIXTURES_OF_MODELS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.model)
        if item.get_closest_marker("nightly") or item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Connections leave this process for the machine itself only."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def checked(address: Any) -> None:
        if isinstance(address, tuple) and str(address[0]) not in _LOOPBACK:
            raise ConnectionRefusedError(f"Tests use no network, and something asked for {address}.")

    def guarded_connect(self: socket.socket, address: Any) -> Any:
        checked(address)
        return connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> Any:
        checked(address)
        return connect_ex(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread_for_tiny_products() -> Iterator[None]:
    """Matrices of 32 x 32 take longer with more threads; results do not depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def no_checks_on_disk() -> Iterator[None]:
    """Each process checks its models itself: tests replace parts of the sweep, and leave no files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check_files, "check_file", lambda *_: None)
        yield


@pytest.fixture
def tokenizer() -> Any:
    """Byte-level BPE with a BOS and no pad token."""
    return tiny_tokenizer(bos=True)
