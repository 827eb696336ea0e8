"""The plan of a sweep: its cells and their interventions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from causal_tracer.experiment.base_run import BaseRun
from causal_tracer.experiment.sources import BASE, SAME_PROMPT
from causal_tracer.metrics.metric import Metric
from causal_tracer.metrics.values import GroupedMetric
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.runs import CleanRun
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.sites import LayerKind, SiteName, window_layers


@dataclass(frozen=True, slots=True)
class Intervention:
    """Set the activations of one site, in some layers and at some tokens, to their values in another run.

    Attributes:
        layers: The blocks whose activations are set.
        site: The kind of activation. A head's activation is its part of the input of the attention output projection.
        tokens: The positions at which the activations are set.
        source: The run that the values come from: "clean", `BASE`, or one of the base run's sources.
        head: The attention head, for the site "head".
    """

    layers: tuple[int, ...]
    site: SiteName
    tokens: tuple[int, ...]
    source: str = "clean"
    head: int | None = None


@dataclass(frozen=True, slots=True)
class BlockedAttention:
    """Block attention from some tokens to others, in all heads of some layers.

    Attributes:
        layers: The blocks whose attention is blocked.
        queries: The positions whose attention is blocked.
        keys: The positions that the queries must not attend to. Keys after a query are ignored.
        site: The site of the map that the intervention belongs to.
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
    """One cell of a map, with the interventions in the base run that give its score.

    Attributes:
        position: The row: a token's position, or the number of a head or a span.
        layer: The layer.
        interventions: The interventions.
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
        """Return the positions read in a run of `n_tokens` tokens."""
        return (n_tokens - 1,) if self.reads is None else self.reads


@dataclass(frozen=True, eq=False)
class SweepChunk:
    """Some scores of a sweep.

    Attributes:
        cells: The number of each score's cell in the plan [scores].
        samples: The noise sample of each score [scores].
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
        clean: The run that restored activations come from, unless an intervention has another source.
        base: The run in which the interventions are made, once per sample.
        plan: The cells.
        metric: The metric of the logits.
        batch_size: The largest number of rows (cell, sample) in a batch.
        maps: The number of each cell's map [cells]; None if all cells are of one map.
        seed: Seed for the choice of the audited cells.
    """

    traced: TracedModel
    clean: CleanRun
    base: BaseRun
    plan: SweepPlan
    metric: Metric | GroupedMetric
    batch_size: int
    maps: Tensor | None = None
    seed: int = 0

    @property
    def reads(self) -> tuple[int, ...]:
        """The positions whose logits are read."""
        return self.plan.read_positions(len(self.base.prompt))

    def part(self, cells: Tensor) -> Sweep:
        """Return the sweep of some of the cells, which are renumbered from 0."""
        plan = replace(self.plan, cells=tuple(self.plan.cells[number] for number in cells.tolist()))
        return replace(self, plan=plan, maps=None if self.maps is None else self.maps[cells])

    def reach(self, cell: Cell) -> Reach | None:
        """Return where a cell first differs from the base run, or None if it cannot change the logits read."""
        first_corrupted, traced = self.base.prompt.subject_range[0], self.traced
        return reach(cell, first_corrupted, self.reads, traced.n_layers, traced.outputs_reach_later_tokens)


@dataclass(frozen=True, slots=True)
class Reach:
    """The first block and token at which a cell's run differs from the base run.

    Attributes:
        first_token: The first token that differs.
        join: The first block whose input or inner activations differ; the number of blocks if only the last block's
            output differs.
    """

    first_token: int
    join: int


def reach(
    cell: Cell, first_corrupted: int, reads: Sequence[int], n_layers: int, outputs_reach_later_tokens: bool = False
) -> Reach | None:
    """Return where a cell first differs from the base run, or None if it cannot change the logits read.

    An intervention changes nothing at tokens before the first corrupted one, which are equal in all runs of a prompt;
    at tokens after the last position read; or if it holds activations at the base run's own values. In the last block,
    an output affects its own token only, unless tokens mix again after attention or MLP
    (`TracedModel.outputs_reach_later_tokens`). Blocked attention changes every query token that loses a key.
    """
    tokens: list[int] = []
    joins: list[int] = []
    for intervention in cell.interventions:
        if isinstance(intervention, BlockedAttention):
            # Queries before all keys lose nothing.
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
    base_tokens: Mapping[int, int] | None = None,
) -> SweepPlan:
    """Return the cells of a map that restores one token in one window of layers at a time, in priority order.

    Layers without the kind have no cells. A window restores only those of its layers that have the kind.

    Args:
        traced: The model.
        prompt: The base run's prompt.
        kind: The site to restore. For "head" each attention head has its own cell.
        window: Number of consecutive layers restored together.
        positions: The tokens of the map's prompt to restore; a single one for "head".
        layers: The layers to compute.
        source: The run that the values come from.
        severed: The kind whose outputs at the cell's token are held at the base run's values in all layers.
        base_tokens: The base run's token for each position; None if they are equal.
    """
    missing = traced.missing_layers(kind)
    layers = [layer for layer in layers if layer not in missing]
    cells = []
    order = priority_order(prompt)
    placed = [(position, position if base_tokens is None else base_tokens[position]) for position in positions]
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

    Layers whose attention cannot be blocked have no cells. A window skips such layers.
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
