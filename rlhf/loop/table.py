"""The figures of a run as the table that a person reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf.loop.figures import Row, Verdict


def table(rows: Sequence[Row]) -> str:
    """The figures as text, a line per policy; below them what they leave out, where they do."""
    # Every policy is evaluated by the same judges, so that the first row names all columns.
    lines = [_heads(rows[0])]
    for row in rows:
        lines.append(_cells(row))
    widths = []
    for column in zip(*lines, strict=True):
        widths.append(max(map(len, column)))
    text = [_aligned(line, widths) for line in lines]
    rule = "  ".join("─" * width for width in widths)
    text.insert(1, rule)
    for row in rows:
        if row.left_out:
            counts = ", ".join(f"{number} of {column}" for column, number in row.left_out.items())
            text.append(
                f"π{row.iteration}: responses left out, for their figure is no finite number: {counts}"
            )
    return "\n".join(text)


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
    cells.append(_number(row.mean_score, "+.3f"))
    cells.append(_number(row.gold_accuracy, ".3f"))
    cells.append(_win_rate_cell(row))
    for judge in row.judges.values():
        cells.append(_number(judge.mean_score, "+.3f"))
        cells.append(_win_rate_cell(judge))
    cells.append(f"{row.mean_response_tokens:.1f}")
    cells.append(_number(row.distance, ".2f"))
    cells.append(f"{100 * row.truncated:.1f} %")
    cells.append(_number(row.pairs, "d"))
    reasons = [f"{reason} {count}" for reason, count in sorted(row.dropped.items())]
    cells.append(", ".join(reasons) or "–")
    return cells


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = []
    for cell, width in zip(cells, widths, strict=True):
        padded.append(cell.ljust(width))
    # The last cell's padding would only make copies of the table wrap.
    return "  ".join(padded).rstrip()


def _number(value: float | None, form: str) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return format(value, form)


def _win_rate_cell(row: Row | Verdict) -> str:
    # π0 is not compared with itself, and of scores that are all NaN nothing is compared.
    if row.win_rate is None or not math.isfinite(row.win_rate):
        return "–"
    return f"{row.win_rate:.3f} [{row.win_rate_low:.3f}, {row.win_rate_high:.3f}]"
