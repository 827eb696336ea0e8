"""What a sweep has to compute: cells, and the interventions of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from causal_tracer.experiment.sources import BASE, CLEAN_HEADS, SAME_PROMPT
from causal_tracer.model.hooks import Edit
from causal_tracer.model.layers import TracedModel
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.sites import LayerKind, window_layers

Site = LayerKind | Literal["head"]
"""Which activation of a block; a head is its part of what the attention's output projection takes."""


@dataclass(frozen=True, slots=True)
class Intervention:
    """Put the activations of one kind, in some layers and at some tokens, to their values in another run.

    Attributes:
        layers: The blocks whose activations are put back.
        site: Which activation of the block.
        tokens: The positions at which they are put back.
        source: The run that the values come from: "clean", `BASE`, or another that the base run knows by name.
        head: Which attention head, where the site is one.
    """

    layers: tuple[int, ...]
    site: Site
    tokens: tuple[int, ...]
    source: str = "clean"
    head: int | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a map: where it stands, and what is done to the corrupted run to get its score."""

    position: int
    layer: int
    interventions: tuple[Intervention, ...]


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep computes.

    Attributes:
        cells: The cells, in the order in which they are computed: the most telling first.
        reads: The positions whose logits the metric is given; None means the last token.
    """

    cells: tuple[Cell, ...]
    reads: tuple[int, ...] | None = None

    def read_positions(self, n_tokens: int) -> tuple[int, ...]:
        """The positions read in a run of this many tokens."""
        return (n_tokens - 1,) if self.reads is None else self.reads


@dataclass(frozen=True, eq=False)
class SweepChunk:
    """Scores that have become known.

    Attributes:
        cells: For each score, the number of its cell in the plan [scores].
        samples: For each score, its noise sample [scores].
        scores: The metric [scores], float32 on the CPU.
    """

    cells: Tensor
    samples: Tensor
    scores: Tensor


@dataclass(frozen=True, slots=True)
class Reach:
    """Where a cell first departs from the corrupted run: all before that is the corrupted run's.

    Attributes:
        first_token: The first token that it changes.
        join: The first block whose input or inside it changes; the number of blocks where only the last output is.
    """

    first_token: int
    join: int


def reach(
    cell: Cell, first_corrupted: int, reads: Sequence[int], n_layers: int, tokens_meet_again: bool = False
) -> Reach | None:
    """Where the cell departs from the base run, or None if it cannot change what is read.

    Tokens before the first corrupted one are the same in all runs of a prompt, and tokens after the last read one are
    not seen. What the last block does at a token is seen at that token only, unless its tokens meet again after
    attention or MLP (`TracedModel.tokens_meet_again`). What is held at the base run's own values changes nothing by
    itself.
    """
    tokens: list[int] = []
    joins: list[int] = []
    for intervention in cell.interventions:
        differs_from = first_corrupted if intervention.source in SAME_PROMPT else 0
        touched = [token for token in intervention.tokens if differs_from <= token <= max(reads)]
        if not touched or not intervention.layers or intervention.source == BASE:
            continue
        first = min(intervention.layers)
        inside = intervention.site != "hidden" and tokens_meet_again
        if first == n_layers - 1 and not set(reads) & set(touched) and not inside:
            continue
        tokens += touched
        joins.append(first + 1 if intervention.site == "hidden" else first)
    return Reach(min(tokens), min(joins)) if tokens else None


@dataclass(frozen=True, eq=False)
class Restored:
    """Activations put back at one site of a batch: entry i at row `rows[i]` and token `tokens[i]`.

    Attributes:
        source: The run that the values come from.
        rows: Row numbers [entries].
        tokens: Positions in the prompt [entries].
        heads: Attention heads [entries]; None where the whole activation is put back.
    """

    source: str
    rows: Tensor
    tokens: Tensor
    heads: Tensor | None = None

    def part(self, start: int, stop: int) -> Restored:
        """The entries of the rows start ... stop - 1, numbered from there."""
        there = (self.rows >= start) & (self.rows < stop)
        heads = None if self.heads is None else self.heads[there]
        return Restored(self.source, self.rows[there] - start, self.tokens[there], heads)


Places = Mapping[tuple[Site, int], tuple[Restored, ...]]
"""For each site and layer, what is put back there."""


