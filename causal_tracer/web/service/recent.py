"""Values computed last, for all threads: a bounded store whose oldest values give way."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """The values used last; `most` is their largest number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._guard = threading.Lock()
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        """Return whether the value of a key is known."""
        with self._guard:
            return key in self._values

    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """Return the value of a key, computed unless it is known. What `compute` raises is not stored."""
        with self._guard:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        # Computed outside the guard, so that other keys do not wait.
        value = compute()
        with self._guard:
            self._values[key] = value
            self._values.move_to_end(key)
            if len(self._values) > self._most:
                self._values.popitem(last=False)
        return value
