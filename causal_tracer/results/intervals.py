"""The standard error and the confidence interval (Student's t) of a mean over samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def standard_error(samples: Tensor) -> Tensor:
    """Return the standard error of the mean over the first dimension, sd / sqrt(n); NaN with a single sample."""
    count = len(samples)
    if count < 2:
        return torch.full_like(samples[0], math.nan)
    return samples.std(dim=0, correction=1) / math.sqrt(count)


def margin(error: Tensor, count: int, level: float = 0.95) -> Tensor:
    """Return half the width of the confidence interval of means over samples, by Student's t; NaN for one sample.

    Args:
        error: The standard errors of the means.
        count: Number of samples.
        level: Confidence level.
    """
    return student_t_quantile(0.5 + level / 2, count - 1) * error


def student_t_quantile(probability: float, degrees: int) -> float:
    """Return a quantile of Student's t distribution, exact to 1e-6, by bisection.

    For an integer number of degrees of freedom the distribution function is a finite sum (Abramowitz & Stegun 26.7.3
    and 26.7.4).

    Args:
        probability: The probability, from 0.5 to 1.
        degrees: Degrees of freedom; below 1 the quantile is NaN.
    """
    if degrees < 1:
        return math.nan

    def within(t: float) -> float:
        angle = math.atan(t / math.sqrt(degrees))
        cosine, term, total = math.cos(angle) ** 2, 1.0, 0.0
        if degrees % 2:
            term = math.cos(angle)
            for k in range(3, degrees + 1, 2):
                total += term
                term *= cosine * (k - 1) / k
            return 2 / math.pi * (angle + math.sin(angle) * total)
        for k in range(2, degrees + 1, 2):
            total += term
            term *= cosine * (k - 1) / k
        return math.sin(angle) * total

    low, high = 0.0, 1.0
    while (1 + within(high)) / 2 < probability and high < 1e8:
        high *= 2
    while high - low > 1e-7 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 + within(middle)) / 2 < probability else (low, middle)
    return high
