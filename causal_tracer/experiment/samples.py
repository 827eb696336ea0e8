"""The runs of some samples before a sweep: the base run, and the runs that activations are taken from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from causal_tracer.arguments import quoted
from causal_tracer.errors import SettingsError
from causal_tracer.experiment.base_run import BaseRun, LogitsCallback, base_run
from causal_tracer.experiment.counterparts import moved_activations
from causal_tracer.experiment.embeddings import subject_embeddings
from causal_tracer.experiment.set_up import Experiment, RunInput
from causal_tracer.experiment.sources import BASE, CORRUPTED, MEAN, PLACEBO, SECOND
from causal_tracer.model.runs import Activations, clean_run
from causal_tracer.prompts.encoding import encode
from causal_tracer.request.records import MapSpec
from causal_tracer.request.sites import SiteName


def run_samples(
    experiment: Experiment,
    embeddings: Tensor,
    specs: Iterable[MapSpec],
    batch_size: int,
    on_logits: LogitsCallback | None,
) -> tuple[BaseRun, Tensor]:
    """Run the base run of some samples, and the other runs that the maps take activations from.

    Args:
        experiment: The prompts, answer, clean run, metric and corruption.
        embeddings: The subject's corrupted embeddings in these samples [samples, subject tokens, width].
        specs: The maps.
        batch_size: Largest number of rows in a batch.
        on_logits: Called with the logits of the corrupted run.

    Returns:
        The base run with its sources, and the metric in the corrupted run [samples].
    """
    traced, specs = experiment.context.traced, list(specs)
    reverse = experiment.request.direction == "corrupt"
    severed: set[SiteName] = {spec.severed for spec in specs if spec.severed}
    kept = {spec.kind for spec in specs if not spec.ablates} if reverse else severed

    def run(given: RunInput, values: Tensor, sites: Iterable[SiteName], callback: LogitsCallback | None) -> _Run:
        names = [name for site in sites for name in traced.activation_names(site)]
        return base_run(
            traced,
            given.sequence,
            values,
            experiment.metric,
            batch_size,
            reads=given.reads,
            record=names,
            on_logits=callback,
        )

    corrupted, recorded = run(experiment.corrupted_input, embeddings, kept, on_logits)
    base, sources = corrupted, {BASE: recorded}
    clean = experiment.clean.activations
    if reverse:
        own = subject_embeddings(traced, experiment.clean_input.sequence).embedded.expand(len(embeddings), -1, -1)
        base = run(experiment.clean_input, own, (), None)[0]
        sources = {CORRUPTED: recorded, BASE: {name: values[None] for name, values in clean.items()}}
    tokens = len(base.prompt)
    if experiment.second is not None and reverse:
        del sources[CORRUPTED]
        first = {name: values[0] for name, values in recorded.items()}
        sources[SECOND] = moved_activations(first, experiment.second.partner_of, tokens)
    elif experiment.second is not None:
        sources[SECOND] = moved_activations(
            clean, {other: token for token, other in experiment.second.partner_of.items()}, tokens
        )
    if replaced := {spec.kind for spec in specs if spec.source == "placebo"}:
        sources[PLACEBO] = _placebo(experiment, replaced, tokens)
    for source in {spec.source for spec in specs if spec.ablates}:
        ablated = {spec.kind for spec in specs if spec.source == source}
        constants = _means(experiment, ablated) if source == MEAN else _zeros(experiment, ablated)
        sources[source] = {name: value.expand(1, tokens, *value.shape) for name, value in constants.items()}
    return replace(base, sources=sources), corrupted.scores


_Run = tuple[BaseRun, Activations]


def _placebo(experiment: Experiment, sites: Iterable[SiteName], tokens: int) -> Activations:
    """Return the placebo's clean activations at the base run's tokens [1, tokens, ...], by module name."""
    base_tokens, other = experiment.base_tokens(MapSpec(source="placebo")), experiment.placebo
    if other is None:
        return {}
    clean = clean_run(experiment.context.traced, other.prompt.input_ids, None, sites)
    return moved_activations(
        clean.activations, {base: other.partner_of[token] for token, base in base_tokens.items()}, tokens
    )


def _zeros(experiment: Experiment, sites: Iterable[SiteName]) -> dict[str, Tensor]:
    """Return zeros for each activation of the sites [...], by module name."""
    clean = experiment.clean.activations
    names = [name for site in sites for name in experiment.context.traced.activation_names(site)]
    return {name: torch.zeros_like(clean[name][0]) for name in names}


def _means(experiment: Experiment, sites: Iterable[SiteName]) -> dict[str, Tensor]:
    """Return the mean of each activation of the sites over the tokens of `mean_over` [...], by module name.

    Special tokens added by the tokenizer are left out, since their activations differ strongly from all others.

    Raises:
        SettingsError: The request has no prompts to average over, or a prompt has no tokens or too many.
    """
    context, texts, sites = experiment.context, experiment.request.mean_over, tuple(sites)
    if not texts:
        raise SettingsError("source='mean' needs prompts to average over. Give them as mean_over=[...].")
    totals: dict[str, Tensor] = {}
    count = 0
    for text in texts:
        encoded, limit = encode(context.tokenizer, text), context.traced.context_length
        start, end = len(encoded.added), len(encoded.ids)
        if start == end or (limit is not None and end > limit):
            raise SettingsError(
                f"The text {quoted(text)} of mean_over has {end} tokens. Give a text of "
                f"{'at least 1 token' if limit is None else f'1 to {limit} tokens'}."
            )
        for name, values in clean_run(context.traced, encoded.ids, None, sites).activations.items():
            total = values[start:].float().sum(dim=0)
            totals[name] = totals[name] + total if name in totals else total
        count += end - start
    return {name: total / count for name, total in totals.items()}
