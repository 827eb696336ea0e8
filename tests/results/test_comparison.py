"""Differences of two results: cell by cell, by token role, and at equal relative depth."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from causal_tracer import HiddenFlow
from causal_tracer.results.comparison import compare_flows
from tests.support.flows import some_flow


def flow_of(tokens: int, layers: int, subject: tuple[int, int], *, low: float = 0.1, seed: int = 1) -> HiddenFlow:
    samples = torch.rand(3, tokens, layers, generator=torch.Generator().manual_seed(seed))
    return some_flow(
        scores=samples.mean(dim=0),
        sample_scores=samples,
        input_ids=torch.arange(tokens),
        input_tokens=[f"t{i}" for i in range(tokens)],
        subject_range=subject,
        low_score=low,
    )


def test_equal_places_are_compared_token_by_token() -> None:
    first, second = flow_of(5, 4, (1, 3)), flow_of(5, 4, (1, 3), low=0.2, seed=2)
    difference = compare_flows(first, second)
    assert difference.aligned_by == "tokens"
    torch.testing.assert_close(difference.values, (second.scores - 0.2) - (first.scores - 0.1))
    assert difference.layers == ((0, 0), (1, 1), (2, 2), (3, 3))


def test_a_result_does_not_differ_from_itself_and_the_difference_turns_with_its_sides() -> None:
    first, second = flow_of(5, 4, (1, 3)), flow_of(6, 4, (2, 3), seed=2)
    assert compare_flows(first, first).values.abs().max() == 0
    torch.testing.assert_close(compare_flows(first, second).values, -compare_flows(second, first).values)


def test_other_prompts_are_compared_by_role_with_the_mean_over_tokens() -> None:
    first, second = flow_of(6, 3, (1, 3)), flow_of(8, 3, (2, 5), seed=2)
    difference = compare_flows(first, second)
    assert difference.aligned_by == "roles"
    rows = {role: difference.values[i] for i, (role, _) in enumerate(difference.rows)}
    # The first prompt has no middle subject token.
    assert list(rows) == ["before", "first subject", "last subject", "first after", "further", "last"]
    torch.testing.assert_close(rows["last subject"], second.indirect_effect[4] - first.indirect_effect[2])
    torch.testing.assert_close(rows["before"], second.indirect_effect[:2].mean(dim=0) - first.indirect_effect[0])
    torch.testing.assert_close(rows["further"], second.indirect_effect[6] - first.indirect_effect[4])


def test_models_of_unlike_depth_are_compared_at_equal_relative_depth() -> None:
    shallow, deep = flow_of(4, 3, (1, 2)), flow_of(4, 9, (1, 2), seed=2)
    difference = compare_flows(shallow, deep)
    assert difference.layers == ((0, 0), (1, 4), (2, 8))
    torch.testing.assert_close(difference.values[:, 1], deep.indirect_effect[:, 4] - shallow.indirect_effect[:, 1])
    assert compare_flows(deep, shallow).layers == ((0, 0), (4, 1), (8, 2))


def test_cells_that_one_side_lacks_stay_unknown() -> None:
    first = flow_of(5, 4, (1, 3))
    scores = first.scores.clone()
    scores[2, 1] = torch.nan
    values = compare_flows(first, dataclasses.replace(first, scores=scores)).values
    assert torch.isnan(values[2, 1])
    assert int(torch.isnan(values).sum()) == 1


@pytest.mark.parametrize("layers", [1, 2])
def test_a_map_of_one_layer_compares_too(layers: int) -> None:
    assert compare_flows(flow_of(4, 1, (1, 2)), flow_of(4, layers, (1, 2))).layers == ((0, 0),)
