"""The base run of a sweep, in which the interventions are made: the corrupted run or the clean run of each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from causal_tracer.corruption import Corruption
from causal_tracer.experiment.embeddings import corrupted_embeddings, corruption_edit, subject_embeddings
from causal_tracer.metrics.metric import Metric
from causal_tracer.metrics.values import metric_values
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.runs import ActivationRecorder, Activations, read_logits
from causal_tracer.prompts.prompt import Prompt


@dataclass(frozen=True, eq=False)
class BaseRun:
    """The run in which all cells' interventions are made, once per sample: the corrupted run or the clean run.

    Attributes:
        prompt: The prompt, with the corrupted tokens as its subject.
        embeddings: The subject's embeddings in each sample [samples, subject tokens, width], float32 on the CPU.
        scores: The metric in each sample [samples], float32 on the CPU.
        sources: Activations of further runs that interventions can take values from, by the run's name. The clean run
            is not among them.
    """

    prompt: Prompt
    embeddings: Tensor
    scores: Tensor
    sources: Mapping[str, Activations] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return int(self.embeddings.shape[0])


@dataclass(frozen=True, eq=False)
class RowLogits:
    """The logits of some batch rows, for callers that need more than the metric.

    Attributes:
        cells: The number of each row's cell in the plan [rows]; -1 in the base run.
        samples: The sample of each row [rows].
        logits: [rows, reads, vocabulary], float32, on the model's device.
    """

    cells: Tensor
    samples: Tensor
    logits: Tensor


LogitsCallback = Callable[[RowLogits], None]
"""Called with the logits of rows as they are computed."""


def renumbered(on_logits: LogitsCallback | None, numbers: Tensor) -> LogitsCallback | None:
    """Return a callback for a sweep of part of a plan: `on_logits`, called with cell `numbers` of the whole plan."""
    if on_logits is None:
        return None
    return lambda computed: on_logits(replace(computed, cells=numbers[computed.cells]))


def base_run(
    traced: TracedModel,
    prompt: Prompt,
    embeddings: Tensor,
    metric: Metric,
    batch_size: int,
    *,
    reads: Sequence[int] | None = None,
    record: Iterable[str] = (),
    on_logits: LogitsCallback | None = None,
) -> tuple[BaseRun, Activations]:
    """Run the prompt once per sample, with that sample's subject embeddings.

    Args:
        traced: The model.
        prompt: The prompt, with the corrupted tokens as its subject.
        embeddings: The subject's embeddings in each sample [samples, subject tokens, width].
        metric: The metric to compute.
        batch_size: Largest number of rows in a batch.
        reads: The positions whose logits the metric reads; None means the last token.
        record: The names of the activations to record.
        on_logits: Called with the logits of every row.

    Returns:
        The base run, and the recorded activations.
    """
    ids = torch.tensor(prompt.input_ids)
    recorder = ActivationRecorder(record)
    scores = []
    for batch in torch.split(torch.arange(len(embeddings)), batch_size):
        outputs, inputs = recorder.edits(traced)
        # This replaces a recorder's edit of the embedding: the embedding itself is never recorded.
        outputs[traced.embedding] = corruption_edit(embeddings, prompt, batch)
        logits = read_logits(traced, ids.expand(len(batch), -1), outputs, "corrupted", reads, inputs)
        scores.append(metric_values(metric, logits))
        if on_logits is not None:
            on_logits(RowLogits(torch.full_like(batch, -1), batch, logits))
    return BaseRun(prompt=prompt, embeddings=embeddings, scores=torch.cat(scores)), recorder.values()


def corrupted_run(
    traced: TracedModel, prompt: Prompt, corruption: Corruption, samples: int, metric: Metric, batch_size: int
) -> BaseRun:
    """Run the prompt with its subject corrupted, once for each sample."""
    embeddings = corrupted_embeddings(corruption, subject_embeddings(traced, prompt), samples)
    return base_run(traced, prompt, embeddings, metric, batch_size)[0]
