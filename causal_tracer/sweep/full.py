"""The full sweep: the whole model again for every cell and sample. Slow, plain, and the oracle of all else.

Rows (cell, sample) of one prompt go through the model together, `batch_size` at a time. In each row the subject is
corrupted with the row's noise sample and the cell's interventions are made; only the logits after the last token are
computed where the model can leave out the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from causal_tracer.errors import TraceCancelled
from causal_tracer.hooks import Edit
from causal_tracer.layers import TracedModel
from causal_tracer.metrics import Metric
from causal_tracer.runs import CleanRun, CorruptedRun, corrupting, read_logits
from causal_tracer.sweep.plan import Cell, SweepChunk, SweepPlan, putting_back, restored_places


def full_sweep(
    traced: TracedModel,
    clean: CleanRun,
    corrupted: CorruptedRun,
    plan: SweepPlan,
    metric: Metric,
    batch_size: int,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[SweepChunk]:
    """Compute every cell of the plan for every noise sample.

    Args:
        traced: The model.
        clean: Where restored activations come from.
        corrupted: The base run: its prompt and noise.
        plan: The cells.
        metric: What is read off the logits.
        batch_size: Rows that go through the model together.
        cancelled: Asked before each batch; True stops the sweep.

    Yields:
        Scores, batch by batch, in the plan's order.

    Raises:
        TraceCancelled: `cancelled` said so.
        NumericsError: A run gave NaN or infinite logits.
    """
    samples = corrupted.samples
    rows = torch.arange(len(plan.cells) * samples)
    for batch in torch.split(rows, batch_size) if plan.cells else ():
        if cancelled():
            raise TraceCancelled(f"The sweep was cancelled after {int(batch[0])} of {len(rows)} runs.")
        cell_of, sample_of = batch // samples, batch % samples
        edits = _restoring(traced, clean, [plan.cells[int(c)] for c in cell_of])
        edits[traced.embedding] = corrupting(corrupted.noise, corrupted.prompt, sample_of)
        ids = clean.input_ids.expand(len(batch), -1)
        scores = metric(read_logits(traced, ids, edits, "restored"))
        yield SweepChunk(cells=cell_of, samples=sample_of, scores=scores.cpu())


def _restoring(traced: TracedModel, clean: CleanRun, cells: list[Cell]) -> dict[nn.Module, Edit]:
    """For each module touched, the edit that puts its activations back in the rows and at the tokens asked for."""
    return {
        traced.modules[name]: putting_back(clean.activations[name], rows, tokens)
        for (site, layer), (rows, tokens) in restored_places(cells).items()
        for name in traced.site_names[site][layer]
    }
