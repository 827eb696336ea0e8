"""Running the model with edits of its activations, and the clean run.

Clean runs are not cached between traces: the only check that a cached run is still valid is to run the prompt again.
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
    editing_inputs,
    editing_masks,
    editing_outputs,
)
from causal_tracer.model.layers import INPUT, TracedModel
from causal_tracer.model.probing import takes_argument
from causal_tracer.request.sites import KINDS, SiteName

Activations = Mapping[str, Tensor]
"""Recorded activations [1 or samples, tokens, ...], with the names of `TracedModel.activation_names` as keys."""


@dataclass(frozen=True, eq=False)
class CleanRun:
    """The model's run of the unchanged prompt. Its activations are the ones restored.

    Attributes:
        input_ids: The token ids [tokens], on the CPU.
        logits: The logits after each position read [reads, vocabulary], float32 on the CPU.
        activations: The recorded activations [tokens, width], with the names of `TracedModel.activation_names` as
            keys, on the devices of their modules.
    """

    input_ids: Tensor
    logits: Tensor
    activations: Mapping[str, Tensor]

    @cached_property
    def probabilities(self) -> Tensor:
        """Probability of each token [vocabulary] after the first position read."""
        return self.logits[0].softmax(dim=-1)

    @property
    def top_id(self) -> int:
        """Id of the most probable token after the first position read."""
        return int(self.logits[0].argmax())


def run_model(
    traced: TracedModel,
    input_ids: Tensor,
    edits: Mapping[nn.Module, Edit],
    *,
    input_edits: Mapping[nn.Module, Edit] | None = None,
    mask_edits: Mapping[nn.Module, MaskEdit] | None = None,
    logits_to_keep: int = 1,
    use_cache: bool = False,
    **kwargs: Any,
) -> Any:
    """Run the model with edits, holding its lock, and return its output.

    Args:
        traced: The model.
        input_ids: Token ids [rows, tokens], without padding.
        edits: Edits of the modules' outputs.
        input_edits: Edits of the modules' input streams.
        mask_edits: Edits of the modules' attention masks.
        logits_to_keep: For how many last tokens logits are needed. Models that support it do not compute the others.
        use_cache: Whether the model returns a key/value cache.
        kwargs: More arguments for the model.
    """
    tokens = input_ids.shape[1]
    with engine_mode(traced.model), ExitStack() as hooks:
        hooks.enter_context(editing_outputs(edits, tokens, traced.stacked_streams))
        hooks.enter_context(editing_inputs(input_edits or {}, tokens))
        hooks.enter_context(editing_masks(mask_edits or {}))
        if traced.logits_to_keep_drops_tokens:
            hooks.enter_context(add_stream_hook(traced.head, lambda hidden: hidden[:, -logits_to_keep:]))
        elif takes_argument(type(traced.model).forward, "logits_to_keep"):
            kwargs["logits_to_keep"] = logits_to_keep
        return traced.model(input_ids.to(traced.input_device), use_cache=use_cache, **kwargs)


def finite_logits(traced: TracedModel, output: Any, run_name: str, reads: Sequence[int] = (-1,)) -> Tensor:
    """Return the logits of a run at some positions, checked to be finite.

    Args:
        traced: The model.
        output: The model's output.
        run_name: The run's name in the error message, such as "clean".
        reads: The positions, counted from the end (-1 is the last token).

    Returns:
        Logits [rows, reads, vocabulary], float32, on the device of the model's output.

    Raises:
        NumericsError: A logit is NaN or infinite.
    """
    logits: Tensor = output.logits
    # Most runs read only the last token. A slice avoids a copy as large as the logits.
    logits = (logits[:, -1:] if tuple(reads) == (-1,) else logits[:, list(reads)]).float()
    # The sum is finite only if all logits are, and needs no mask or copy as large as the logits.
    if not bool(logits.sum(dim=-1).isfinite().all()):
        raise NumericsError(
            f"The {run_name} run gave logits that are NaN or infinite ({traced.dtype}). Load the model in float32 or "
            "bfloat16, or check its weights."
        )
    return logits


def read_logits(
    traced: TracedModel,
    input_ids: Tensor,
    edits: Mapping[nn.Module, Edit],
    run_name: str,
    reads: Sequence[int] | None = None,
    input_edits: Mapping[nn.Module, Edit] | None = None,
    mask_edits: Mapping[nn.Module, MaskEdit] | None = None,
) -> Tensor:
    """Run the model with edits and return the logits after some positions, by default after the last token.

    Returns:
        Logits [rows, reads, vocabulary], float32.

    Raises:
        NumericsError: A logit is NaN or infinite.
    """
    tokens = input_ids.shape[1]
    from_end = [read - tokens for read in ((tokens - 1,) if reads is None else reads)]
    logits_to_keep = -min(from_end)
    output = run_model(
        traced, input_ids, edits, input_edits=input_edits, mask_edits=mask_edits, logits_to_keep=logits_to_keep
    )
    return finite_logits(traced, output, run_name, from_end)


def clean_run(
    traced: TracedModel,
    input_ids: tuple[int, ...],
    reads: Sequence[int] | None = None,
    sites: Iterable[SiteName] = KINDS,
) -> CleanRun:
    """Run the model on a prompt; record the activations of the sites, and the logits after the positions `reads`."""
    ids = torch.tensor(input_ids)
    kept = ActivationRecorder(name for site in sites for name in traced.activation_names(site))
    outputs, inputs = kept.edits(traced)
    logits = read_logits(traced, ids[None], outputs, "clean", reads, inputs)
    return CleanRun(input_ids=ids, logits=logits[0].cpu(), activations={n: v[0] for n, v in kept.values().items()})


class ActivationRecorder:
    """Records the activations of one run, or of several batches of rows, by `TracedModel.activation_names`."""

    def __init__(self, names: Iterable[str]):
        self._parts: dict[str, list[Tensor]] = {name: [] for name in sorted(names)}

    def edits(self, traced: TracedModel) -> tuple[dict[nn.Module, Edit], dict[nn.Module, Edit]]:
        """Return edits of outputs and of inputs that record the next batch's activations and change nothing."""

        def record(parts: list[Tensor]) -> Edit:
            # A copy is needed: some models add the residual to a module's output in place.
            return lambda activation: parts.append(activation.detach().clone())

        outputs: dict[nn.Module, Edit] = {}
        inputs: dict[nn.Module, Edit] = {}
        for name, parts in self._parts.items():
            edits = inputs if name.endswith(INPUT) else outputs
            edits[traced.modules[name.removesuffix(INPUT)]] = record(parts)
        return outputs, inputs

    def edits_after(
        self, traced: TracedModel, outputs: Mapping[nn.Module, Edit], inputs: Mapping[nn.Module, Edit]
    ) -> tuple[dict[nn.Module, Edit], dict[nn.Module, Edit]]:
        """Return edits of outputs and inputs that apply the given ones and then record the edited activations."""
        recording, recording_inputs = self.edits(traced)
        return _one_after_other(outputs, recording), _one_after_other(inputs, recording_inputs)

    def values(self) -> dict[str, Tensor]:
        """Return the recorded activations [rows, tokens, ...], by name, with the rows of all batches."""
        return {name: torch.cat(parts) for name, parts in self._parts.items() if parts}


def _one_after_other(edits: Mapping[nn.Module, Edit], later: Mapping[nn.Module, Edit]) -> dict[nn.Module, Edit]:
    """Return edits that apply `edits` first and then `later`, which change nothing."""

    def both(first: Edit, second: Edit) -> Edit:
        def edit(activation: Tensor) -> Tensor | None:
            changed = first(activation)
            second(activation if changed is None else changed)
            return changed

        return edit

    return {**edits, **{m: both(edits[m], each) if m in edits else each for m, each in later.items()}}