def restored_places(cells: Sequence[Cell], cell_of: Tensor) -> Places:
    """Where activations are put back in a batch whose row r is a run of `cells[cell_of[r]]`."""
    found: dict[tuple[Site, int], dict[str, tuple[list[int], list[int], list[int]]]] = defaultdict(dict)
    numbers, counts = torch.unique_consecutive(cell_of, return_counts=True)
    start = 0
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        for intervention in cells[number].interventions:
            head = -1 if intervention.head is None else intervention.head
            for layer in intervention.layers:
                at = found[intervention.site, layer].setdefault(intervention.source, ([], [], []))
                for token in intervention.tokens:
                    at[0].extend(range(start, start + count))
                    at[1].extend([token] * count)
                    at[2].extend([head] * count)
        start += count
    long = torch.long  # also where a cell touches no token
    return {
        place: tuple(
            # What is held comes first: a restoration of the same activation is stronger.
            Restored(
                source,
                torch.tensor(rows, dtype=long),
                torch.tensor(tokens, dtype=long),
                torch.tensor(heads, dtype=long) if place[0] == "head" else None,
            )
            for source, (rows, tokens, heads) in sorted(by_source.items(), key=lambda item: item[0] != BASE)
        )
        for place, by_source in found.items()
    }


def putting_back(
    values: Tensor, restored: Restored, samples: Tensor, all_samples: int, first_token: int = 0, n_heads: int = 1
) -> Edit:
    """The edit that writes values of a run into a batch.

    Args:
        values: The activations [n, all tokens, d_model] of the run that they come from: one for all samples, one for
            each sample, or one for each of n groups of as many samples.
        restored: Which of them, and where.
        samples: The noise sample of each row of the batch.
        all_samples: Number of samples of the base run.
        first_token: The token that the batch begins with.
        n_heads: Number of attention heads, where heads are put back.
    """
    here = restored.tokens >= first_token
    rows, tokens = restored.rows[here], restored.tokens[here]
    taken = samples[rows] // (all_samples // len(values))
    heads = None if restored.heads is None else restored.heads[here]

    def put_back(activation: Tensor) -> Tensor:
        changed = activation.clone(memory_format=torch.contiguous_format)
        # What is held is held in blocks before a row joins as well, where the row is not there yet.
        there = rows < len(activation)
        row, token, source = rows[there], tokens[there], taken[there]
        if heads is None:
            changed[row, token - first_token] = values.to(activation)[source, token]
        else:
            taken_heads = values.to(activation).reshape(*values.shape[:-1], n_heads, -1)
            by_head = changed.view(*changed.shape[:-1], n_heads, -1)
            by_head[row, token - first_token, heads[there]] = taken_heads[source, token, heads[there]]
        return changed

    return put_back


def map_plan(
    traced: TracedModel,
    prompt: Prompt,
    kind: LayerKind,
    window: int,
    positions: Iterable[int],
    layers: Iterable[int],
    *,
    source: str = "clean",
    severed: LayerKind | None = None,
) -> SweepPlan:
    """The cells of a map that restores one token in one window of layers at a time.

    Layers without a module of the kind have no cells; a window restores those of its layers that have one. With
    `severed`, the outputs of that kind at the cell's token are held at the base run's values in all layers.
    """
    missing = traced.missing_layers(kind)
    layers = [layer for layer in layers if layer not in missing]
    held: tuple[int, ...] = ()
    if severed is not None:
        held = tuple(n for n in range(traced.n_layers) if n not in traced.missing_layers(severed))
    cells = []
    for position in sorted(positions, key=priority_order(prompt)):
        holding = () if severed is None else (Intervention(held, severed, (position,), BASE),)
        for layer in layers:
            restored = tuple(n for n in window_layers(layer, window, traced.n_layers) if n not in missing)
            cells.append(Cell(position, layer, (Intervention(restored, kind, (position,), source), *holding)))
    return SweepPlan(tuple(cells))


def head_plan(
    traced: TracedModel, position: int, layers: Iterable[int], window: int, reads: tuple[int, ...]
) -> SweepPlan:
    """The cells of a map that restores single attention heads at one token, in one window of layers at a time.

    A cell stands at (head, layer) in `Cell.position` and `Cell.layer`. Layers without heads have no cells.
    """
    sites, cells = traced.head_sites, []
    for layer in layers:
        for head in range(sites[layer][1] if layer in sites else 0):
            restored = tuple(n for n in window_layers(layer, window, traced.n_layers) if n in sites)
            cells.append(Cell(head, layer, (Intervention(restored, "head", (position,), CLEAN_HEADS, head),)))
    return SweepPlan(tuple(cells), reads)


def priority_order(prompt: Prompt) -> Callable[[int], int]:
    """A sort key for positions that puts the most telling first: last subject token, last token, then the rest."""
    telling = (prompt.subject_range[1] - 1, len(prompt) - 1)
    return lambda position: telling.index(position) if position in telling else len(telling) + position
