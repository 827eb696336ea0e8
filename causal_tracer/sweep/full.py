"""The full sweep: runs the whole model for every cell and sample. It is slow, and the reference for the other sweeps.

Each batch has up to `batch_size` rows (cell, sample) of one prompt. In each row the subject is corrupted with the row's
noise sample, and the cell's interventions are made. Logits are computed only at the positions read, if the model
supports that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from causal_tracer.errors import TraceCancelled
from causal_tracer.experiment.base_run import LogitsCallback, RowLogits
from causal_tracer.experiment.embeddings import corruption_edit
from causal_tracer.metrics.values import sample_values
from causal_tracer.model.runs import ActivationRecorder, read_logits
from causal_tracer.sweep.edits import batch_interventions, mask_edits, site_edits
from causal_tracer.sweep.plan import Sweep, SweepChunk


def full_sweep(
    sweep: Sweep,
    cancelled: Callable[[], bool] = lambda: False,
    on_logits: LogitsCallback | None = None,
    record: ActivationRecorder | None = None,
) -> Iterator[SweepChunk]:
    """Compute every cell of the plan for every sample.

    Args:
        sweep: The sweep.
        cancelled: Called before each batch; returning True stops the sweep.
        on_logits: Called with the logits of every row.
        record: Records the activations of every row after the interventions.

    Yields:
        Scores, batch by batch, in the plan's order.

    Raises:
        TraceCancelled: `cancelled` returned True.
        NumericsError: A run gave NaN or infinite logits.
    """
    traced, base, samples = sweep.traced, sweep.base, sweep.base.samples
    rows = torch.arange(len(sweep.plan.cells) * samples)
    for batch in torch.split(rows, sweep.batch_size) if len(rows) else ():
        if cancelled():
            raise TraceCancelled(f"The sweep was cancelled after {int(batch[0])} of {len(rows)} runs.")
        cell_of, sample_of = batch // samples, batch % samples
        interventions = batch_interventions(sweep.plan.cells, cell_of)
        edits, input_edits = site_edits(sweep, interventions, sample_of, 0, hidden=True)
        edits[traced.embedding] = corruption_edit(base.embeddings, base.prompt, sample_of)
        if record is not None:
            edits, input_edits = record.edits_after(traced, edits, input_edits)
        ids = torch.tensor(base.prompt.input_ids).expand(len(batch), -1)
        logits = read_logits(
            traced, ids, edits, "restored", sweep.reads, input_edits, mask_edits(sweep, interventions, 0)
        )
        if on_logits is not None:
            on_logits(RowLogits(cell_of, sample_of, logits))
        yield SweepChunk(cells=cell_of, samples=sample_of, scores=sample_values(sweep.metric, logits, sample_of))
