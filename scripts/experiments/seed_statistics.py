"""Means, intervals and verdicts over the seeds of an experiment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""97.5 % quantile of Student's t with 1, 2, … 30 degrees of freedom."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval over seeds (Student's t); of one value the half is NaN."""
    if len(values) < 2:
        return fmean(values), math.nan
    # Beyond the table the last one: a little too wide.
    quantile = T_QUANTILES[min(len(values) - 1, len(T_QUANTILES)) - 1]
    return fmean(values), quantile * stdev(values) / math.sqrt(len(values))


def minus(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Differences by seed."""
    return [a - b for a, b in zip(first, second, strict=True)]


def verdict(mean: float, half: float) -> str:
    """Whether a difference that was expected above 0 is so: the whole interval decides."""
    if mean - half > 0:
        return "**yes**"
    if mean + half < 0:
        return "**no: the other way**"
    return "not shown"
