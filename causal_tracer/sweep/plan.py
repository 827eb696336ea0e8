"""What a sweep computes: cells, and the interventions of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from causal_tracer.experiment.base_run import BaseRun
from causal_tracer.experiment.sources import BASE, SAME_PROMPT
from causal_tracer.metrics.metric import Metric
from causal_tracer.metrics.values import MetricOfGroups
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.runs import CleanRun
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.sites import LayerKind, SiteName, window_layers


@dataclass(frozen=True, slots=True)
class Intervention:
    """Set the activations of one site, in some layers and at some tokens, to their values in another run.

    Attributes:
        layers: The blocks whose activations are set.
        site: Which activation of the block; a head is its part of the input of the attention's output projection.
        tokens: The positions at which they are set.
        source: The run that the values come from: "clean", `BASE`, or one of the base run's sources.
        head: The attention head, where the site is one.
    """

    layers: tuple[int, ...]
    site: SiteName
    tokens: tuple[int, ...]
    source: str = "clean"
    head: int | None = None


@dataclass(frozen=True, slots=True)
class BlockedAttention:
    """Let some tokens not attend to others, in all heads of some layers.

    Attributes:
        layers: The blocks whose attention is blocked.
        queries: The positions that may not attend. A key after its query is no edge, so nothing is blocked there.
        keys: The positions that they may not attend to.
        site: The site whose maps are made of this.
    """

    layers: tuple[int, ...]
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    site: SiteName = "knockout"

    @property
    def tokens(self) -> tuple[int, ...]:
        """The positions at which attention is changed: the queries."""
        return self.queries


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a map: its place, and the interventions in the base run that give its score.

    `position` is its row: a token, or in a map of heads a head, in one of spans a span.
    """

    position: int
    layer: int
    interventions: tuple[Intervention | BlockedAttention, ...]


@dataclass(frozen=True)
class SweepPlan:
    """The cells of a sweep.

    Attributes:
        cells: The cells, in the order in which they are computed.
        reads: The positions whose logits the metric reads; None means the last token.
    """

    cells: tuple[Cell, ...]
    reads: tuple[int, ...] | None = None

    def read_positions(self, n_tokens: int) -> tuple[int, ...]:
        """Return the positions read in a run of this many tokens."""
        return (n_tokens - 1,) if self.reads is None else self.reads


@dataclass(frozen=True, eq=False)
class SweepChunk:
    """Some scores of a sweep.

    Attributes:
        cells: For each score, the number of its cell in the plan [scores].
        samples: For each score, its noise sample [scores].
        scores: The metric [scores], float32 on the CPU.
    """

    cells: Tensor
    samples: Tensor
    scores: Tensor


@dataclass(frozen=True, eq=False)
class Sweep:
    """One sweep to compute: the cells of a plan, as interventions in a base run.

    Attributes:
        traced: The model.
        clean: The run that restored activations come from, unless an intervention names another source.
        base: The run that is intervened in, once per sample.
        plan: The cells.
        metric: The metric that is read off the logits.
        batch_size: The largest number of rows (cell, sample) that go through the model together.
        maps: For each cell, the number of its map [cells]; None where all cells are of one map.
        seed: Seed that the audited cells are chosen with.
    """

    traced: TracedModel
    clean: CleanRun
    base: BaseRun
    plan: SweepPlan
    metric: Metric | MetricOfGroups
    batch_size: int
    maps: Tensor | None = None
    seed: int = 0

    @property
    def reads(self) -> tuple[int, ...]:
        """The positions whose logits are read."""
        return self.plan.read_positions(len(self.base.prompt))

    def part(self, cells: Tensor) -> Sweep:
        """Return the sweep of some of its cells, which are numbered anew."""
        plan = replace(self.plan, cells=tuple(self.plan.cells[number] for number in cells.tolist()))
        return replace(self, plan=plan, maps=None if self.maps is None else self.maps[cells])

    def reach(self, cell: Cell) -> Reach | None:
        """Return where a cell departs from the base run, or None if it cannot change what is read."""
        first_corrupted, traced = self.base.prompt.subject_range[0], self.traced
        return reach(cell, first_corrupted, self.reads, traced.n_layers, traced.outputs_reach_later_tokens)


@dataclass(frozen=True, slots=True)
class Reach:
    """Where a cell first departs from the base run.

    Attributes:
        first_token: The first token that it changes.
        join: The first block whose input or inside changes; the number of blocks where only the last output does.
    """

    first_token: int
    join: int


