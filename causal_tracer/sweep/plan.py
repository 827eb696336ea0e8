"""What a sweep has to compute: cells, and the interventions of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from causal_tracer.hooks import Edit
from causal_tracer.layers import LayerKind, TracedModel
from causal_tracer.prompts import Prompt

Source = Literal["clean"]


@dataclass(frozen=True, slots=True)
class Intervention:
    """Put the activations of one kind, in some layers and at some tokens, to their values in another run.

    Attributes:
        layers: The blocks whose activations are put back.
        site: Which activation of the block.
        tokens: The positions at which they are put back.
        source: The run that the values come from.
    """

    layers: tuple[int, ...]
    site: LayerKind
    tokens: tuple[int, ...]
    source: Source = "clean"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a map: where it stands, and what is done to the corrupted run to get its score."""

    position: int
    layer: int
    interventions: tuple[Intervention, ...]


@dataclass(frozen=True)
class SweepPlan:
    """The cells of one map, in the order in which they are computed: the most telling first."""

    cells: tuple[Cell, ...]


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
    cell: Cell, first_corrupted: int, n_tokens: int, n_layers: int, tokens_meet_again: bool = False
) -> Reach | None:
    """Where the cell departs from the corrupted run, or None if it cannot change what is read at the last token.

    Tokens before the first corrupted one are clean already. What the last block does at a token is seen at that
    token only, unless its tokens meet again after attention or MLP (`TracedModel.tokens_meet_again`).
    """
    tokens: list[int] = []
    joins: list[int] = []
    for intervention in cell.interventions:
        touched = [token for token in intervention.tokens if token >= first_corrupted]
        if not touched or not intervention.layers:
            continue
        first = min(intervention.layers)
        inside = intervention.site != "hidden" and tokens_meet_again
        if first == n_layers - 1 and n_tokens - 1 not in touched and not inside:
            continue
        tokens += touched
        joins.append(first + 1 if intervention.site == "hidden" else first)
    return Reach(min(tokens), min(joins)) if tokens else None


Places = Mapping[tuple[LayerKind, int], tuple[Tensor, Tensor]]
"""For each kind and layer, the rows and the tokens at which activations are put back."""


def restored_places(cells: Sequence[Cell]) -> Places:
    """Where activations are put back in a batch whose row r is a run of `cells[r]`."""
    places: dict[tuple[LayerKind, int], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for row, cell in enumerate(cells):
        for intervention in cell.interventions:
            for layer in intervention.layers:
                rows, tokens = places[intervention.site, layer]
                rows += [row] * len(intervention.tokens)
                tokens += intervention.tokens
    long = torch.long  # also where a cell touches no token
    return {
        site: (torch.tensor(rows, dtype=long), torch.tensor(tokens, dtype=long))
        for site, (rows, tokens) in places.items()
    }


def putting_back(values: Tensor, rows: Tensor, tokens: Tensor, first_token: int = 0) -> Edit:
    """The edit that writes values [all tokens, d_model] of a run into a batch that starts at `first_token`."""
    here = tokens >= first_token
    rows, tokens = rows[here], tokens[here]

    def put_back(activation: Tensor) -> Tensor:
        restored = activation.clone()
        restored[rows, tokens - first_token] = values.to(activation)[tokens]
        return restored

    return put_back


def window_layers(layer: int, window: int, n_layers: int) -> tuple[int, ...]:
    """The layers restored together: l - floor(w/2) ... l + ceil(w/2) - 1, cut at the ends, as ROME's code does."""
    return tuple(range(max(0, layer - window // 2), min(n_layers, layer - (-window // 2))))


def map_plan(
    traced: TracedModel, prompt: Prompt, kind: LayerKind, window: int, positions: Iterable[int], layers: Iterable[int]
) -> SweepPlan:
    """The cells of a map that restores one token in one window of layers at a time.

    Layers without a module of the kind have no cells; a window restores those of its layers that have one.
    """
    missing = traced.missing_layers(kind)
    layers = [layer for layer in layers if layer not in missing]
    cells = []
    for position in sorted(positions, key=telling_order(prompt)):
        for layer in layers:
            restored = tuple(n for n in window_layers(layer, window, traced.n_layers) if n not in missing)
            cells.append(Cell(position, layer, (Intervention(restored, kind, (position,)),)))
    return SweepPlan(tuple(cells))


def telling_order(prompt: Prompt) -> Callable[[int], int]:
    """A sort key for positions that puts the most telling first: last subject token, last token, then the rest."""
    telling = (prompt.subject_range[1] - 1, len(prompt) - 1)
    return lambda position: telling.index(position) if position in telling else len(telling) + position
