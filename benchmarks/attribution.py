"""Compare maps estimated from gradients (attribution patching) with exact maps of the embedded model.

    OMP_NUM_THREADS=1 python benchmarks/attribution.py --count 50 --samples 1

To first order, restoring a clean activation in the corrupted run changes the metric by its gradient in the corrupted
run times (clean - corrupted activation). That takes two forward passes and one backward pass, in place of a run for
every cell (attribution patching; Syed et al. 2023, arXiv 2310.10348). `docs/explanation/attribution.md` has the
results, and the reasons why the package does not offer it.

For each fact and kind it computes: Spearman's correlation over the cells from the subject's first token on (earlier
cells are zero in both); whether the estimate's largest cell is among the exact map's five largest; and the exact effect
of the estimate's largest cell, as a share of the exact peak's effect.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from causal_tracer import CausalTracer, MapSpec, TraceRequest
from causal_tracer.experiment.base_run import corruption_edit
from causal_tracer.experiment.set_up import TracingContext, set_up
from causal_tracer.model.batch_size import default_batch_size
from causal_tracer.model.engine_mode import engine_mode
from causal_tracer.model.hooks import Edit, editing_outputs
from causal_tracer.model.runs import finite_logits
from causal_tracer.request.records import SamplesUntil
from causal_tracer.request.sites import LayerKind, window_layers
from causal_tracer.study.facts import alternating_relations, load_facts

METRICS = ("probability", "log-probability", "logit")


@dataclass(frozen=True, eq=False)
class Estimate:
    """An estimated map.

    Attributes:
        kind: The kind of activations, "mlp" or "attention".
        window: Number of consecutive layers restored together. To first order, their effects add up.
        indirect_effect: The estimated indirect effect, as the mean over samples [tokens, layers]; NaN in layers
            without the kind.
        low_score: The metric in the corrupted run, as the mean over samples.
        high_score: The metric in the clean run.
    """

    kind: LayerKind
    window: int
    indirect_effect: Tensor
    low_score: float
    high_score: float


def estimated_maps(
    context: TracingContext,
    request: TraceRequest,
    windows: Mapping[LayerKind, int],
    batch_size: int | None = None,
) -> dict[LayerKind, Estimate]:
    """Estimate the maps of some kinds from one clean run, and one corrupted run with its gradient.

    Args:
        context: The model (`CausalTracer.context`).
        request: The request, as for `trace`.
        windows: The kinds to estimate, "mlp" or "attention", with the window of each.
        batch_size: Rows of a forward pass; None takes the default for the model and the machine.

    Raises:
        SettingsError, PromptError, TokenizerError: The request does not fit the model.
        NumericsError: A run gave NaN or infinite logits.
    """
    traced = context.traced
    experiment = set_up(context, request)
    samples = request.samples.step if isinstance(request.samples, SamplesUntil) else request.samples
    embeddings = experiment.embeddings(0, samples)
    names = sorted({name for kind in windows for layer in traced.site_names[kind] for name in layer})
    rows = batch_size or default_batch_size(traced, len(experiment.clean_input.sequence))
    products = {name: torch.zeros(len(experiment.clean_input.sequence)) for name in names}
    scores = []
    for batch in torch.split(torch.arange(len(embeddings)), rows):
        kept: dict[str, Tensor] = {}
        edits: dict[nn.Module, Edit] = {traced.modules[name]: _keeping(kept, name) for name in names}
        edits[traced.embedding] = _tracked(corruption_edit(embeddings, experiment.clean_input.sequence, batch))
        ids = torch.tensor(experiment.clean_input.sequence.input_ids).expand(len(batch), -1)
        with (
            engine_mode(traced.model),
            torch.enable_grad(),
            editing_outputs(edits, ids.shape[1], traced.stacked_streams),
        ):
            output = traced.model(ids.to(traced.input_device), use_cache=False)
            reads = [read - ids.shape[1] for read in experiment.clean_input.reads]
            values = experiment.metric(finite_logits(traced, output, "corrupted", reads))
            gradients = torch.autograd.grad(values.sum(), [kept[name] for name in names])
        scores.append(values.detach().cpu())
        for name, gradient in zip(names, gradients, strict=True):
            change = experiment.clean.activations[name].float() - kept[name].detach().float()
            products[name] += (gradient.float() * change).flatten(2).sum(dim=(0, 2)).cpu()
    effects = {name: total / len(embeddings) for name, total in products.items()}
    low_score = float(torch.cat(scores).mean())
    return {
        kind: Estimate(
            kind, window, _windowed(traced.site_names[kind], effects, window), low_score, experiment.high_score
        )
        for kind, window in windows.items()
    }


def _keeping(kept: dict[str, Tensor], name: str) -> Edit:
    def keep(activation: Tensor) -> Tensor:
        kept[name] = activation
        # A copy is passed on, since some models add the residual to a module's output in place.
        return activation.clone()

    return keep


def _tracked(corrupt: Edit) -> Edit:
    """Return the corruption, with a result that requires a gradient, also if no weight requires one."""

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


def main() -> None:
    """Trace, estimate and compare; print a line for each fact and a table at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--facts", default="shipped", help="facts, as for a study")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--windows", type=int, nargs="+", default=[10])
    options = parser.parse_args()
    tracer = CausalTracer.from_pretrained(options.model)
    facts = alternating_relations(load_facts(options.facts))[: options.count]
    specs = {f"{kind} {window}": MapSpec(kind, window) for kind in ("mlp", "attention") for window in options.windows}
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for number, fact in enumerate(facts):
        request = TraceRequest(fact.prompt, fact.subject, samples=options.samples)
        began = time.perf_counter()
        exact = tracer.trace_maps(request, specs)
        middle = time.perf_counter()
        for metric in METRICS:
            asked = TraceRequest(fact.prompt, fact.subject, samples=options.samples, metric=metric)
            for name, spec in specs.items():
                estimate = estimated_maps(tracer.context, asked, {spec.kind: spec.window})[spec.kind]
                start = exact[name].subject_range[0]
                found.setdefault((name, metric), []).append(
                    _compared(estimate.indirect_effect[start:], exact[name].indirect_effect[start:])
                )
        seconds = middle - began, (time.perf_counter() - middle) / len(METRICS) / len(specs)
        print(
            f"{number + 1}/{len(facts)} {fact.subject}: {seconds[0]:.1f} s exact, {seconds[1]:.2f} s an estimate",
            flush=True,
        )
    print("| map | gradient of | rank correlation: median (quartiles) | peak among the five | effect at its peak |")
    print("|---|---|---|---|---|")
    for (name, metric), results in found.items():
        correlations, among, kept = zip(*results, strict=True)
        low, middle, high = statistics.quantiles(correlations, n=4)
        print(
            f"| {name} | {metric} | {middle:.2f} ({low:.2f} to {high:.2f}) | {statistics.mean(among):.0%} "
            f"| {statistics.median(kept):.0%} |"
        )


def _compared(estimate: Tensor, exact: Tensor) -> tuple[float, float, float]:
    estimate, exact = estimate.flatten(), exact.flatten()
    best = int(estimate.argmax())
    among = float(exact[best] >= exact.topk(5).values.min())
    return _spearman(estimate, exact), among, float(exact[best] / exact.max())


def _spearman(one: Tensor, other: Tensor) -> float:
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])


if __name__ == "__main__":
    main()
