"""A user-defined metric or corruption with unusable output raises a clear error when it is traced."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from causal_tracer import HiddenFlow
from causal_tracer.errors import NumericsError, SettingsError
from causal_tracer.metrics.metric import METRICS, Target
from causal_tracer.metrics.values import metric_values
from tests.support.tiny_models import PROMPT, SUBJECT, tiny_tracer

LOGITS = torch.randn(3, 1, 7, generator=torch.Generator().manual_seed(0))


def trace(**options: Any) -> HiddenFlow:
    return tiny_tracer("llama").trace(PROMPT, SUBJECT, samples=2, **options)


def always(value: Any) -> Callable[[Target], Callable[[Tensor], Any]]:
    return lambda _target: lambda logits: value(logits) if callable(value) else value


@pytest.mark.parametrize(
    ("metric", "error", "words"),
    [
        (always(lambda logits: logits[:, 0, 0] * math.nan), NumericsError, "gave nan"),
        (always(lambda logits: logits[:, 0, 0] + math.inf), NumericsError, "gave inf"),
        (always(lambda logits: logits[:, 0, 0] - math.inf), NumericsError, r"gave -inf.*log_softmax"),
        (always(lambda logits: torch.zeros(len(logits)).log()), NumericsError, "-inf"),
        (always(lambda logits: logits), SettingsError, r"one number for each row, \[1\] \(given: shape \[1, 1, 391\]"),
        (always(lambda logits: logits.mean()), SettingsError, r"shape \[\]"),
        (always(lambda logits: [1.0] * len(logits)), SettingsError, r"\[1.0\]"),
        (always(None), SettingsError, "None"),
        (always(lambda logits: 1 // 0), SettingsError, "failed: ZeroDivisionError"),
        (lambda _target: 5, SettingsError, "must be a function"),
        (lambda _target: 1 // 0, SettingsError, "failed to make a metric: ZeroDivisionError"),
        (5, SettingsError, "metric must be a function"),
        ("no such", SettingsError, "'rank'"),
    ],
)
def test_a_metric_without_usable_numbers_is_refused_when_it_is_traced(metric: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        trace(metric=metric)


@pytest.mark.parametrize("engine", ["auto", "full"])
def test_a_metric_that_fails_only_in_restored_runs_is_refused_as_well(engine: str) -> None:
    def nan_in_larger_batches(logits: Tensor) -> Tensor:  # the clean and the corrupted run have one and two rows
        return logits[:, 0, 0] * (math.nan if len(logits) > 2 else 1.0)

    with pytest.raises(NumericsError, match="nan_in_larger_batches gave nan"):
        trace(metric=lambda _target: nan_in_larger_batches, engine=engine)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_numbers_of_any_dtype_are_taken_as_float32(dtype: torch.dtype) -> None:
    values = metric_values(lambda logits: (logits[:, 0, 0] > 0).to(dtype), LOGITS)
    assert values.dtype == torch.float32
    assert values.tolist() == (LOGITS[:, 0, 0] > 0).float().tolist()


@pytest.mark.parametrize("name", METRICS)
def test_the_packages_metrics_are_finite_for_the_most_extreme_logits(name: str) -> None:
    extreme = torch.zeros(2, 1, 7)
    extreme[0, 0, 0], extreme[1, 0, 0] = 1e30, -1e30
    metric = METRICS[name](Target((0,), extreme[0], 1))
    assert metric_values(metric, extreme).isfinite().all()


@pytest.mark.parametrize(
    ("corruption", "error", "words"),
    [
        (lambda subject, samples: subject.embedded, SettingsError, r"\[samples, 2, 32\] \(given: \[2, 32\]\)"),
        (lambda subject, samples: subject.embedded[None][:0], SettingsError, r"given: \[0, 2, 32\]"),
        (lambda subject, samples: None, SettingsError, "given: None"),
        (lambda subject, samples: 1 // 0, SettingsError, "failed: ZeroDivisionError"),
        (lambda subject, samples: subject.embedded[None] * math.nan, NumericsError, "NaN or infinite"),
        (5, SettingsError, "corruption must be a function"),
    ],
)
def test_a_corruption_without_usable_embeddings_is_refused(corruption: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        trace(corruption=corruption)


def test_a_corruption_needs_no_description() -> None:
    assert trace(corruption=lambda subject, samples: -subject.embedded[None]).settings.corruption
