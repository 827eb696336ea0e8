"""ROME's Figure 1: the experiment is the published one, and its verdict tells a right run from a wrong one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from causal_tracer.corruption import GaussianNoise
from causal_tracer.experiment.set_up import prompt_for
from causal_tracer.reproduce.published import FIGURE_1_TOKENS
from causal_tracer.reproduce.rome_figure_1 import figure_maps, figure_request, figure_verdict, trace_figure
from causal_tracer.request.sites import window_layers
from tests.support.reproductions import DOWNTOWN, LAYERS, LE, LOW, figure_tracer, published_maps

XL = "GPT2LMHeadModel"


def failed(flows):
    """The quantities that disagree."""
    return {check.quantity for check in figure_verdict(flows, XL).checks if not check.passed}


# The experiment -------------------------------------------------------------------------------------------------------


def test_the_noise_is_the_draw_that_was_published():
    request = figure_request()
    drawn = GaussianNoise(request.noise, request.seed).draw(request.samples, 4, 1600)
    published = 0.1 * np.random.RandomState(1).randn(10, 4, 1600)
    assert torch.equal(drawn, torch.from_numpy(published.astype(np.float32)))
    assert request.corruption == "gaussian"


def test_the_windows_are_those_of_the_figure():
    windows = {kind: spec.window for kind, spec in figure_maps().items()}
    assert windows == {"hidden": 1, "mlp": 10, "attention": 10}
    assert window_layers(20, windows["mlp"], LAYERS) == tuple(range(15, 25))
    assert window_layers(20, windows["hidden"], LAYERS) == (20,)


def test_seven_tokens_four_of_the_subject_and_an_answer_of_one_are_traced_with_that_noise():
    tracer = figure_tracer()
    flows = trace_figure(tracer)
    assert list(flows) == ["hidden", "mlp", "attention"]
    for flow in flows.values():
        assert tuple(flow.input_tokens) == FIGURE_1_TOKENS
        assert flow.subject_range == (0, 4)
        assert flow.answer == " Seattle"
        assert len(flow.answer_ids) == 1
        assert flow.scores.shape == (7, 4)
        assert flow.sample_scores.shape == (10, 7, 4)
    # The corrupted run again, by a hand-made draw.
    prompt = prompt_for(tracer.context, "The Space Needle is in downtown", "The Space Needle")
    ids = torch.tensor([prompt.input_ids])
    noise = 0.1 * np.random.RandomState(1).randn(10, 4, tracer.model.config.n_embd)
    with torch.no_grad():
        embedded = tracer.model.transformer.wte(ids).repeat(10, 1, 1)
        embedded[:, :4] += torch.from_numpy(noise.astype(np.float32))
        logits = tracer.model(inputs_embeds=embedded).logits[:, -1]
    expected = logits.softmax(-1)[:, flows["hidden"].answer_id]
    assert torch.allclose(flows["hidden"].low_sample_scores, expected, rtol=1e-3, atol=0)
    assert expected.std() > 0.05 * expected.mean()


def test_gpt2_xl_has_the_shape_of_the_figure():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=LAYERS, n_embd=1600, n_head=25))
    assert type(model).__name__ == XL
    assert len(model.transformer.h) == LAYERS
    assert model.transformer.wte(torch.zeros(1, 7, dtype=torch.long, device="meta")).shape == (1, 7, 1600)


# The verdict ----------------------------------------------------------------------------------------------------------


def test_maps_with_the_published_numbers_pass():
    verdict = figure_verdict(published_maps(), XL)
    assert verdict.state == "PASS"
    assert len(verdict.checks) == 27
    assert verdict.largest is not None
    assert verdict.largest.difference == pytest.approx(0.002, abs=1e-4)
    assert verdict.line.startswith(
        "PASS: 27 of 27 checks agree, largest difference of a value 0.0020 (hidden states, 'Need', "
    )


@pytest.mark.parametrize(
    ("kind", "token", "layer", "score", "disagree"),
    [
        ("hidden", LE, 15, 0.95, "hidden states, 'le', layer 15"),
        ("hidden", LE, 34, 0.51, "hidden states, 'le', above 0.5 at"),
        ("mlp", LE, 14, 0.89, "MLP, 'le', centre 14"),
        ("mlp", 5, 20, 0.91, "MLP, 'le', largest of the map at"),
        ("attention", DOWNTOWN, 37, 0.45, "attention, 'downtown', centre 37"),
        ("attention", LE, 9, 0.25, "attention, 'le', largest at"),
    ],
)
def test_a_single_cell_that_is_off_fails(kind, token, layer, score, disagree):
    flows = published_maps()
    flows[kind].scores[token, layer] = score
    assert figure_verdict(flows, XL).state == "FAIL"
    assert disagree in failed(flows)


def test_windows_shifted_by_a_layer_fail():
    # Those of the paper's text, c-4 ... c+5.
    wrong = failed(published_maps(shift=1))
    assert {
        "MLP, 'le', above 0.5 at",
        "attention, 'downtown', above 0.5 at",
        "MLP, 'le', largest of the map at",
    } <= wrong
    assert not {quantity for quantity in wrong if quantity.startswith("hidden")}


def test_stronger_noise_under_the_same_level_fails():
    # A wrong draw lowers the corrupted run and with it the maps.
    flows = {
        kind: replace(flow, low_score=LOW / 3, scores=flow.scores - 2 * LOW / 3)
        for kind, flow in published_maps().items()
    }
    assert figure_verdict(flows, XL).state == "FAIL"
    assert "corrupted run" in failed(flows)


def test_a_missing_cell_fails():
    flows = published_maps()
    flows["mlp"].scores[LE, 17] = torch.nan
    assert figure_verdict(flows, XL).state == "FAIL"
    assert "MLP, 'le', centre 17" in failed(flows)


@pytest.mark.parametrize(
    ("settings", "model_class", "why"),
    [
        ({"dtype": "bfloat16"}, XL, "these weights are bfloat16"),
        ({"noise": 0.13}, XL, "the noise level is 0.13, and the figure's is 0.1"),
        ({}, "LlamaForCausalLM", "gpt2-xl is a LlamaForCausalLM with 48 layers"),
    ],
)
def test_what_was_not_published_has_no_verdict(settings, model_class, why):
    verdict = figure_verdict(published_maps(**settings), model_class)
    assert verdict.state == "no verdict"
    assert why in verdict.line
    assert len(verdict.checks) == 27


def test_another_model_draws_the_figure_without_a_comparison():
    tracer = figure_tracer()
    verdict = figure_verdict(trace_figure(tracer, noise="3 sigma"), type(tracer.model).__name__)
    assert verdict.state == "no verdict"
    assert verdict.checks == ()
    assert "random-gpt2 is a GPT2LMHeadModel with 4 layers" in verdict.line
