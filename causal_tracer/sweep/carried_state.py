"""What goes from block to block beside the residual stream, so that a block can be skipped and rows can join late.

Companions are tensors that a block hands to the next one with the stream (the router states of ZAYA, the chosen tokens
of sparse attention). Shared values lie in a dictionary that all blocks are given: keys and values of an earlier block,
in Gemma 3n and 4. Both are recorded in the corrupted run; rows that join a pass bring theirs along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from causal_tracer.model.hooks import all_tensors, first_tensor

Companions = tuple[Tensor | None, ...]
"""For each tensor in a block's output but the stream: [samples, tokens, ...], or None if it is nothing of that form."""

SharedValues = dict[str, dict[Any, Any]]
"""By the dictionary's name: what it held when a block was called."""

Rows = Callable[[Tensor], Tensor]
"""From recorded values [samples, tokens, ...] to those of some rows of a pass, at its tokens."""


def companions_of(output: Any, rows_and_tokens: Sequence[int]) -> Companions:
    """The companions in a block's output."""
    others = all_tensors(output)[1:]
    return tuple(
        tensor if tensor.dim() >= 2 and tuple(tensor.shape[:2]) == tuple(rows_and_tokens) else None for tensor in others
    )


def shared_values(kwargs: Mapping[str, Any]) -> SharedValues:
    """What the dictionaries among a block's arguments hold."""
    return {
        name: dict(value)
        for name, value in kwargs.items()
        if isinstance(value, MutableMapping) and all_tensors(dict(value))
    }


def skipped_output(recorded: Any, stream: Tensor, companions: Companions, rows: Rows) -> Any:
    """What a block that is skipped returns: the recorded output with another stream and the rows of this pass."""
    replacements = iter([stream, *(None if value is None else rows(value) for value in companions)])
    return _rebuild(recorded, replacements)


def _rebuild(value: Any, replacements: Any) -> Any:
    if isinstance(value, Tensor):
        replacement = next(replacements)
        return value if replacement is None else replacement
    if isinstance(value, Mapping):
        rebuild: Callable[[dict[Any, Any]], Any] = type(value)
        return rebuild({key: _rebuild(item, replacements) for key, item in value.items()})
    if isinstance(value, (tuple, list)):
        items = [_rebuild(item, replacements) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


class PassValues:
    """The side values of one pass in which rows join late: those of rows that join come from the corrupted run."""

    def __init__(self, companions: Sequence[Companions], shared: Sequence[SharedValues], samples: Tensor):
        self._companions = companions
        self._shared = shared
        self._samples = samples
        self._handed_on: list[tuple[Tensor, Tensor]] = []

    def enter(self, block: int, before: int, active: int, rows: Rows, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments of a block with the values of the rows that join there.

        Args:
            block: The block.
            before: Rows that have joined before it.
            active: Rows that run in it.
            rows: Takes the recorded values of the rows that join.
            args: The block's arguments.
            kwargs: The block's keyword arguments; dictionaries in them are completed in place.
        """

        def joined(item: Any) -> Any:
            for tensor, recorded in self._handed_on:
                if item is tensor:
                    return torch.cat([tensor[:before], rows(recorded).to(tensor)])
            return item

        for name, recorded in self._shared[block].items():
            live = kwargs.get(name)
            if isinstance(live, MutableMapping):
                for key, value in recorded.items():
                    if key in live:
                        live[key] = _completed(live[key], value, self._samples[:active])
        return tuple(joined(item) for item in args), {name: joined(item) for name, item in kwargs.items()}

    def leave(self, block: int, output: Any) -> None:
        """Remember what a block hands on, to know it again among the next one's arguments."""
        others = all_tensors(output)[1:] if first_tensor(output) is not None else []
        recorded = self._companions[block]
        self._handed_on = [
            (tensor, value) for tensor, value in zip(others, recorded, strict=False) if value is not None
        ]


def _completed(live: Any, recorded: Any, samples: Tensor) -> Any:
    """A shared value with a row for each of the samples; rows that it lacks are the corrupted run's."""
    if isinstance(live, Tensor) and isinstance(recorded, Tensor):
        missing = samples[len(live) :]
        if not len(missing):
            return live
        rows = recorded.index_select(0, missing.to(recorded.device))
        # The corrupted run's pass began earlier, so it may hold more tokens: the last ones are those of this pass.
        for dim in range(1, rows.dim()):
            surplus = rows.shape[dim] - live.shape[dim]
            if surplus > 0:
                rows = rows.narrow(dim, surplus, live.shape[dim])
        return torch.cat([live, rows.to(live)])
    if isinstance(live, (tuple, list)) and isinstance(recorded, (tuple, list)):
        items = [_completed(a, b, samples) for a, b in zip(live, recorded, strict=True)]
        return type(live)(items)
    return live
