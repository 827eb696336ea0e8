"""The base run of a sweep: the corrupted run, once for each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from causal_tracer.corruption import Corruption
from causal_tracer.experiment.embeddings import corrupted_embeddings, corrupting, subject_embeddings
from causal_tracer.metrics.metric import Metric
from causal_tracer.metrics.values import metric_values
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.runs import Activations, Recorder, read_logits
from causal_tracer.prompts.prompt import Prompt


@dataclass(frozen=True, eq=False)
class BaseRun:
    """The run that all cells depart from, once per sample: the corrupted one, or the clean one with nothing changed.

    Attributes:
        prompt: What is run; its subject is what is corrupted.
        embeddings: The subject's embeddings in each sample [samples, subject tokens, width], float32 on the CPU.
        scores: The metric in each sample [samples], float32 on the CPU.
        sources: Runs that interventions can take values from beside the clean one, by name.
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
class Watched:
    """A run whose logits somebody looks at beside the metric.

    Attributes:
        cells: For each row, its cell's number in the plan; -1 in the base run.
        samples: For each row, its sample.
        logits: [rows, reads, vocabulary], float32, where the model left them.
    """

    cells: Tensor
    samples: Tensor
    logits: Tensor


Watch = Callable[[Watched], None]


def renumbered(watch: Watch | None, numbers: Tensor) -> Watch | None:
    """Tell `watch` the cells' numbers in the whole plan; `numbers` holds them for a part of it."""
    if watch is None:
        return None

    def look(seen: Watched) -> None:
        watch(replace(seen, cells=torch.where(seen.cells < 0, seen.cells, numbers[seen.cells])))

    return look


def base_run(
    traced: TracedModel,
    prompt: Prompt,
    embeddings: Tensor,
    metric: Metric,
    batch_size: int,
    *,
    reads: Sequence[int] | None = None,
    record: Iterable[str] = (),
    watch: Watch | None = None,
) -> tuple[BaseRun, Activations]:
    """Run the prompt once for each sample's embeddings of the subject, at most `batch_size` rows at a time.

    Returns:
        The run, and what the modules named in `record` gave in it.
    """
    ids = torch.tensor(prompt.input_ids)
    recorder = Recorder(record)
    scores = []
    for batch in torch.split(torch.arange(len(embeddings)), batch_size):
        # The embedding may be recorded by nobody: its edit is the corruption.
        edits = {**recorder.edits(traced), traced.embedding: corrupting(embeddings, prompt, batch)}
        logits = read_logits(traced, ids.expand(len(batch), -1), edits, "corrupted", reads)
        scores.append(metric_values(metric, logits))
        if watch is not None:
            watch(Watched(torch.full_like(batch, -1), batch, logits))
    return BaseRun(prompt=prompt, embeddings=embeddings, scores=torch.cat(scores)), recorder.values()


def corrupted_run(
    traced: TracedModel, prompt: Prompt, corruption: Corruption, samples: int, metric: Metric, batch_size: int
) -> BaseRun:
    """Run the prompt with its subject corrupted, once for each sample."""
    embeddings = corrupted_embeddings(corruption, subject_embeddings(traced, prompt), samples)
    return base_run(traced, prompt, embeddings, metric, batch_size)[0]
