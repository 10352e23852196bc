"""Figures as people read them, in every table and page."""

from __future__ import annotations

import math

NOTHING = "–"
"""Of a figure that is unknown, or not finite."""


def number(value: float | None, form: str) -> str:
    """A figure as text, by Python's format; what is unknown or not finite is a dash.

    Example:
        number(0.6184, "+.3f") gives "+0.618"
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    return format(value, form)


def share(value: float | None) -> str:
    """A share of 0–1 in percent."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{100 * value:.1f} %"


def rate(mean: float | None, low: float | None, high: float | None) -> str:
    """A rate of 0–1 with its interval, such as "0.618 [0.551, 0.684]"."""
    # π0 is not compared with itself, and of scores that are all NaN nothing is compared.
    if mean is None or low is None or high is None or not math.isfinite(mean):
        return NOTHING
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"
