"""A metric's values, checked before they reach a map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from causal_tracer.arguments import shown
from causal_tracer.errors import CausalTracerError, NumericsError, SettingsError
from causal_tracer.metrics.metric import Metric


@dataclass(frozen=True)
class MetricOfGroups:
    """A metric for each of several groups of samples, one after the other.

    Attributes:
        metrics: The metrics.
        samples: Samples of each group.
    """

    metrics: tuple[Metric, ...]
    samples: int

    def values(self, logits: Tensor, samples: Tensor) -> Tensor:
        """Return the values for rows of these samples; see `metric_values`."""
        found = torch.empty(len(logits), dtype=torch.float32)
        groups = samples // self.samples
        for number in sorted(set(groups.tolist())):
            rows = (groups == number).nonzero()[:, 0]
            found[rows] = metric_values(self.metrics[number], logits[rows.to(logits.device)])
        return found


def sample_values(metric: Metric | MetricOfGroups, logits: Tensor, samples: Tensor) -> Tensor:
    """Return the values of a metric that may differ between samples; see `metric_values`."""
    return metric.values(logits, samples) if isinstance(metric, MetricOfGroups) else metric_values(metric, logits)


def metric_values(metric: Metric, logits: Tensor) -> Tensor:
    """Return a metric's values for logits [rows, reads, vocabulary]: [rows], float32 on the CPU.

    Raises:
        SettingsError: The metric failed, or did not return one number for each row.
        NumericsError: A value is NaN or infinite, which no mean over samples and no file can hold.
    """
    name = getattr(metric, "__name__", type(metric).__name__)
    try:
        values = metric(logits)
    except (CausalTracerError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise SettingsError(f"The metric {name} failed: {type(error).__name__}: {error}") from error
    rows = len(logits)
    if not isinstance(values, Tensor) or values.shape != (rows,) or values.is_complex():
        given = f"shape {list(values.shape)}, {values.dtype}" if isinstance(values, Tensor) else shown(values)
        raise SettingsError(f"The metric {name} must return a tensor with one number for each row, [{rows}] ({given}).")
    values = values.detach().to("cpu", torch.float32)
    if not bool(values.isfinite().all()):
        wrong = values[~values.isfinite()][0]
        raise NumericsError(
            f"The metric {name} gave {float(wrong)} for logits that are finite. Make it finite: the log of a "
            "probability that rounds to 0, for instance, is finite when it is taken with log_softmax."
        )
    return values
