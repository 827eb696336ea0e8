"""The cells of a request's maps."""

from __future__ import annotations

from collections.abc import Mapping

from causal_tracer.errors import SettingsError
from causal_tracer.experiment.set_up import Experiment
from causal_tracer.experiment.sources import CORRUPTED, PLACEBO
from causal_tracer.model.layers import TracedModel
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.records import Direction, MapSpec
from causal_tracer.request.sites import SITES
from causal_tracer.sweep.plan import Cell, SweepPlan, knockout_plan, map_plan, priority_order


def owned_cells(experiment: Experiment, specs: Mapping[str, MapSpec]) -> list[tuple[int, Cell]]:
    """Return the cells of all maps, each with its map's number, in the prompt's priority order."""
    traced, prompt, direction = experiment.context.traced, experiment.prompt, experiment.request.direction
    owned = [
        (plane, cell)
        for plane, spec in enumerate(specs.values())
        for cell in spec_plan(traced, prompt, spec, direction).cells
    ]
    order = priority_order(prompt)
    return sorted(owned, key=lambda item: order(item[1].interventions[0].tokens[0]))


def spec_plan(traced: TracedModel, prompt: Prompt, spec: MapSpec, direction: Direction = "restore") -> SweepPlan:
    """Return the cells of one map.

    Raises:
        SettingsError: The map does not fit the model, the prompt or the direction.
    """
    site = SITES[spec.kind]
    if site.blocks and direction == "restore":
        raise SettingsError(
            f"kind={spec.kind!r} blocks attention in the clean run, and direction='restore' patches the corrupted run. "
            "Give direction='corrupt'."
        )
    if site.blocks:
        queries = spec.at_tokens(len(prompt))
        rows = _spans(prompt, queries) if site.rows == "spans" else {key: (key,) for key in _positions(spec, prompt)}
        layers = spec.layer_range(traced.n_layers)
        return knockout_plan(traced, spec.kind, spec.window, queries, rows, layers)
    if spec.source == "placebo" and direction == "corrupt":
        raise SettingsError("A placebo is restored into the corrupted run. Leave out direction='corrupt'.")
    own = CORRUPTED if direction == "corrupt" else "clean"
    return map_plan(
        traced,
        prompt,
        spec.kind,
        spec.window,
        set(_positions(spec, prompt)),
        spec.layer_range(traced.n_layers),
        source=PLACEBO if spec.source == "placebo" else own,
        severed=spec.severed,
    )


def _positions(spec: MapSpec, prompt: Prompt) -> tuple[int, ...]:
    """The tokens at which a map restores, or to which it blocks attention."""
    if not SITES[spec.kind].blocks and (token := spec.at_tokens(len(prompt))):
        return token
    positions = tuple(range(len(prompt))) if spec.positions is None else spec.positions
    if not positions or not all(0 <= position < len(prompt) for position in positions):
        raise SettingsError(
            f"positions={spec.positions} are not all tokens of the prompt, which has {len(prompt)}. Give numbers from "
            f"0 to {len(prompt) - 1}."
        )
    subject = range(*prompt.subject_range)
    return tuple(position for position in positions if position in subject or not spec.subject_tokens_only)


def _spans(prompt: Prompt, queries: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """The tokens of each of `SPANS`, by row."""
    subject = tuple(token for token in range(*prompt.subject_range) if token not in queries)
    others = tuple(token for token in range(len(prompt)) if token not in (*subject, *queries))
    return dict(enumerate((subject, others, queries)))
