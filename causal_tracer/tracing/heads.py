"""Single attention heads: a map of head x layer at one token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from causal_tracer.arguments import instance, whole_number
from causal_tracer.errors import SettingsError
from causal_tracer.experiment.set_up import Experiment, TracingContext, base_of_samples, set_up
from causal_tracer.experiment.sources import CLEAN_HEADS
from causal_tracer.model.batch_size import default_batch_size
from causal_tracer.model.runs import Activations, Recorder, read_logits
from causal_tracer.model.torch_state import in_standard_torch_state
from causal_tracer.request.records import MapSpec, RunOptions, SamplesUntil, TraceRequest
from causal_tracer.results.analysis import standard_error
from causal_tracer.results.audit import Audit
from causal_tracer.results.flow import TraceSettings
from causal_tracer.results.short_forms import head_flow_figure, head_flow_lines
from causal_tracer.sweep.audited import audited_sweep
from causal_tracer.sweep.engine import choose_engine
from causal_tracer.sweep.plan import Sweep, head_plan
from causal_tracer.tracing.maps import Results


@dataclass(frozen=True, eq=False)
class HeadFlow:
    """A map of how much each attention head at one token brings back the answer.

    A head is restored where it enters the attention's output projection: its share of what that takes. With
    grouped-query attention a head is a query head.

    Attributes:
        scores: Mean metric over samples, for each head and layer restored [heads, layers]; NaN where a layer has no
            such head or was not computed.
        low_score: Mean metric in the corrupted runs.
        high_score: The metric in the clean run.
        position: The token at which heads were restored.
        token: Its text.
        answer: The answer's text.
        prompt: The prompt.
        subject: The subject.
        sample_scores: The metric in each sample [samples, heads, layers].
        low_sample_scores: The same in the corrupted runs [samples].
        settings: How the result was made.
        notes: What a reader has to know.
        audit: As in `HiddenFlow`, with (head, layer) as cells.
    """

    scores: Tensor
    low_score: float
    high_score: float
    position: int
    token: str
    answer: str
    prompt: str
    subject: str
    sample_scores: Tensor
    low_sample_scores: Tensor
    settings: TraceSettings
    notes: tuple[str, ...] = ()
    audit: Audit | None = None
    kind: ClassVar[Literal["head"]] = "head"

    def __repr__(self) -> str:
        """Prompt, answer, scores and the strongest head in a few lines."""
        return head_flow_lines(self)

    def _repr_html_(self) -> str | None:
        """The figure, which notebooks show in place of the text where Plotly is installed."""
        return head_flow_figure(self)

    @property
    def indirect_effect(self) -> Tensor:
        """IE of each head: scores - low_score [heads, layers]."""
        return self.scores - self.low_score

    @property
    def standard_error(self) -> Tensor:
        """Standard error of each head's indirect effect over samples [heads, layers]; NaN with a single sample."""
        return standard_error(self)


@in_standard_torch_state
def trace_heads(
    context: TracingContext,
    request: TraceRequest,
    spec: MapSpec,
    options: RunOptions,
    token: int | None,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool] | None = None,
) -> HeadFlow:
    """Trace single attention heads at one token; see `CausalTracer.calculate_head_flow`."""
    instance("request", request, TraceRequest)
    traced, layers = context.traced, spec.layer_range(context.traced.n_layers)
    if isinstance(request.samples, SamplesUntil) or request.direction != "restore":
        raise SettingsError("Heads are restored, with a fixed number of samples: leave out direction and SamplesUntil.")
    sites = traced.head_sites
    experiment = set_up(context, request)
    prompt = experiment.prompt
    position = len(prompt) - 1 if token is None else whole_number("token", token)
    if not 0 <= position < len(prompt):
        raise SettingsError(f"token={token} is no token of the prompt. Give 0 to {len(prompt) - 1}.")
    batch_size = options.batch_size or default_batch_size(traced, len(experiment.sequence))
    results = Results(experiment, {"heads": replace(spec, kind="attention")}, options, batch_size)
    base, low_scores = base_of_samples(experiment, experiment.embeddings(0, request.samples), (), batch_size, None)
    base = replace(base, sources={**base.sources, CLEAN_HEADS: clean_heads(experiment)})
    plan = head_plan(traced, position, layers, spec.window, experiment.reads)
    engine_check = choose_engine(traced, options.engine, len(experiment.sequence))
    results.begin(engine_check, low_scores, [], None)
    heads = max(count for _, count in sites.values())
    sample_scores = torch.full((base.samples, heads, traced.n_layers), torch.nan, dtype=torch.float32)
    rows = torch.tensor([cell.position for cell in plan.cells], dtype=torch.long)
    columns = torch.tensor([cell.layer for cell in plan.cells], dtype=torch.long)
    left = torch.ones(len(plan.cells), base.samples, dtype=torch.bool)
    work = Sweep(traced, experiment.clean, base, plan, experiment.metric, batch_size, seed=request.seed)
    for _, chunk in audited_sweep(
        [work],
        engine_check,
        cancelled or (lambda: False),
        audit=options.audit,
        halved=results.halved,
        report=lambda _, plane, audit: results.audited(plane, audit),
    ):
        sample_scores[chunk.samples, rows[chunk.cells], columns[chunk.cells]] = chunk.scores
        left[chunk.cells, chunk.samples] = chunk.scores.isnan()
        progress(left.numel() - int(left.sum()), left.numel())
    flow = results.flows()["heads"]
    return HeadFlow(
        scores=sample_scores.mean(dim=0),
        low_score=flow.low_score,
        high_score=flow.high_score,
        position=position,
        token=prompt.tokens[position],
        answer=flow.answer,
        prompt=flow.prompt,
        subject=flow.subject,
        sample_scores=sample_scores,
        low_sample_scores=low_scores,
        settings=flow.settings,
        notes=flow.notes,
        audit=flow.audit,
    )


def clean_heads(experiment: Experiment) -> Activations:
    """What the output projections took in the clean run [1, tokens, heads x head width], by module name."""
    traced = experiment.context.traced
    recorder = Recorder(name for name, _ in traced.head_sites.values())
    ids = torch.tensor([experiment.sequence.input_ids])
    read_logits(traced, ids, {}, "clean", experiment.reads, recorder.edits(traced))
    return recorder.values()
