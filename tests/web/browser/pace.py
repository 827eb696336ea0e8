"""A slow person or server, without use of the processor: they find tests and handlers that depend on who is first."""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pace:
    """Slow down the person or the server, as the variable BROWSER_PACE says: "step=700 network=800".

    Attributes:
        step: Milliseconds that the person waits before each step, while the page goes ahead.
        network: Milliseconds within which the server takes up a message, at random: later ones may overtake it.
    """

    step: float = 0
    network: float = 0

    @classmethod
    def chosen(cls) -> Pace:
        """Return what the variable says."""
        pairs = (word.partition("=") for word in os.environ.get("BROWSER_PACE", "").split())
        return cls(**{name: float(value) for name, _, value in pairs})


@dataclass
class LateMessages:
    """Middleware: what the page sends is taken up after a random time."""

    app: Any
    pace: Pace

    def __post_init__(self) -> None:
        self._random = random.Random(0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            await asyncio.sleep(self._random.uniform(0, self.pace.network / 1000))
        await self.app(scope, receive, send)
