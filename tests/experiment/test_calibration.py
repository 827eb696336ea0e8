"""Noise calibration, compared with corrupted runs by hand, and the level that it recommends."""

from __future__ import annotations

import pytest
import torch

from causal_tracer import HiddenFlowQuery
from causal_tracer.corruption import GaussianNoise
from causal_tracer.errors import SettingsError
from causal_tracer.experiment.noise_levels import embedding_scale
from causal_tracer.results.noise_calibration import NoiseCalibration
from tests.support.tiny_models import OTHER_PROMPT, OTHER_SUBJECT, PROMPT, SUBJECT, tiny_tracer

FACTS = [HiddenFlowQuery(PROMPT, SUBJECT), HiddenFlowQuery(OTHER_PROMPT, OTHER_SUBJECT)]


def test_each_point_is_the_low_score_of_a_trace_with_that_noise() -> None:
    tracer = tiny_tracer("llama")
    calibration = tracer.calibrate_noise(FACTS, (0.5, 2.0), samples=3)
    sigma = embedding_scale(tracer.context.traced)
    assert calibration.sigma == pytest.approx(sigma)
    for row, fact in enumerate(FACTS):
        for column, multiplier in enumerate((0.5, 2.0)):
            noise = GaussianNoise(multiplier * sigma, 1)
            flow = tracer.trace(fact.text, fact.subject, samples=3, corruption=noise, positions=(0,))
            assert float(calibration.corrupted[row, column]) == pytest.approx(flow.low_score, abs=1e-6)
            assert float(calibration.clean[row]) == pytest.approx(flow.high_score, abs=1e-6)


def test_the_least_noise_that_does_nearly_all_is_recommended() -> None:
    corrupted = torch.tensor([[0.5, 0.15, 0.12, 0.10], [0.5, 0.17, 0.12, 0.10]])
    calibration = NoiseCalibration(0.2, (1.0, 2.0, 3.0, 4.0), torch.tensor([0.8, 0.8]), corrupted, 10)
    # 0.10 + 10 % of 0.70 is 0.17, and the mean is 0.16 at 2 sigmas.
    assert calibration.recommended_multiplier == 2.0
    assert calibration.recommended_level == pytest.approx(0.4)
    assert calibration.standard_error.tolist() == pytest.approx([0.0, 0.01, 0.0, 0.0])


@pytest.mark.parametrize(("facts", "multipliers"), [([], (1.0,)), (FACTS, ()), (FACTS, (0.0, 1.0)), (FACTS, (-1.0,))])
def test_nothing_to_calibrate_on_is_refused(facts: list[HiddenFlowQuery], multipliers: tuple[float, ...]) -> None:
    with pytest.raises(SettingsError, match="needs at least one fact and multipliers above 0"):
        tiny_tracer("llama").calibrate_noise(facts, multipliers)


def test_its_figure_shows_every_point_and_the_recommended_level() -> None:
    from causal_tracer.plots.science import plot_noise_calibration

    calibration = tiny_tracer("llama").calibrate_noise(FACTS, (0.5, 2.0), samples=2)
    figure = plot_noise_calibration(calibration, show=False)
    assert list(figure.data[0].x) == [0.5, 2.0]
    assert list(figure.data[0].y) == pytest.approx(calibration.mean_corrupted.tolist())
    texts = " ".join(annotation.text for annotation in figure.layout.annotations)
    assert f"{calibration.recommended_multiplier:g} σ" in texts
