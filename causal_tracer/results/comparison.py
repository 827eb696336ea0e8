"""What differs between two results: cell by cell where they have the same tokens, by token role where not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from causal_tracer.errors import SettingsError
from causal_tracer.request.sites import SITES
from causal_tracer.results.analysis import effects
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.words import metric_label, metric_of, row_names, same_measure


@dataclass(frozen=True, eq=False)
class FlowDifference:
    """Effects of one result minus those of another: indirect effects, or changes from the clean run.

    Attributes:
        values: second - first [rows, columns]; NaN where either was not computed.
        rows: What a row is: one token of each result, a head, or a token role.
        layers: For each column, the layer of the first and of the second result.
        aligned_by: "tokens", "heads", "spans": row i is token, head or span i of both. "roles": a row is the mean over
            the tokens of a role.
        first: The result that is subtracted.
        second: The result that it is subtracted from.
    """

    values: Tensor
    rows: tuple[tuple[str, str], ...]
    layers: tuple[tuple[int, int], ...]
    aligned_by: Literal["tokens", "heads", "spans", "roles"]
    first: HiddenFlow
    second: HiddenFlow

    @property
    def label(self) -> str:
        """What the effects are measured in: the metric's label, with the answer where both results have the same."""
        first, second = metric_label(self.first), metric_label(self.second)
        return first if first == second else metric_of(self.first).labelled("answer")


def compare_flows(first: HiddenFlow, second: HiddenFlow) -> FlowDifference:
    """The difference of two maps of one metric and direction, of their effects: second - first.

    Prompts of equal length with the subject at the same place are compared token by token, others by token role (the
    mean over a role's tokens). Maps of heads are compared head by head. Models of unlike depth are compared at equal
    relative depth: each layer of the shallower one with the nearest of the deeper one.

    Raises:
        SettingsError: The two differ in metric or direction, or have no token role in common; or one of them is a map
            of heads or spans, and the other is not or has another number of heads.
    """
    same_measure(first, second)
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
                f"A map of {one_map} and a map of {other_map} cannot be compared. Give two maps of tokens, two of "
                "spans, or two of as many heads."
            )
        pairs = tuple(zip(row_names(first), row_names(second), strict=True))
        return FlowDifference(_minus(other, one), pairs, layers, by, first, second)
    if one.shape == other.shape and first.subject_range == second.subject_range:
        rows = tuple(zip(first.input_tokens, second.input_tokens, strict=True))
        return FlowDifference(_minus(other, one), rows, layers, "tokens", first, second)
    roles = [role for role in dict.fromkeys(first.roles) if role in second.roles]
    if not roles:
        raise SettingsError("The two results have no token role in common, so there is nothing to compare.")
    values = torch.stack([_minus(_of_role(other, second, role), _of_role(one, first, role)) for role in roles])
    return FlowDifference(values, tuple((role, role) for role in roles), layers, "roles", first, second)


def _minus(second: Tensor, first: Tensor) -> Tensor:
    # The same infinity twice is no difference.
    return torch.where(second == first, 0.0, second - first)


def _nearest(column: int, columns: int, flow: HiddenFlow) -> int:
    """The layer at a column's relative depth."""
    layers = int(flow.scores.shape[1])
    return column if columns < 2 else round(column * (layers - 1) / (columns - 1))


def _of_role(values: Tensor, flow: HiddenFlow, role: str) -> Tensor:
    """Mean over the tokens of a role that were computed [columns]."""
    return values[[position for position, its in enumerate(flow.roles) if its == role]].nanmean(dim=0)
