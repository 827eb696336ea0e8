"""The end of a pass: from the last block's output to logits, through the model's final norm and head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from causal_tracer.model.hooks import replace_first_tensor, replacing_forward, stream_argument, streams_first
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.runs import finite_logits, run_model

MOST_LOGITS = 64 * 2**20
"""The largest number of logits computed together: 256 MiB in float32."""

_MOST_ROWS = 256


class FinalStates(NamedTuple):
    """The last block's output for rows whose logits are not computed yet.

    Attributes:
        states: The last block's output at the positions read [rows, reads, ...].
        cells: The number of each row's cell [rows].
        samples: The sample of each row [rows].
    """

    states: Tensor
    cells: Tensor
    samples: Tensor

    def followed_by(self, more: FinalStates) -> FinalStates:
        """Return these rows, followed by more rows."""
        return FinalStates(*(torch.cat(pair) for pair in zip(self, more, strict=True)))

    def part(self, rows: slice) -> FinalStates:
        """Return some of the rows."""
        return FinalStates(*(values[rows] for values in self))


@contextmanager
def recording_block_outputs(traced: TracedModel) -> Iterator[dict[int, Any]]:
    """Record each block's output, by number, in the runs of the `with` block, for `ReadOut.outputs`."""
    outputs: dict[int, Any] = {}

    def note(block: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        output = outputs[block] = forward(*args, **kwargs)
        return output

    with traced.lock, replacing_forward(traced.blocks, note):
        yield outputs


@dataclass(eq=False)
class ReadOut:
    """Computes logits from the last block's output, by the model's own forward pass with its blocks skipped.

    Attributes:
        traced: The model.
        outputs: The output of each block in some run, whose form a skipped block must return.
        token_id: A token id to call the model with.
        reads: Number of positions read in each row.
        broadcast: Whether to call the model with one row, although the last block returns many.
        what: The name of the run in error messages.
    """

    traced: TracedModel
    outputs: Mapping[int, Any] | Sequence[Any]
    token_id: int
    reads: int
    broadcast: bool
    what: str = "restored"
    _buffer: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float32))

    @property
    def most_rows(self) -> int:
        """The largest number of rows whose logits are computed together. More than a few hundred save no time."""
        return max(1, min(_MOST_ROWS, MOST_LOGITS // self.traced.vocab_size) // self.reads)

    def __call__(self, states: Tensor) -> Tensor:
        """Return the logits [rows, reads, vocabulary], float32, of states [rows, reads, ...].

        The next call may overwrite them.

        Raises:
            NumericsError: A logit is NaN or infinite.
        """
        traced = self.traced
        flat = states.flatten(0, 1)

        def skip(block: int, _forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            stream = stream_argument(args, kwargs)
            if block == traced.n_layers - 1:
                stream = streams_first(flat[:, None], traced.stacked_streams)
            return replace_first_tensor(self.outputs[block], stream) if stream is not None else None

        ids = torch.tensor([[self.token_id]]).expand(1 if self.broadcast else len(flat), 1)
        with traced.lock, replacing_forward(traced.blocks, skip), self._product_in_place():
            output = run_model(traced, ids, {})
        return finite_logits(traced, output, self.what).view(*states.shape[:2], -1)

    @contextmanager
    def _product_in_place(self) -> Iterator[None]:
        """Make a float32 linear head on the CPU reuse one buffer for its logits, with the vocabulary dimension first.

        Allocating memory for the logits takes a third of the product's time, and a product with few columns is faster
        than one with few rows.
        """
        head = self.traced.head
        plain = type(head) is nn.Linear and getattr(head, "bias", None) is None and "forward" not in vars(head)
        weight: Any = getattr(head, "weight", None)
        # Quantized weights are of other tensor classes, which do not support `out=`.
        plain = plain and type(weight) in (Tensor, nn.Parameter)
        if not plain or weight.device.type != "cpu" or weight.dtype != torch.float32:
            yield
            return

        def product(_number: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            hidden = stream_argument(args, kwargs)
            if hidden is None or hidden.dtype != torch.float32:
                return forward(*args, **kwargs)
            rows = hidden.reshape(-1, hidden.shape[-1])
            size = len(weight) * len(rows)
            if self._buffer.numel() < size:
                self._buffer = torch.empty(size, dtype=torch.float32)
            out = self._buffer[:size].view(len(weight), len(rows))
            torch.mm(weight, rows.T, out=out)
            return out.T.view(*hidden.shape[:-1], -1)

        with replacing_forward([head], product):
            yield
