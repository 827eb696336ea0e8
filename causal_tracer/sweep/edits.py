"""From what a batch puts back to the edits of the modules it touches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from causal_tracer.experiment.base_run import BaseRun
from causal_tracer.model.hooks import Edit
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.runs import CleanRun
from causal_tracer.sweep.plan import Places, Restored, putting_back


def source_values(clean: CleanRun, base: BaseRun, source: str, name: str) -> Tensor:
    """What a module gave, or an output projection took, in the run of this name: [1 or samples, tokens, ...]."""
    if source in base.sources:
        return base.sources[source][name]
    return clean.activations[name][None]


def restoring(
    clean: CleanRun,
    base: BaseRun,
    name: str,
    restored: Sequence[Restored],
    samples: Tensor,
    first_token: int,
    heads: int,
) -> Edit:
    """The edit of one module for all that is put back in it, one after the other."""
    steps = [
        putting_back(source_values(clean, base, part.source, name), part, samples, base.samples, first_token, heads)
        for part in restored
    ]
    return partial(_in_turn, steps)


def _in_turn(steps: Sequence[Edit], activation: Tensor) -> Tensor:
    for step in steps:
        changed = step(activation)
        activation = activation if changed is None else changed
    return activation


def site_edits(
    traced: TracedModel,
    clean: CleanRun,
    base: BaseRun,
    places: Places,
    samples: Tensor,
    first_token: int,
    *,
    hidden: bool,
) -> tuple[dict[nn.Module, Edit], dict[nn.Module, Edit]]:
    """The edits of a batch: of what modules give, and of what output projections take.

    Args:
        traced: The model.
        clean: Where restored activations come from.
        base: The base run.
        places: What is put back.
        samples: The sample of each row.
        first_token: The token that the batch begins with.
        hidden: Whether the blocks' own outputs are among the edits.
    """
    outputs: dict[nn.Module, Edit] = {}
    inputs: dict[nn.Module, Edit] = {}
    for (site, layer), restored in places.items():
        if site == "head":
            name, heads = traced.head_sites[layer]
            inputs[traced.modules[name]] = restoring(clean, base, name, restored, samples, first_token, heads)
        elif hidden or site != "hidden":
            for name in traced.site_names[site][layer]:
                outputs[traced.modules[name]] = restoring(clean, base, name, restored, samples, first_token, 1)
    return outputs, inputs
