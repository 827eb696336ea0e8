"""The end of a pass: final norm, head and what the model does after it, for states that the blocks have given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracer.model.hooks import replace_first_tensor, replacing_forward, rows_second, stream_argument
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.runs import finite_logits, run_model

MOST_LOGITS = 64 * 2**20
"""Logits computed together at most: 256 MiB in float32."""

_MOST_ROWS = 256


@dataclass(frozen=True, eq=False)
class Finals:
    """Rows that have gone through the blocks.

    Attributes:
        states: The last block's output at the positions read [rows, reads, ...].
        cells: The cell of each row.
        samples: The sample of each row.
        at_once: Whether they are to be read out before more rows come.
    """

    states: Tensor
    cells: Tensor
    samples: Tensor
    at_once: bool = False

    @classmethod
    def none(cls) -> Finals:
        """No rows."""
        return cls(torch.empty(0), torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.cells)

    def and_more(self, more: Finals) -> Finals:
        """These rows and more after them."""
        if not len(self):
            return more
        return Finals(
            torch.cat([self.states, more.states]),
            torch.cat([self.cells, more.cells]),
            torch.cat([self.samples, more.samples]),
        )

    def cut(self, rows: int) -> tuple[Finals, Finals]:
        """The first rows, and the others."""
        return (
            Finals(self.states[:rows], self.cells[:rows], self.samples[:rows]),
            Finals(self.states[rows:], self.cells[rows:], self.samples[rows:]),
        )


@dataclass(eq=False)
class ReadOut:
    """Logits of the last block's outputs, through the model's own forward with its blocks left out.

    Attributes:
        traced: The model.
        outputs: What each block returned in some run: the form that a block left out has to return.
        token_id: A token for the model to be called with.
        reads: Positions read in each row.
        broadcast: Call the model with one row, and hand on many.
    """

    traced: TracedModel
    outputs: Sequence[Any]
    token_id: int
    reads: int
    broadcast: bool
    _buffer: list[Tensor] = field(default_factory=list)

    @property
    def most_rows(self) -> int:
        """Rows to read out together at most: more than a few hundred make the product no faster."""
        return max(1, min(_MOST_ROWS, MOST_LOGITS // self.traced.vocab_size) // self.reads)

    def __call__(self, states: Tensor) -> Tensor:
        """From states [rows, reads, ...] to logits [rows, reads, vocabulary], float32; valid until the next call.

        Raises:
            NumericsError: A logit is NaN or infinite.
        """
        traced = self.traced
        flat = states.flatten(0, 1)

        def hand_on(block: int, _forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            stream = stream_argument(args, kwargs)
            if block == traced.n_layers - 1:
                stream = rows_second(flat[:, None], traced.stacked_streams)
            return replace_first_tensor(self.outputs[block], stream) if stream is not None else None

        ids = torch.tensor([[self.token_id]]).expand(1 if self.broadcast else len(flat), 1)
        with traced.lock, replacing_forward(traced.blocks, hand_on), self._product_in_place():
            output = run_model(traced, ids, {})
        return finite_logits(traced, output, "restored").view(*states.shape[:2], -1)

    @contextmanager
    def _product_in_place(self) -> Iterator[None]:
        """Let a plain head on the CPU write its logits into the same memory each time, with the vocabulary first.

        New memory for as many logits costs a third of the product's time, and a product with few columns is faster
        than one with few rows.
        """
        head = self.traced.head
        plain = type(head) is nn.Linear and getattr(head, "bias", None) is None and "forward" not in vars(head)
        weight: Any = getattr(head, "weight", None)
        # Quantized weights are tensors of other classes, which know no product into given memory.
        plain = plain and type(weight) in (Tensor, nn.Parameter)
        if not plain or weight.device.type != "cpu" or weight.dtype != torch.float32:
            yield
            return

        def product(_number: int, _forward: Callable[..., Any], args: Any, kwargs: Any) -> Tensor:
            hidden = stream_argument(args, kwargs)
            if hidden is None or hidden.dtype != torch.float32:
                result: Tensor = _forward(*args, **kwargs)
                return result
            rows = hidden.reshape(-1, hidden.shape[-1])
            size = len(weight) * len(rows)
            if not self._buffer or self._buffer[0].numel() < size:
                self._buffer[:] = [torch.empty(size, dtype=torch.float32)]
            out = self._buffer[0][:size].view(len(weight), len(rows))
            torch.mm(weight, rows.T, out=out)
            return out.T.view(*hidden.shape[:-1], -1)

        with replacing_forward([head], product):
            yield