def reach(
    cell: Cell, first_corrupted: int, reads: Sequence[int], n_layers: int, outputs_reach_later_tokens: bool = False
) -> Reach | None:
    """Return where a cell departs from the base run, or None if it cannot change what is read.

    Tokens before the first corrupted one are equal in all runs of a prompt, and tokens after the last one read do not
    affect it. In the last block, an output at a token affects that token only, unless tokens mix again after attention
    or MLP (`TracedModel.outputs_reach_later_tokens`). Holding activations at the base run's own values changes nothing.
    Blocked attention changes every token that it blocks an edge of.
    """
    tokens: list[int] = []
    joins: list[int] = []
    for intervention in cell.interventions:
        if isinstance(intervention, BlockedAttention):
            # A query before all keys has no edge to block.
            source, differs_from = None, min(intervention.keys, default=max(reads) + 1)
        else:
            source = intervention.source
            differs_from = first_corrupted if source in SAME_PROMPT else 0
        touched = [token for token in intervention.tokens if differs_from <= token <= max(reads)]
        if not touched or not intervention.layers or source == BASE:
            continue
        first = min(intervention.layers)
        inside = intervention.site != "hidden" and outputs_reach_later_tokens
        if first == n_layers - 1 and not set(reads) & set(touched) and not inside:
            continue
        tokens += touched
        joins.append(first + 1 if intervention.site == "hidden" else first)
    return Reach(min(tokens), min(joins)) if tokens else None


def map_plan(
    traced: TracedModel,
    prompt: Prompt,
    kind: SiteName,
    window: int,
    positions: Iterable[int],
    layers: Iterable[int],
    *,
    source: str = "clean",
    severed: LayerKind | None = None,
    places: Mapping[int, int] | None = None,
) -> SweepPlan:
    """Return the cells of a map that restores one token in one window of layers at a time, in priority order.

    Of kind "head", each attention head has a cell of its own, so `positions` is to have one token. Layers without the
    kind have no cells; a window restores those of its layers that have it. With `severed`, the outputs of that kind at
    the cell's token are held at the base run's values in all layers. Where the base run is of another prompt than the
    map, `places` gives its token for each position, and `prompt` is the other prompt.
    """
    missing = traced.missing_layers(kind)
    layers = [layer for layer in layers if layer not in missing]
    cells = []
    order = priority_order(prompt)
    placed = [(position, position if places is None else places[position]) for position in positions]
    for position, token in sorted(placed, key=lambda pair: order(pair[1])):
        holding: tuple[Intervention, ...] = ()
        if severed is not None:
            held = tuple(n for n in range(traced.n_layers) if n not in traced.missing_layers(severed))
            holding = (Intervention(held, severed, (token,), BASE),)
        for layer in layers:
            restored = tuple(n for n in window_layers(layer, window, traced.n_layers) if n not in missing)
            for head in range(traced.head_sites[layer][1]) if kind == "head" else (None,):
                row = position if head is None else head
                patch = Intervention(restored, kind, (token,), source, head)
                cells.append(Cell(row, layer, (patch, *holding)))
    return SweepPlan(tuple(cells))


def knockout_plan(
    traced: TracedModel,
    kind: SiteName,
    window: int,
    queries: tuple[int, ...],
    keys_of_rows: Mapping[int, tuple[int, ...]],
    layers: Iterable[int],
) -> SweepPlan:
    """Return the cells of a map that blocks attention to each row's keys in one window of layers at a time.

    Layers whose attention cannot be blocked have no cells; a window blocks those of its layers that can.
    """
    missing = traced.missing_layers(kind)
    layers = [layer for layer in layers if layer not in missing]
    windows = {
        layer: tuple(n for n in window_layers(layer, window, traced.n_layers) if n not in missing) for layer in layers
    }
    return SweepPlan(
        tuple(
            Cell(row, layer, (BlockedAttention(windows[layer], queries, keys, kind),))
            for row, keys in keys_of_rows.items()
            for layer in layers
        )
    )


def priority_order(prompt: Prompt) -> Callable[[int], int]:
    """Return a sort key for positions: the last subject token first, then the last token, then the rest in order."""
    first = (prompt.subject_range[1] - 1, len(prompt) - 1)
    return lambda position: first.index(position) if position in first else len(first) + position
