"""The difference of two maps: cell by cell if their tokens correspond, else by token role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from causal_tracer.errors import SettingsError
from causal_tracer.request.sites import SITES
from causal_tracer.results.analysis import effects
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.labels import metric_label, metric_of, require_same_metric, row_names


@dataclass(frozen=True, eq=False)
class FlowDifference:
    """The effects of a second map minus those of a first one.

    Attributes:
        values: The differences second - first [rows, columns]; NaN if either cell was not computed.
        rows: The name of each row in the first and in the second map: token texts, heads, spans or token roles.
        layers: The layer of each column in the first and in the second map.
        aligned_by: "tokens", "heads" or "spans": row i is the token, head or span i of both maps. "roles": a row is the
            mean over the tokens of a role.
        first: The first map, which is subtracted.
        second: The second map.
    """

    values: Tensor
    rows: tuple[tuple[str, str], ...]
    layers: tuple[tuple[int, int], ...]
    aligned_by: Literal["tokens", "heads", "spans", "roles"]
    first: HiddenFlow
    second: HiddenFlow

    @property
    def label(self) -> str:
        """The metric's label, with the answer's text if both maps have the same answer."""
        first, second = metric_label(self.first), metric_label(self.second)
        return first if first == second else metric_of(self.first).labelled("answer")


def compare_flows(first: HiddenFlow, second: HiddenFlow) -> FlowDifference:
    """Return the difference of the effects of two maps: second - first.

    Two prompts of equal length with the subject at the same position are compared token by token. Other prompts are
    compared by token role, as the mean over a role's tokens. Maps of heads or spans are compared row by row. If the
    models have different numbers of layers, each layer of the shallower one is compared with the layer of the deeper
    one that is nearest in relative depth.

    Raises:
        SettingsError: The maps differ in metric or direction, or have no token role in common; or one of them is a map
            of heads or spans, and the other has other rows or another number of heads.
    """
    require_same_metric(first, second)
    fewer = min(first.scores.shape[1], second.scores.shape[1])
    layers = tuple((_nearest(i, fewer, first), _nearest(i, fewer, second)) for i in range(fewer))
    one = effects(first)[:, [a for a, _ in layers]]
    other = effects(second)[:, [b for _, b in layers]]
    rows_of = [(int(flow.scores.shape[0]), SITES[flow.kind].rows) for flow in (first, second)]
    by = SITES[first.kind].rows
    if any(rows != "tokens" for _, rows in rows_of):
        if rows_of[0] != rows_of[1]:
            one_map, other_map = (f"{count} {rows}" for count, rows in rows_of)
            raise SettingsError(
                f"A map of {one_map} and a map of {other_map} cannot be compared. Give two maps of tokens, two maps of "
                "spans, or two maps of equally many heads."
            )
        pairs = tuple(zip(row_names(first), row_names(second), strict=True))
        return FlowDifference(_minus(other, one), pairs, layers, by, first, second)
    if one.shape == other.shape and first.subject_range == second.subject_range:
        rows = tuple(zip(first.input_tokens, second.input_tokens, strict=True))
        return FlowDifference(_minus(other, one), rows, layers, "tokens", first, second)
    roles = [role for role in dict.fromkeys(first.roles) if role in second.roles]
    if not roles:
        raise SettingsError(
            f"The two maps have no token role in common: {', '.join(dict.fromkeys(first.roles))}, and "
            f"{', '.join(dict.fromkeys(second.roles))}. Give maps with at least one common role."
        )
    values = torch.stack([_minus(_of_role(other, second, role), _of_role(one, first, role)) for role in roles])
    return FlowDifference(values, tuple((role, role) for role in roles), layers, "roles", first, second)


def _minus(second: Tensor, first: Tensor) -> Tensor:
    # The difference of two equal infinities would be NaN.
    return torch.where(second == first, 0.0, second - first)


def _nearest(column: int, columns: int, flow: HiddenFlow) -> int:
    """Return a map's layer at the relative depth of a column."""
    layers = int(flow.scores.shape[1])
    return column if columns < 2 else round(column * (layers - 1) / (columns - 1))


def _of_role(values: Tensor, flow: HiddenFlow, role: str) -> Tensor:
    """Return the mean over a role's tokens, without cells that were not computed [columns]."""
    return values[[position for position, its in enumerate(flow.roles) if its == role]].nanmean(dim=0)
