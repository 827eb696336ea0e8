"""Finished results in memory and in a folder, by a key made of everything that determines them.

    store = ResultStore(folder, memory_bytes, disk_bytes)
    key = result_key(identity, StoredRequest(request, spec, options))
    flow = store.get(key)
    store.put(key, flow)

A file's first line is the SHA-256 of the rest. A damaged file is removed, and its result computed again. Several apps
may share a folder. Disk errors are logged and never prevent a result from being shown.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from causal_tracer.errors import ResultFormatError
from causal_tracer.files import PART_SUFFIX, write_atomically
from causal_tracer.request.record import to_data
from causal_tracer.request.records import StoredRequest
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.version import __version__
from causal_tracer.web.service.registry import ModelIdentity

_logger = logging.getLogger(__name__)

_SUFFIX = ".flow"
_LEFTOVER_SECONDS = 3600.0
# About the memory of one token with its probability in Python.
_TOP_TOKEN_BYTES = 200


@dataclass(frozen=True)
class ResultKey:
    """The key of a result.

    Attributes:
        digest: SHA-256 of everything that determines the result, in hexadecimal.
        lasting: Whether the key is valid in other processes too.
    """

    digest: str
    lasting: bool


def result_key(identity: ModelIdentity, asked: StoredRequest) -> ResultKey:
    """Return the key of one map: a hash of the model's weights, the request and the installed versions."""
    everything = {"model": identity.text, "asked": to_data(asked), "runtime": _runtime()}
    text = json.dumps(everything, sort_keys=True, ensure_ascii=True)
    return ResultKey(hashlib.sha256(text.encode("ascii")).hexdigest(), identity.lasting)


@cache
def _runtime() -> tuple[str, ...]:
    """Return the versions and the device, which may change the last digits of a result."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return (__version__, torch.__version__, version("transformers"), accelerator)


class ResultStore:
    """Finished results in memory and on disk, for all threads; the least recently used are removed first.

    Args:
        folder: Where results are stored on disk; None stores them in memory only.
        memory_bytes: The most memory for results.
        disk_bytes: The most disk space for results.
    """

    def __init__(self, folder: Path | None, memory_bytes: int, disk_bytes: int) -> None:
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._disk_bytes = disk_bytes
        self._held: OrderedDict[str, tuple[HiddenFlow, int]] = OrderedDict()
        self._size = 0
        self._guard = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        with self._guard:
            return self._size

    def __contains__(self, key: ResultKey) -> bool:
        """Return whether there is a result with this key, without reading it."""
        with self._guard:
            if key.digest in self._held:
                return True
        return self._folder is not None and key.lasting and _path(self._folder, key).exists()

    def get(self, key: ResultKey) -> HiddenFlow | None:
        """Return the result with this key; None if there is none that can be read."""
        with self._guard:
            if key.digest in self._held:
                self._held.move_to_end(key.digest)
                return self._held[key.digest][0]
        flow = self._read(self._folder, key) if self._folder is not None and key.lasting else None
        if flow is not None:
            self._hold(key, flow)
        return flow

    def put(self, key: ResultKey, flow: HiddenFlow) -> None:
        """Store a finished result, without its activations, which the page does not show."""
        flow = replace(flow, layer_outputs=OrderedDict())
        self._hold(key, flow)
        if self._folder is not None and key.lasting:
            self._write(self._folder, key, flow)

    def _hold(self, key: ResultKey, flow: HiddenFlow) -> None:
        size = memory_of(flow)
        if size > self._memory_bytes:
            return
        with self._guard:
            if key.digest in self._held:
                self._size -= self._held.pop(key.digest)[1]
            self._held[key.digest] = (flow, size)
            self._size += size
            while self._size > self._memory_bytes:
                self._size -= self._held.popitem(last=False)[1][1]

    def _read(self, folder: Path, key: ResultKey) -> HiddenFlow | None:
        path = _path(folder, key)
        try:
            checksum, _, body = path.read_bytes().partition(b"\n")
            if hashlib.sha256(body).hexdigest().encode() != checksum:
                raise ResultFormatError("its checksum is wrong")
            flow = HiddenFlow.from_dict(json.loads(body))
        except FileNotFoundError:
            return None
        except OSError as error:
            _logger.warning("A stored result could not be read (%s).", error.strerror)
            return None
        except ValueError as error:
            _logger.warning("A stored result is damaged (%s): it is computed again.", type(error).__name__)
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        with suppress(OSError):
            # Marks the file as just read, so that it is removed last when space is needed.
            os.utime(path)
        return flow

    def _write(self, folder: Path, key: ResultKey, flow: HiddenFlow) -> None:
        body = json.dumps(flow.to_dict(), ensure_ascii=True, allow_nan=False).encode("ascii")
        checksum = hashlib.sha256(body).hexdigest().encode()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(_path(folder, key), checksum + b"\n" + body)
            self._make_room(folder)
        except OSError as error:
            _logger.warning("A result could not be stored on disk (%s): it is kept in memory.", error.strerror)

    def _make_room(self, folder: Path) -> None:
        """Remove the files read longest ago, and half-written files of killed processes."""
        # If another process holds the lock, it is doing this already.
        with suppress(Timeout), FileLock(folder / "lock", timeout=0):
            found, now = [], time.time()
            for path in folder.iterdir():
                with suppress(FileNotFoundError):
                    status = path.stat()
                    if path.suffix == _SUFFIX:
                        found.append((status.st_mtime, status.st_size, path))
                    elif path.suffix == PART_SUFFIX and now - status.st_mtime > _LEFTOVER_SECONDS:
                        path.unlink()
            size = sum(bytes_ for _, bytes_, _ in found)
            for _, bytes_, path in sorted(found):
                if size <= self._disk_bytes:
                    break
                path.unlink(missing_ok=True)
                size -= bytes_


def _path(folder: Path, key: ResultKey) -> Path:
    return folder / f"{key.digest}{_SUFFIX}"


def memory_of(flow: HiddenFlow) -> int:
    """Return the approximate memory of a result, in bytes."""
    tensors = sum(value.nbytes for value in vars(flow).values() if isinstance(value, Tensor))
    tops = flow.top_tokens
    tokens = 0 if tops is None else sum(map(len, (tops.clean, tops.corrupted, *tops.restored.values())))
    return tensors + _TOP_TOKEN_BYTES * tokens + 4 * len(flow.prompt) + 2048
