"""State that blocks pass on besides the residual stream. It is needed to skip blocks and to let rows join late.

Companions are tensors that a block returns with the stream for the next block (ZAYA's router states, the selected
tokens of sparse attention). Shared values are in a dictionary that all blocks are given (an earlier block's keys and
values in Gemma 3n and 4). Both are recorded in the base run. Rows that join a pass take theirs from that record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from causal_tracer.model.hooks import all_tensors, first_tensor, with_items

Companions = tuple[Tensor | None, ...]
"""The tensors in a block's output besides the stream: [samples, tokens, ...], or None for other shapes."""

SharedValues = dict[str, dict[Any, Any]]
"""The content of each shared dictionary when a block was called, by the name of the argument."""

Rows = Callable[[Tensor], Tensor]
"""Selects, from recorded values [samples, tokens, ...], those of some rows of a pass, at the pass's tokens."""


def companions_of(output: Any, rows_and_tokens: Sequence[int]) -> Companions:
    """Return the companions in a block's output, given the stream's numbers of rows and tokens."""
    others = all_tensors(output)[1:]
    return tuple(
        tensor if tensor.dim() >= 2 and tuple(tensor.shape[:2]) == tuple(rows_and_tokens) else None for tensor in others
    )


def shared_values(kwargs: Mapping[str, Any]) -> SharedValues:
    """Return the content of the dictionaries among a block's arguments."""
    return {
        name: dict(value)
        for name, value in kwargs.items()
        if isinstance(value, MutableMapping) and all_tensors(dict(value))
    }


def skipped_output(recorded: Any, stream: Tensor, companions: Companions, rows: Rows) -> Any:
    """Return the output of a skipped block: the recorded output with another stream and the companions of some rows."""
    return _rebuild(recorded, iter([stream, *(None if value is None else rows(value) for value in companions)]))


def _rebuild(value: Any, replacements: Iterator[Tensor | None]) -> Any:
    if isinstance(value, Tensor):
        replacement = next(replacements)
        return value if replacement is None else replacement
    if isinstance(value, (Mapping, tuple, list)):
        items = value.values() if isinstance(value, Mapping) else value
        return with_items(value, [_rebuild(item, replacements) for item in items])
    return value


class CarriedState:
    """The carried state of one pass in which rows join late. That of joining rows is taken from the base run."""

    def __init__(self, companions: Sequence[Companions], shared: Sequence[SharedValues], samples: Tensor):
        self._companions = companions
        self._shared = shared
        self._samples = samples
        self._live_companions: list[tuple[Tensor, Tensor]] = []

    def enter(self, block: int, before: int, active: int, rows: Rows, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments of a block, with the carried state of the rows that join there added.

        Args:
            block: The number of the block.
            before: Number of rows that joined at earlier blocks.
            active: Number of rows that run in this block.
            rows: Selects the recorded values of the joining rows.
            args: The block's arguments.
            kwargs: The block's keyword arguments. Dictionaries in them are changed in place.
        """

        def joined(item: Any) -> Any:
            for tensor, recorded in self._live_companions:
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
        """Remember the companions in a block's output, to recognise them among the next block's arguments."""
        others = all_tensors(output)[1:] if first_tensor(output) is not None else []
        pairs = zip(others, self._companions[block], strict=False)
        self._live_companions = [(tensor, value) for tensor, value in pairs if value is not None]


def _completed(live: Any, recorded: Any, samples: Tensor) -> Any:
    """Return a shared value with a row for each of the samples. Missing rows are taken from the base run."""
    if isinstance(live, Tensor) and isinstance(recorded, Tensor):
        missing = samples[len(live) :]
        if not len(missing):
            return live
        rows = recorded.index_select(0, missing.to(recorded.device))
        # The base run began at an earlier token, so it may have more tokens. The last ones are those of this pass.
        for dim in range(1, rows.dim()):
            surplus = rows.shape[dim] - live.shape[dim]
            if surplus > 0:
                rows = rows.narrow(dim, surplus, live.shape[dim])
        return torch.cat([live, rows.to(live)])
    if isinstance(live, (tuple, list)) and isinstance(recorded, (tuple, list)):
        return with_items(live, [_completed(a, b, samples) for a, b in zip(live, recorded, strict=True)])
    return live
