"""A metric's values, checked before they are stored in a map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from causal_tracer.arguments import quoted
from causal_tracer.errors import CausalTracerError, NumericsError, SettingsError
from causal_tracer.metrics.metric import Metric


@dataclass(frozen=True)
class GroupedMetric:
    """One metric for each of several consecutive groups of samples, for prompts that share passes.

    Attributes:
        metrics: The metrics of the groups.
        samples: Number of samples in each group.
    """

    metrics: tuple[Metric, ...]
    samples: int

    def values(self, logits: Tensor, samples: Tensor) -> Tensor:
        """Return the values of rows, given the sample of each row; see `metric_values`."""
        found = torch.empty(len(logits), dtype=torch.float32)
        groups = samples // self.samples
        for number in sorted(set(groups.tolist())):
            rows = (groups == number).nonzero()[:, 0]
            found[rows] = metric_values(self.metrics[number], logits[rows.to(logits.device)])
        return found


def sample_values(metric: Metric | GroupedMetric, logits: Tensor, samples: Tensor) -> Tensor:
    """Return the values of rows, given the sample of each row; see `metric_values`."""
    return metric.values(logits, samples) if isinstance(metric, GroupedMetric) else metric_values(metric, logits)


def metric_values(metric: Metric, logits: Tensor) -> Tensor:
    """Return a metric's values for logits [rows, reads, vocabulary]: [rows], float32 on the CPU.

    Raises:
        SettingsError: The metric failed, or did not return one number for each row.
        NumericsError: A value is NaN or infinite: neither means over samples nor files allow it.
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
        given = f"shape {list(values.shape)}, {values.dtype}" if isinstance(values, Tensor) else quoted(values)
        raise SettingsError(
            f"The metric {name} must return a tensor with one number for each row, [{rows}] (given: {given})."
        )
    values = values.detach().to("cpu", torch.float32)
    if not bool(values.isfinite().all()):
        wrong = values[~values.isfinite()][0]
        raise NumericsError(
            f"The metric {name} gave {float(wrong)} for finite logits. It must be finite. For a log-probability, "
            "use log_softmax instead of the log of a probability, which may be 0."
        )
    return values
