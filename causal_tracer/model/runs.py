"""Running the model: what every run shares, and the clean run.

Clean runs are not kept between traces. Whether a kept run is still the model's could only be told by running the prompt
again, which is what a new clean run costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracer.errors import NumericsError
from causal_tracer.model.engine_mode import engine_mode
from causal_tracer.model.hooks import (
    Edit,
    add_input_hook,
    editing_arguments,
    editing_outputs,
    replace_stream_argument,
    stream_argument,
)
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.probing import takes_argument
from causal_tracer.request.sites import KINDS

Activations = Mapping[str, Tensor]
"""By module name: what it gave in a run, [1 or samples, tokens, ...]."""


@dataclass(frozen=True, eq=False)
class CleanRun:
    """The model on the prompt as it is; what restoring puts back.

    Attributes:
        input_ids: The token ids [tokens], on the CPU.
        logits: After each position read [reads, vocabulary], float32 on the CPU.
        activations: The output of every site module, by module name: [tokens, d_model], where the module left it.
    """

    input_ids: Tensor
    logits: Tensor
    activations: Mapping[str, Tensor]

    @cached_property
    def probabilities(self) -> Tensor:
        """Of the token that follows the first position read [vocabulary]."""
        return self.logits[0].softmax(dim=-1)

    @property
    def top_id(self) -> int:
        """The most probable token there."""
        return int(self.logits[0].argmax())


def run_model(
    traced: TracedModel,
    input_ids: Tensor,
    edits: Mapping[nn.Module, Edit],
    *,
    input_edits: Mapping[nn.Module, Edit] | None = None,
    keep: int = 1,
    use_cache: bool = False,
    **kwargs: Any,
) -> Any:
    """Run the model with edits in place, alone on its model, and hand back what it returns.

    Args:
        traced: The model.
        input_ids: Token ids [rows, tokens], of equal length: nothing is padded.
        edits: What to do with the outputs of modules.
        input_edits: What to do with what modules take.
        keep: Logits are asked for after this many last tokens only, where the model can do that.
        use_cache: Whether the model keeps keys, values and states.
        kwargs: More arguments for the model.
    """
    last_only: AbstractContextManager[None] = nullcontext()
    if traced.logits_to_keep_trims:
        last_only = _reading_last_tokens(traced.head, keep)
    elif _takes_argument(type(traced.model).forward, "logits_to_keep"):
        kwargs["logits_to_keep"] = keep
    tokens = input_ids.shape[1]
    editing = editing_outputs(edits, tokens, traced.stacked_streams)
    editing_inputs = editing_arguments(input_edits or {}, tokens)
    with engine_mode(traced.model), editing, editing_inputs, last_only:
        return traced.model(input_ids.to(traced.input_device), use_cache=use_cache, **kwargs)


_takes_argument = cache(takes_argument)


@contextmanager
def _reading_last_tokens(head: nn.Module, keep: int) -> Iterator[None]:
    """Let the head see the last tokens only."""

    def narrow(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        hidden = stream_argument(args, kwargs)
        return None if hidden is None else replace_stream_argument(args, kwargs, hidden[:, -keep:])

    handle = add_input_hook(head, narrow)
    try:
        yield
    finally:
        handle.remove()


def finite_logits(traced: TracedModel, output: Any, what: str, reads: Sequence[int] = (-1,)) -> Tensor:
    """The logits at positions counted from the end [rows, reads, vocabulary], float32, on the model's output device.

    Raises:
        NumericsError: A logit of the run called `what` is NaN or infinite.
    """
    logits: Tensor = output.logits
    # Most runs read the last token alone: a slice spares a copy as large as the logits.
    logits = (logits[:, -1:] if tuple(reads) == (-1,) else logits[:, list(reads)]).float()
    # A sum is finite only if all are, and needs no mask or copy as large as the logits.
    if not bool(logits.sum(dim=-1).isfinite().all()):
        raise NumericsError(
            f"The {what} run gave logits that are NaN or infinite ({traced.dtype}). Load the model in float32 or "
            "bfloat16, or check its weights."
        )
    return logits


def read_logits(
    traced: TracedModel,
    input_ids: Tensor,
    edits: Mapping[nn.Module, Edit],
    what: str,
    reads: Sequence[int] | None = None,
    input_edits: Mapping[nn.Module, Edit] | None = None,
) -> Tensor:
    """Run the model and read the logits after some positions, or after the last token.

    Returns:
        Logits [rows, reads, vocabulary], float32.

    Raises:
        NumericsError: One of them is NaN or infinite.
    """
    tokens = input_ids.shape[1]
    from_end = [read - tokens for read in ((tokens - 1,) if reads is None else reads)]
    output = run_model(traced, input_ids, edits, input_edits=input_edits, keep=-min(from_end))
    return finite_logits(traced, output, what, from_end)


def clean_run(traced: TracedModel, input_ids: tuple[int, ...], reads: Sequence[int] | None = None) -> CleanRun:
    """Run the model on a prompt and keep what every site module gave, and the logits after the positions read."""
    names = {name for kind in KINDS for layer in traced.site_names[kind] for name in layer}
    ids = torch.tensor(input_ids)
    kept = Recorder(names)
    logits = read_logits(traced, ids[None], kept.edits(traced), "clean", reads)
    return CleanRun(input_ids=ids, logits=logits[0].cpu(), activations={n: v[0] for n, v in kept.values().items()})


class Recorder:
    """Keeps what modules give, or take, in one run or in several batches of rows."""

    def __init__(self, names: Iterable[str]):
        self._parts: dict[str, list[Tensor]] = {name: [] for name in sorted(names)}

    def edits(self, traced: TracedModel) -> dict[nn.Module, Edit]:
        """Edits for the next batch, which change nothing and keep what they see."""

        def keep(parts: list[Tensor]) -> Edit:
            # A copy, since some models add the residual into a module's output in place.
            return lambda activation: parts.append(activation.detach().clone())

        return {traced.modules[name]: keep(parts) for name, parts in self._parts.items()}

    def values(self) -> dict[str, Tensor]:
        """What was seen, by module name: [rows, tokens, ...]."""
        return {name: torch.cat(parts) for name, parts in self._parts.items() if parts}
