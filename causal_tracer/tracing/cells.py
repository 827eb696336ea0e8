"""The cells of a request's maps."""

from __future__ import annotations

from collections.abc import Mapping

from causal_tracer.errors import SettingsError
from causal_tracer.experiment.set_up import Experiment
from causal_tracer.experiment.sources import CLEAN, CORRUPTED, SECOND
from causal_tracer.model.layers import TracedModel
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.records import MapSpec, TraceRequest
from causal_tracer.request.sites import SITES
from causal_tracer.sweep.plan import Cell, SweepPlan, knockout_plan, map_plan, priority_order


def cells_of_maps(experiment: Experiment, specs: Mapping[str, MapSpec]) -> list[tuple[int, Cell]]:
    """Return the cells of all maps, each with its map's number, in priority order (see `priority_order`).

    Raises:
        SettingsError: A map does not fit the model, the prompt, or the request.
    """
    traced, base = experiment.context.traced, experiment.base_input.sequence
    cells = []
    for map_number, spec in enumerate(specs.values()):
        source, base_tokens = map_source(spec, experiment.request), experiment.base_tokens(spec)
        plan = spec_plan(traced, experiment.prompt, spec, source, base, base_tokens)
        cells += [(map_number, cell) for cell in plan.cells]
    order = priority_order(base)
    return sorted(cells, key=lambda item: order(item[1].interventions[0].tokens[0]))


def spec_plan(
    traced: TracedModel,
    prompt: Prompt,
    spec: MapSpec,
    source: str = CLEAN,
    base: Prompt | None = None,
    base_tokens: Mapping[int, int] | None = None,
) -> SweepPlan:
    """Return the cells of one map.

    Args:
        traced: The model.
        prompt: The map's prompt.
        spec: The map.
        source: The source of the restored activations.
        base: The base run's prompt, if it is another one.
        base_tokens: The aligned token of the base run for each token of the prompt that has one; None if the base run
            is of the prompt itself.

    Raises:
        SettingsError: The map does not fit the model or the prompt.
    """
    site = SITES[spec.kind]
    if site.blocks:
        queries = spec.at_tokens(len(prompt))
        rows = _spans(prompt, queries) if site.rows == "spans" else {key: (key,) for key in _positions(spec, prompt)}
        return knockout_plan(traced, spec.kind, spec.window, queries, rows, spec.layer_range(traced.n_layers))
    return map_plan(
        traced,
        base or prompt,
        spec.kind,
        spec.window,
        {position for position in _positions(spec, prompt) if base_tokens is None or position in base_tokens},
        spec.layer_range(traced.n_layers),
        source=source,
        severed=spec.severed,
        base_tokens=base_tokens,
    )


def map_source(spec: MapSpec, request: TraceRequest) -> str:
    """Return the source of a map's activations.

    Raises:
        SettingsError: The map does not fit the request's direction.
    """
    if spec.source == "placebo" and request.direction == "corrupt":
        raise SettingsError(
            "source='placebo' restores activations in the corrupted run, and direction='corrupt' patches the clean "
            "run. Leave out direction='corrupt'."
        )
    if spec.in_clean_run and request.direction == "restore":
        what = f"source={spec.source!r} ablates" if spec.ablates else f"kind={spec.kind!r} blocks attention"
        raise SettingsError(
            f"{what} in the clean run, and direction='restore' patches the corrupted run. Give direction='corrupt', "
            "and corruption='none' if no corrupted run is needed."
        )
    if spec.source != "clean":
        return spec.source
    if request.second is not None:
        return SECOND
    return CORRUPTED if request.direction == "corrupt" else CLEAN


def _positions(spec: MapSpec, prompt: Prompt) -> tuple[int, ...]:
    """Return the tokens at which a map patches, or to which it blocks attention."""
    if not SITES[spec.kind].blocks and (token := spec.at_tokens(len(prompt))):
        return token
    positions = tuple(range(len(prompt))) if spec.positions is None else spec.positions
    if not positions or not all(0 <= position < len(prompt) for position in positions):
        raise SettingsError(
            f"positions={spec.positions} is not a list of tokens of the prompt, which has {len(prompt)}. Give one or "
            f"more numbers from 0 to {len(prompt) - 1}."
        )
    subject = range(*prompt.subject_range)
    return tuple(position for position in positions if position in subject or not spec.subject_tokens_only)


def _spans(prompt: Prompt, queries: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """Return the tokens of each span in `SPANS`, by row."""
    subject = tuple(token for token in range(*prompt.subject_range) if token not in queries)
    others = tuple(token for token in range(len(prompt)) if token not in (*subject, *queries))
    return dict(enumerate((subject, others, queries)))
