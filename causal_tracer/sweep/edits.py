"""From the interventions of a batch's cells to edits of the modules' outputs, inputs and attention masks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from causal_tracer.experiment.sources import BASE
from causal_tracer.model.attention_masks import BlockedEdges, blocking_edit
from causal_tracer.model.hooks import Edit, MaskEdit
from causal_tracer.model.layers import INPUT
from causal_tracer.request.sites import SiteName, require_kind
from causal_tracer.sweep.plan import BlockedAttention, Cell, Sweep


@dataclass(frozen=True, eq=False)
class Restorations:
    """The restorations of one site and layer in a batch: entry i is at row `rows[i]` and token `tokens[i]`.

    Attributes:
        source: The run that the values come from.
        rows: Row numbers [entries].
        tokens: Positions in the prompt [entries].
        heads: Attention heads [entries]; None if the whole activation is restored.
    """

    source: str
    rows: Tensor
    tokens: Tensor
    heads: Tensor | None = None

    def part(self, start: int, stop: int) -> Restorations:
        """Return the entries of the rows start ... stop - 1, with row numbers counted from `start`."""
        there = (self.rows >= start) & (self.rows < stop)
        heads = None if self.heads is None else self.heads[there]
        return Restorations(self.source, self.rows[there] - start, self.tokens[there], heads)


@dataclass(frozen=True, eq=False)
class BatchInterventions:
    """The interventions in a batch.

    Attributes:
        restored: The restorations, by site and layer.
        blocked: The blocked attention edges, by layer.
    """

    restored: Mapping[tuple[SiteName, int], tuple[Restorations, ...]]
    blocked: Mapping[int, BlockedEdges]


def batch_interventions(cells: Sequence[Cell], cell_of: Tensor) -> BatchInterventions:
    """Return the interventions in a batch whose row r is a run of `cells[cell_of[r]]`."""
    found: dict[tuple[SiteName, int], dict[str, list[tuple[int, ...]]]] = defaultdict(lambda: defaultdict(list))
    edges: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    numbers, counts = torch.unique_consecutive(cell_of, return_counts=True)
    start = 0
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        for intervention in cells[number].interventions:
            if isinstance(intervention, BlockedAttention):
                pairs = [(query, key) for query in intervention.queries for key in intervention.keys if key <= query]
                for layer in intervention.layers:
                    edges[layer] += [(start, count, *pair) for pair in pairs]
                continue
            head = -1 if intervention.head is None else intervention.head
            for layer in intervention.layers:
                entries = found[intervention.site, layer][intervention.source]
                entries += [(start, count, token, head) for token in intervention.tokens]
        start += count

    def restored(site: SiteName, source: str, entries: list[tuple[int, ...]]) -> Restorations:
        rows, tokens, heads = _for_each_row(entries)
        return Restorations(source, rows, tokens, heads if site == "head" else None)

    return BatchInterventions(
        {
            (site, layer): tuple(
                # Values held at the base run's come first, so that a restoration of the same activation overrides them.
                restored(site, source, by_source[source])
                for source in sorted(by_source, key=lambda source: source != BASE)
            )
            for (site, layer), by_source in found.items()
        },
        {layer: BlockedEdges(*_for_each_row(entries)) for layer, entries in edges.items()},
    )


def _for_each_row(entries: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor]:
    """Expand entries (first row, number of rows, a, b) to one (row, a, b) for every row; return rows, a and b."""
    starts, counts, first, second = torch.tensor(entries, dtype=torch.long).reshape(-1, 4).unbind(dim=1)
    entry = torch.arange(len(entries)).repeat_interleave(counts)
    rows = starts[entry] + torch.arange(len(entry)) - (counts.cumsum(dim=0) - counts)[entry]
    return rows, first[entry], second[entry]


def mask_edits(sweep: Sweep, interventions: BatchInterventions, first_token: int) -> dict[nn.Module, MaskEdit]:
    """Return the edits of attention masks in a batch that begins at `first_token`."""
    traced, tokens = sweep.traced, range(first_token, len(sweep.base.prompt))
    return {
        traced.modules[module.name]: blocking_edit(edges, tokens, module)
        for layer, edges in interventions.blocked.items()
        for module in traced.knockout_sites[layer]
    }


def site_edits(
    sweep: Sweep, interventions: BatchInterventions, samples: Tensor, first_token: int, *, hidden: bool
) -> tuple[dict[nn.Module, Edit], dict[nn.Module, Edit]]:
    """Return the edits of a batch: those of modules' outputs, and those of the inputs of attention output projections.

    Args:
        sweep: The sweep.
        interventions: The interventions.
        samples: The sample of each row [rows].
        first_token: The first token of the batch.
        hidden: Whether to include edits of the blocks' outputs.
    """
    outputs: dict[nn.Module, Edit] = {}
    inputs: dict[nn.Module, Edit] = {}
    for (site, layer), restored in interventions.restored.items():
        if site == "head":
            name, heads = sweep.traced.head_sites[layer]
            inputs[sweep.traced.modules[name]] = restoration_edit(
                sweep, name + INPUT, restored, samples, first_token, heads
            )
        elif hidden or site != "hidden":
            for name in sweep.traced.site_names[require_kind(site)][layer]:
                outputs[sweep.traced.modules[name]] = restoration_edit(sweep, name, restored, samples, first_token)
    return outputs, inputs


def restoration_edit(
    sweep: Sweep, name: str, restored: Sequence[Restorations], samples: Tensor, first_token: int, n_heads: int = 1
) -> Callable[[Tensor], Tensor]:
    """Return the edit that makes all restorations of one module's activation, one after the other."""
    steps = []
    for part in restored:
        sources = sweep.base.sources
        values = sources[part.source][name] if part.source in sources else sweep.clean.activations[name][None]
        steps.append(_one_restoration_edit(values, part, samples, sweep.base.samples, first_token, n_heads))

    def restore(activation: Tensor) -> Tensor:
        for step in steps:
            activation = step(activation)
        return activation

    return restore


def _one_restoration_edit(
    values: Tensor, restored: Restorations, samples: Tensor, all_samples: int, first_token: int, n_heads: int
) -> Callable[[Tensor], Tensor]:
    """Return the edit that copies a run's activations into a batch.

    Args:
        values: The run's activations [n, all tokens, d_model]: n is 1, the number of samples, or a number of equal
            groups of samples that share a value.
        restored: The restorations to make.
        samples: The noise sample of each batch row [rows].
        all_samples: Number of samples of the base run.
        first_token: The first token of the batch.
        n_heads: Number of attention heads, if heads are restored.
    """
    here = restored.tokens >= first_token
    rows, tokens = restored.rows[here], restored.tokens[here]
    taken = samples[rows] // (all_samples // len(values))
    heads = None if restored.heads is None else restored.heads[here]

    def restore(activation: Tensor) -> Tensor:
        changed = activation.clone(memory_format=torch.contiguous_format)
        # Activations may also be held in blocks before the one where a row joins; that row is not in the batch yet.
        there = rows < len(activation)
        row, token, source = rows[there], tokens[there], taken[there]
        if heads is None:
            changed[row, token - first_token] = values.to(activation)[source, token]
        else:
            taken_heads = values.to(activation).reshape(*values.shape[:-1], n_heads, -1)
            by_head = changed.view(*changed.shape[:-1], n_heads, -1)
            by_head[row, token - first_token, heads[there]] = taken_heads[source, token, heads[there]]
        return changed

    return restore
