"""The figures of a run as the table that a person reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.loop.figure_text import NOTHING, number, rate
from rlhf.loop.figures import Row


def table(rows: Sequence[Row]) -> str:
    """The figures as text, a line per policy; below them what they leave out, where they do."""
    # Here, for rich takes a moment that a run with a wrong config, or nothing to do, need not wait for.
    from rlhf.run.text_table import text_table

    # Every policy is evaluated by the same judges, so that the first row names all columns.
    lines = [text_table(_heads(rows[0]), [_cells(row) for row in rows])]
    for row in rows:
        if row.left_out:
            counts = ", ".join(f"{number} of {column}" for column, number in row.left_out.items())
            lines.append(
                f"π{row.iteration}: responses left out, for their figure is no finite number: {counts}"
            )
    return "\n".join(lines)


_HEADLINE = (
    ("mean_score", "score", "+.3f"),
    ("gold_accuracy", "gold", ".3f"),
    ("win_rate", "win rate vs π0", ".3f"),
    ("mean_response_tokens", "tokens", ".1f"),
    ("kl", "KL to π0", ".2f"),
    ("log_ratio", "log π/π0", ".2f"),
)
"""Fields of a row, what they are called, and how they are written."""


def headline(row: Mapping[str, Any]) -> str:
    """A policy's figures in one line; those that are not known are left out.

    Args:
        row: the fields of a `Row`, as `summary.json` has them too.

    Example:
        "π1: score +0.618, gold 0.464, win rate vs π0 0.671, tokens 5.4, KL to π0 0.37"
    """
    parts = []
    for key, label, form in _HEADLINE:
        value = row.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            parts.append(f"{label} {value:{form}}")
    return f"π{row['iteration']}: {', '.join(parts)}"


def _heads(row: Row) -> list[str]:
    heads = ["policy", "score", "gold", "win rate vs π0 (95 %)"]
    for judge in row.judges:
        heads += [judge, "win rate"]
    distance = "KL to π0" if row.log_ratio is None else "log π/π0"
    heads += ["tokens", distance, "cut", "pairs", "dropped"]
    return heads


def _cells(row: Row) -> list[str]:
    """One line of the table, in the order of its heads."""
    cells = [f"π{row.iteration}"]
    cells.append(number(row.mean_score, "+.3f"))
    cells.append(number(row.gold_accuracy, ".3f"))
    cells.append(rate(row.win_rate, row.win_rate_low, row.win_rate_high))
    for judge in row.judges.values():
        cells.append(number(judge.mean_score, "+.3f"))
        cells.append(rate(judge.win_rate, judge.win_rate_low, judge.win_rate_high))
    cells.append(f"{row.mean_response_tokens:.1f}")
    cells.append(number(row.distance, ".2f"))
    cells.append(f"{100 * row.truncated:.1f} %")
    cells.append(number(row.pairs, "d"))
    reasons = [f"{reason} {count}" for reason, count in sorted(row.dropped.items())]
    cells.append(", ".join(reasons) or NOTHING)
    return cells
