"""The full sweep: the whole model again for every cell and sample. Slow, plain, and the oracle of all else.

Rows (cell, sample) of one prompt go through the model together, `batch_size` at a time. In each row the subject is
corrupted with the row's noise sample and the cell's interventions are made; only the logits after the last token are
computed where the model can leave out the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from causal_tracer.errors import TraceCancelled
from causal_tracer.experiment.base_run import BaseRun, Watch, Watched
from causal_tracer.experiment.embeddings import corrupting
from causal_tracer.metrics.metric import Metric
from causal_tracer.metrics.values import metric_values
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.runs import CleanRun, read_logits
from causal_tracer.sweep.edits import site_edits
from causal_tracer.sweep.plan import SweepChunk, SweepPlan, restored_places


def full_sweep(
    traced: TracedModel,
    clean: CleanRun,
    base: BaseRun,
    plan: SweepPlan,
    metric: Metric,
    batch_size: int,
    cancelled: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
) -> Iterator[SweepChunk]:
    """Compute every cell of the plan for every sample.

    Args:
        traced: The model.
        clean: Where restored activations come from.
        base: The base run: its prompt and embeddings, and other runs that activations are taken from.
        plan: The cells.
        metric: What is read off the logits.
        batch_size: Rows that go through the model together.
        cancelled: Asked before each batch; True stops the sweep.
        watch: Called with the logits of every row that is run.

    Yields:
        Scores, batch by batch, in the plan's order.

    Raises:
        TraceCancelled: `cancelled` said so.
        NumericsError: A run gave NaN or infinite logits.
    """
    samples = base.samples
    rows = torch.arange(len(plan.cells) * samples)
    reads = plan.read_positions(len(base.prompt))
    for batch in torch.split(rows, batch_size) if plan.cells else ():
        if cancelled():
            raise TraceCancelled(f"The sweep was cancelled after {int(batch[0])} of {len(rows)} runs.")
        cell_of, sample_of = batch // samples, batch % samples
        places = restored_places(plan.cells, cell_of)
        edits, input_edits = site_edits(traced, clean, base, places, sample_of, 0, hidden=True)
        edits[traced.embedding] = corrupting(base.embeddings, base.prompt, sample_of)
        ids = torch.tensor(base.prompt.input_ids).expand(len(batch), -1)
        logits = read_logits(traced, ids, edits, "restored", reads, input_edits)
        if watch is not None:
            watch(Watched(cell_of, sample_of, logits))
        yield SweepChunk(cells=cell_of, samples=sample_of, scores=metric_values(metric, logits))
