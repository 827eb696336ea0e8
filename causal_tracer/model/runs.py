"""Running the model with edits in place, and the clean run.

Clean runs are not kept between traces: to know that a kept one still holds would take running the prompt again, which
is what a new one costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracer.errors import NumericsError
from causal_tracer.model.engine_mode import engine_mode
from causal_tracer.model.hooks import (
    Edit,
    MaskEdit,
    add_stream_hook,
    editing_arguments,
    editing_masks,
    editing_outputs,
)
from causal_tracer.model.layers import INPUT, TracedModel
from causal_tracer.model.probing import takes_argument
from causal_tracer.request.sites import KINDS, SiteName

Activations = Mapping[str, Tensor]
"""Activations recorded in a run, [1 or samples, tokens, ...], by `TracedModel.activation_names`."""


@dataclass(frozen=True, eq=False)
class CleanRun:
    """The run of the prompt as it is, whose activations are restored.

    Attributes:
        input_ids: The token ids [tokens], on the CPU.
        logits: After each position read [reads, vocabulary], float32 on the CPU.
        activations: Those of the sites, by `TracedModel.activation_names`: [tokens, width], where the model left them.
    """

    input_ids: Tensor
    logits: Tensor
    activations: Mapping[str, Tensor]

    @cached_property
    def probabilities(self) -> Tensor:
        """Probability of each token after the first position read [vocabulary]."""
        return self.logits[0].softmax(dim=-1)

    @property
    def top_id(self) -> int:
        """The most probable token after the first position read."""
        return int(self.logits[0].argmax())


def run_model(
    traced: TracedModel,
    input_ids: Tensor,
    edits: Mapping[nn.Module, Edit],
    *,
    input_edits: Mapping[nn.Module, Edit] | None = None,
    mask_edits: Mapping[nn.Module, MaskEdit] | None = None,
    keep: int = 1,
    use_cache: bool = False,
    **kwargs: Any,
) -> Any:
    """Run the model with edits in place, holding its lock, and return its output.

    Args:
        traced: The model.
        input_ids: Token ids [rows, tokens], of equal length: nothing is padded.
        edits: What to do with the outputs of modules.
        input_edits: What to do with the streams that modules take.
        mask_edits: What to do with the attention masks that modules take.
        keep: For how many last tokens logits are computed, where the model can leave out the others.
        use_cache: Whether the model returns a cache.
        kwargs: More arguments for the model.
    """
    tokens = input_ids.shape[1]
    with engine_mode(traced.model), ExitStack() as hooks:
        hooks.enter_context(editing_outputs(edits, tokens, traced.stacked_streams))
        hooks.enter_context(editing_arguments(input_edits or {}, tokens))
        hooks.enter_context(editing_masks(mask_edits or {}))
        if traced.logits_to_keep_trims:
            hooks.enter_context(add_stream_hook(traced.head, lambda hidden: hidden[:, -keep:]))
        elif takes_argument(type(traced.model).forward, "logits_to_keep"):
            kwargs["logits_to_keep"] = keep
        return traced.model(input_ids.to(traced.input_device), use_cache=use_cache, **kwargs)


def finite_logits(traced: TracedModel, output: Any, what: str, reads: Sequence[int] = (-1,)) -> Tensor:
    """Return logits at positions counted from the end [rows, reads, vocabulary], float32, on the model's output device.

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
    mask_edits: Mapping[nn.Module, MaskEdit] | None = None,
) -> Tensor:
    """Run the model and read the logits after some positions, or after the last token.

    Returns:
        Logits [rows, reads, vocabulary], float32.

    Raises:
        NumericsError: One of them is NaN or infinite.
    """
    tokens = input_ids.shape[1]
    from_end = [read - tokens for read in ((tokens - 1,) if reads is None else reads)]
    keep = -min(from_end)
    output = run_model(traced, input_ids, edits, input_edits=input_edits, mask_edits=mask_edits, keep=keep)
    return finite_logits(traced, output, what, from_end)


def clean_run(
    traced: TracedModel,
    input_ids: tuple[int, ...],
    reads: Sequence[int] | None = None,
    sites: Iterable[SiteName] = KINDS,
) -> CleanRun:
    """Run the model on a prompt and keep the activations of the sites, and the logits after the positions read."""
    ids = torch.tensor(input_ids)
    kept = Recorder(name for site in sites for name in traced.activation_names(site))
    outputs, inputs = kept.edits(traced)
    logits = read_logits(traced, ids[None], outputs, "clean", reads, inputs)
    return CleanRun(input_ids=ids, logits=logits[0].cpu(), activations={n: v[0] for n, v in kept.values().items()})


class Recorder:
    """Records activations (`TracedModel.activation_names`) of one run or of several batches of rows."""

    def __init__(self, names: Iterable[str]):
        self._parts: dict[str, list[Tensor]] = {name: [] for name in sorted(names)}

    def edits(self, traced: TracedModel) -> tuple[dict[nn.Module, Edit], dict[nn.Module, Edit]]:
        """Return edits of outputs and of inputs for the next batch, which record activations and change nothing."""

        def keep(parts: list[Tensor]) -> Edit:
            # A copy, since some models add the residual into a module's output in place.
            return lambda activation: parts.append(activation.detach().clone())

        outputs: dict[nn.Module, Edit] = {}
        inputs: dict[nn.Module, Edit] = {}
        for name, parts in self._parts.items():
            edits = inputs if name.endswith(INPUT) else outputs
            edits[traced.modules[name.removesuffix(INPUT)]] = keep(parts)
        return outputs, inputs

    def after(
        self, traced: TracedModel, outputs: Mapping[nn.Module, Edit], inputs: Mapping[nn.Module, Edit]
    ) -> tuple[dict[nn.Module, Edit], dict[nn.Module, Edit]]:
        """Return edits of outputs and inputs for the next batch: these ones, and recording what they leave."""
        recording, recording_inputs = self.edits(traced)
        return _one_after_other(outputs, recording), _one_after_other(inputs, recording_inputs)

    def values(self) -> dict[str, Tensor]:
        """Return what was recorded, by name: [rows, tokens, ...]."""
        return {name: torch.cat(parts) for name, parts in self._parts.items() if parts}


def _one_after_other(edits: Mapping[nn.Module, Edit], later: Mapping[nn.Module, Edit]) -> dict[nn.Module, Edit]:
    """Return edits that make `edits` first, and then `later` ones, which change nothing."""

    def both(first: Edit, second: Edit) -> Edit:
        def edit(activation: Tensor) -> Tensor | None:
            changed = first(activation)
            second(activation if changed is None else changed)
            return changed

        return edit

    return {**edits, **{m: both(edits[m], each) if m in edits else each for m, each in later.items()}}
