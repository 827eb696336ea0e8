"""The edits of a batch of rows: what is restored or blocked where, as edits of the modules concerned."""

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
class Restored:
    """Activations restored at one site of a batch: entry i at row `rows[i]` and token `tokens[i]`.

    Attributes:
        source: The run that the values come from.
        rows: Row numbers [entries].
        tokens: Positions in the prompt [entries].
        heads: Attention heads [entries]; None where the whole activation is restored.
    """

    source: str
    rows: Tensor
    tokens: Tensor
    heads: Tensor | None = None

    def part(self, start: int, stop: int) -> Restored:
        """Return the entries of the rows start ... stop - 1, numbered from there."""
        there = (self.rows >= start) & (self.rows < stop)
        heads = None if self.heads is None else self.heads[there]
        return Restored(self.source, self.rows[there] - start, self.tokens[there], heads)


@dataclass(frozen=True, eq=False)
class Places:
    """What is restored and blocked in a batch.

    Attributes:
        restored: For each site and layer, what is restored there.
        blocked: For each layer, the attention edges that are blocked there.
    """

    restored: Mapping[tuple[SiteName, int], tuple[Restored, ...]]
    blocked: Mapping[int, BlockedEdges]


def places_of(cells: Sequence[Cell], cell_of: Tensor) -> Places:
    """Return the places of a batch whose row r is a run of `cells[cell_of[r]]`."""
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

    def restored(site: SiteName, source: str, entries: list[tuple[int, ...]]) -> Restored:
        rows, tokens, heads = _for_each_row(entries)
        return Restored(source, rows, tokens, heads if site == "head" else None)

    return Places(
        {
            (site, layer): tuple(
                # What is held comes first: a restoration of the same activation overrides it.
                restored(site, source, by_source[source])
                for source in sorted(by_source, key=lambda source: source != BASE)
            )
            for (site, layer), by_source in found.items()
        },
        {layer: BlockedEdges(*_for_each_row(entries)) for layer, entries in edges.items()},
    )


def _for_each_row(entries: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows and both places of entries (first row, number of rows, place, place), one of each for every row."""
    starts, counts, first, second = torch.tensor(entries, dtype=torch.long).reshape(-1, 4).unbind(dim=1)
    entry = torch.arange(len(entries)).repeat_interleave(counts)
    rows = starts[entry] + torch.arange(len(entry)) - (counts.cumsum(dim=0) - counts)[entry]
    return rows, first[entry], second[entry]


def mask_edits(work: Sweep, places: Places, first_token: int) -> dict[nn.Module, MaskEdit]:
    """Return the edits of attention masks in a batch that begins with `first_token`."""
    traced, tokens = work.traced, range(first_token, len(work.base.prompt))
    return {
        traced.modules[module.name]: blocking_edit(edges, tokens, module)
        for layer, edges in places.blocked.items()
        for module in traced.knockout_sites[layer]
    }


def site_edits(
    work: Sweep, places: Places, samples: Tensor, first_token: int, *, hidden: bool
) -> tuple[dict[nn.Module, Edit], dict[nn.Module, Edit]]:
    """Return the edits of a batch: of modules' outputs, and of the inputs of output projections.

    Args:
        work: The sweep.
        places: What is restored.
        samples: The sample of each row.
        first_token: The token that the batch begins with.
        hidden: Whether the blocks' own outputs are among the edits.
    """
    outputs: dict[nn.Module, Edit] = {}
    inputs: dict[nn.Module, Edit] = {}
    for (site, layer), restored in places.restored.items():
        if site == "head":
            name, heads = work.traced.head_sites[layer]
            inputs[work.traced.modules[name]] = restoring(work, name + INPUT, restored, samples, first_token, heads)
        elif hidden or site != "hidden":
            for name in work.traced.site_names[require_kind(site)][layer]:
                outputs[work.traced.modules[name]] = restoring(work, name, restored, samples, first_token)
    return outputs, inputs


def restoring(
    work: Sweep, name: str, restored: Sequence[Restored], samples: Tensor, first_token: int, n_heads: int = 1
) -> Callable[[Tensor], Tensor]:
    """Return the edit that makes all restorations in one module's activation, one after the other."""
    steps = []
    for part in restored:
        sources = work.base.sources
        values = sources[part.source][name] if part.source in sources else work.clean.activations[name][None]
        steps.append(_restoring_once(values, part, samples, work.base.samples, first_token, n_heads))

    def restore(activation: Tensor) -> Tensor:
        for step in steps:
            activation = step(activation)
        return activation

    return restore


def _restoring_once(
    values: Tensor, restored: Restored, samples: Tensor, all_samples: int, first_token: int, n_heads: int
) -> Callable[[Tensor], Tensor]:
    """Return the edit that writes activations of a run into a batch.

    Args:
        values: The activations [n, all tokens, d_model] of the run that they come from: one for all samples, one for
            each sample, or one for each of n groups of as many samples.
        restored: Which of them, and where.
        samples: The noise sample of each row of the batch.
        all_samples: Number of samples of the base run.
        first_token: The token that the batch begins with.
        n_heads: Number of attention heads, where heads are restored.
    """
    here = restored.tokens >= first_token
    rows, tokens = restored.rows[here], restored.tokens[here]
    taken = samples[rows] // (all_samples // len(values))
    heads = None if restored.heads is None else restored.heads[here]

    def restore(activation: Tensor) -> Tensor:
        changed = activation.clone(memory_format=torch.contiguous_format)
        # Blocks before the one where a row joins may hold activations, and the row is not there yet.
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
