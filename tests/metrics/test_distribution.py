"""Statistics of next-token distributions, compared with plain formulas in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from causal_tracer.metrics.distribution import best_tokens, distributions_of
from causal_tracer.metrics.metric import AnswerRank


def logits_of(rows: int, vocabulary: int, spread: float = 5.0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * spread


@pytest.mark.parametrize("vocabulary", [7, 511, 512, 513, 4096, 5000, 9000])
@pytest.mark.parametrize("turned", [False, True], ids=["rows first", "vocabulary first"])
def test_equals_plain_formulas(vocabulary: int, turned: bool) -> None:
    logits = logits_of(6, vocabulary)
    logits = logits.T.contiguous().T if turned else logits
    found = distributions_of(logits, 3, 5)
    exact = logits.double().softmax(dim=-1)
    best = exact.topk(5)
    assert torch.equal(found.top_ids, best.indices)
    close = {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(found.top_probabilities, best.values.float(), **close)
    torch.testing.assert_close(found.answer_probabilities, exact[:, 3].float(), **close)
    torch.testing.assert_close(found.entropies, -(exact * exact.log()).sum(dim=-1).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.answer_ranks.float(), AnswerRank(3)(logits[:, None]))


def test_of_equal_logits_the_smallest_ids_come_first() -> None:
    logits = torch.zeros(2, 3000)
    logits[1, [700, 1500, 2999]] = 1.0
    ids, values = best_tokens(logits, 4)
    assert ids.tolist() == [[0, 1, 2, 3], [700, 1500, 2999, 0]]
    assert values[1].tolist() == [1.0, 1.0, 1.0, 0.0]


def test_a_certain_distribution_has_no_entropy_and_an_even_one_the_most() -> None:
    logits = torch.zeros(2, 1000)
    logits[0, 5] = 200.0
    found = distributions_of(logits, 5, 1)
    assert float(found.entropies[0]) == 0.0
    assert float(found.entropies[1]) == pytest.approx(float(torch.tensor(1000.0).log()), rel=1e-6)
    assert found.answer_ranks.tolist() == [1, 1]


def test_all_of_the_vocabulary_can_be_asked_for() -> None:
    logits = logits_of(2, 700)
    ids, values = best_tokens(logits, 700)
    assert torch.equal(values, logits.sort(dim=-1, descending=True).values)
    assert torch.equal(ids.sort(dim=-1).values, torch.arange(700).expand(2, -1))
