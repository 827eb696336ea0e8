"""The attribution estimate of `benchmarks/attribution.py` equals the derivative it approximates, in every cell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.attribution import estimated_maps
from causal_tracer import TraceRequest
from tests.support.hand_hooks import clean_by_hand, hand_window, last_probabilities, rome_noise
from tests.support.tiny_models import FAMILIES, PROMPT, SUBJECT, tiny_model, tiny_tracer

NAMES = ("gpt2", "llama", "gemma3_text", "falcon")
STEP = 0.02


def log_probability(name: str, ids: list[int], noise: Tensor, start: int, put: dict[str, Any], answer: int) -> float:
    """Return the answer's probability, with noise on the subject and `put` applied to module outputs."""

    def corrupt(embedded: Tensor) -> Tensor:
        changed = embedded.clone()
        changed[0, start : start + len(noise)] += noise
        return changed

    hooks = {FAMILIES[name].embedding: corrupt, **put}
    return float(last_probabilities(tiny_model(name), ids, hooks)[answer].log())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_each_estimate_is_the_slope_towards_the_clean_activation(name: str, kind: Any) -> None:
    tracer = tiny_tracer(name)
    request = TraceRequest(PROMPT, SUBJECT, samples=1, seed=3, metric="log-probability")
    estimate = estimated_maps(tracer.context, request, {kind: 1})[kind]
    flow = tracer.trace(request)
    ids, (start, end) = flow.input_ids.tolist(), flow.subject_range
    _, clean = clean_by_hand(tiny_model(name), name, ids)
    noise = rome_noise(3, 1, end - start, next(iter(clean.values())).shape[1], tracer.noise)[0]
    sites = FAMILIES[name].site_names(kind)
    given: dict[str, Tensor] = {}

    def noting(site: str) -> Any:
        # Falcon adds to its MLP's output in place, so a copy is kept.
        return lambda output: given.setdefault(site, output.clone()).clone()

    log_probability(name, ids, noise, start, {site: noting(site) for site in sites}, flow.answer_id)
    for token in (start, end - 1, len(ids) - 1):
        for layer, site in enumerate(sites):
            towards = clean[site][token] - given[site].view(len(ids), -1)[token]

            def moved(share: float, site: str = site, token: int = token, towards: Tensor = towards) -> float:
                def move(output: Tensor) -> Tensor:
                    changed = output.clone()
                    changed.view(len(ids), -1)[token] += share * towards
                    return changed

                return log_probability(name, ids, noise, start, {site: move}, flow.answer_id)

            slope = (moved(STEP) - moved(-STEP)) / (2 * STEP)
            assert float(estimate.indirect_effect[token, layer]) == pytest.approx(slope, rel=0.02, abs=2e-3)
    assert float(estimate.indirect_effect.abs().max()) > 0.01
    assert estimate.low_score == pytest.approx(flow.low_score, abs=1e-5)
    assert estimate.high_score == pytest.approx(flow.high_score, abs=1e-5)


def test_windows_add_and_samples_are_averaged_whatever_the_batch() -> None:
    context = tiny_tracer("llama").context

    def effects(window: int, batch_size: int | None = None, samples: int = 3) -> Tensor:
        request = TraceRequest(PROMPT, SUBJECT, samples=samples)
        return estimated_maps(context, request, {"mlp": window}, batch_size)["mlp"].indirect_effect

    single = effects(1)
    layers = single.shape[1]
    expected = torch.stack([single[:, hand_window(layer, 2, layers)].sum(dim=1) for layer in range(layers)], dim=1)
    torch.testing.assert_close(effects(2), expected)
    torch.testing.assert_close(effects(1, batch_size=1), single, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(effects(1, samples=1), single)


def test_the_model_is_left_without_gradients() -> None:
    model = tiny_model("gpt2")
    estimated_maps(tiny_tracer("gpt2").context, TraceRequest(PROMPT, SUBJECT, samples=1), {"attention": 1})
    assert all(parameter.grad is None for parameter in model.parameters())
