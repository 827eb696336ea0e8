"""An estimate of a map from gradients: two forward passes and one backward, in place of a run for every cell.

To first order, putting the clean activation a into the corrupted run changes the metric by the gradient of the metric
at the corrupted run, times (clean - corrupted activation). Summed over a token's activation, that estimates the cell's
indirect effect (attribution patching; Nanda 2023, Syed et al. 2023, arXiv 2310.10348). It is an estimate: metrics bend,
and a probability near 0 has nearly no gradient. `docs/attribution.md` says how well it ranks cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from causal_tracer.corruption import corrupting
from causal_tracer.experiment import TracingContext, set_up
from causal_tracer.hooks import Edit, editing_outputs, evaluation_mode
from causal_tracer.layers import LayerKind
from causal_tracer.request import SamplesUntil, TraceRequest
from causal_tracer.runs import finite_logits
from causal_tracer.sweep.engine import default_batch_size
from causal_tracer.sweep.plan import window_layers


@dataclass(frozen=True, eq=False)
class AttributionPreview:
    """An estimated map.

    Attributes:
        kind: Which activations, "mlp" or "attention".
        window: Number of consecutive layers taken together; to first order their effects add.
        indirect_effect: Estimated indirect effect, mean over samples [tokens, layers]; NaN in layers without the kind.
        low_score: The metric in the corrupted runs, mean over samples.
        high_score: The metric in the clean run.
    """

    kind: LayerKind
    window: int
    indirect_effect: Tensor
    low_score: float
    high_score: float


def attribution_previews(
    context: TracingContext, request: TraceRequest, windows: Mapping[LayerKind, int]
) -> dict[LayerKind, AttributionPreview]:
    """Estimate the maps of some kinds from one clean run, and one corrupted run with its gradient.

    Args:
        context: The model, as `CausalTracer.context`.
        request: The prompt, as for `trace`; its own kind and window are not used.
        windows: The kinds to estimate, "mlp" or "attention", with the window of each.

    Raises:
        SettingsError, PromptError, TokenizerError: The request does not fit the model.
        NumericsError: A run gave NaN or infinite logits.
    """
    traced = context.traced
    experiment = set_up(context, request)
    samples = request.samples.step if isinstance(request.samples, SamplesUntil) else request.samples
    embeddings = experiment.embeddings(0, samples)
    names = sorted({name for kind in windows for layer in traced.site_names[kind] for name in layer})
    rows = request.batch_size or default_batch_size(traced, len(experiment.sequence))
    products = {name: torch.zeros(len(experiment.sequence)) for name in names}
    scores = []
    for batch in torch.split(torch.arange(len(embeddings)), rows):
        kept: dict[str, Tensor] = {}
        edits: dict[nn.Module, Edit] = {traced.modules[name]: _keeping(kept, name) for name in names}
        edits[traced.embedding] = _tracked(corrupting(embeddings, experiment.sequence, batch))
        ids = torch.tensor(experiment.sequence.input_ids).expand(len(batch), -1)
        with (
            traced.lock,
            evaluation_mode(traced.model),
            torch.enable_grad(),
            editing_outputs(edits, ids.shape[1], traced.stacked_streams),
        ):
            output = traced.model(ids.to(traced.input_device), use_cache=False)
            reads = [read - ids.shape[1] for read in experiment.reads]
            values = experiment.metric(finite_logits(traced, output, "corrupted", reads))
            gradients = torch.autograd.grad(values.sum(), [kept[name] for name in names])
        scores.append(values.detach().cpu())
        for name, gradient in zip(names, gradients, strict=True):
            change = experiment.clean.activations[name].float() - kept[name].detach().float()
            products[name] += (gradient.float() * change).flatten(2).sum(dim=(0, 2)).cpu()
    effects = {name: total / len(embeddings) for name, total in products.items()}
    low_score = float(torch.cat(scores).mean())
    return {
        kind: AttributionPreview(
            kind, window, _windowed(traced.site_names[kind], effects, window), low_score, experiment.high_score
        )
        for kind, window in windows.items()
    }


def _keeping(kept: dict[str, Tensor], name: str) -> Edit:
    def keep(activation: Tensor) -> Tensor:
        kept[name] = activation
        # A copy goes on, since some models add the residual into a module's output in place.
        return activation.clone()

    return keep


def _tracked(corrupt: Edit) -> Edit:
    """The corruption, with embeddings that gradients reach, also where no weight wants one."""

    def track(embedded: Tensor) -> Tensor:
        corrupted = corrupt(embedded)
        stream = embedded if corrupted is None else corrupted
        return stream if stream.requires_grad else stream.requires_grad_()

    return track


def _windowed(site_names: tuple[tuple[str, ...], ...], effects: Mapping[str, Tensor], window: int) -> Tensor:
    layers = [sum((effects[name] for name in names), torch.tensor(0.0)) for names in site_names]
    tokens = len(next(iter(effects.values())))
    columns = []
    for layer, names in enumerate(site_names):
        together = window_layers(layer, window, len(site_names))
        column = sum((layers[number] for number in together), torch.zeros(tokens))
        columns.append(column if names else torch.full_like(column, torch.nan))
    return torch.stack(columns, dim=-1)
