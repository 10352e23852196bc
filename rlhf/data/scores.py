"""Scores of answers: every two of n, and whether scores contradict what a row says otherwise."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.data.rows import Row, UnusableRow, as_number
from rlhf.data.sides import Comparison, Side

_SCORE_NAMES = ("score", "rating", "reward", "quality", "overall_score")


def by_score(
    answers: Sequence[Side], scores: Any, what: str, lower_is_better: bool = False
) -> list[Comparison]:
    """Every two of n answers, the higher score better (of ranks, the lower).

    Raises:
        UnusableRow: fewer than two answers, or not one finite score for each.
    """
    if not isinstance(scores, list) or len(scores) != len(answers) or len(answers) < 2:
        raise UnusableRow(
            "not_scored",
            f"{what} must hold one number for each of {len(answers)} answers, 2 at least.",
        )
    # A NaN is neither higher nor lower than anything, and would pass for a tie.
    numbers = [None if isinstance(score, str) else as_number(score) for score in scores]
    if None in numbers:
        raise UnusableRow("not_scored", f"{what} holds {scores!r:.80}; it must hold numbers.")
    comparisons = []
    for first, second in itertools.combinations(range(len(answers)), 2):
        better = _higher(numbers[first], numbers[second])
        if better is not None and lower_is_better:
            better = 1 - better
        comparisons.append(Comparison((answers[first], answers[second]), better))
    return comparisons


def _higher(first: float | None, second: float | None) -> int | None:
    """The index of the higher number; None of equal ones."""
    assert first is not None
    assert second is not None
    if first == second:
        return None
    return 0 if first > second else 1


def better_by_sides(row: Row, sides: tuple[str, str]) -> tuple[bool, int | None]:
    """Whether a row has a score for each of two answers, `score_a` and `score_b` say, and whose is higher."""
    # One kind of score for both: a rating and a reward cannot be compared.
    for name in _SCORE_NAMES:
        numbers = [as_number(row.peek(f"{name}_{side}")) for side in sides]
        if None not in numbers:
            return True, _higher(numbers[0], numbers[1])
    return False, None


def chosen_and_rejected_score(row: Row) -> tuple[float, float] | None:
    """The scores of the chosen and of the rejected answer, in the row or in its metadata."""
    # Of our own pairs the score is raw, and the penalised one decides.
    if "chosen_penalised" in row:
        return None
    metadata = row.peek("metadata")
    holders = [row, Row(metadata)] if isinstance(metadata, Mapping) else [row]
    for holder in holders:
        for name in _SCORE_NAMES:
            for pattern in ("{1}_{0}", "{0}_{1}"):
                chosen = as_number(holder.peek(pattern.format("chosen", name)))
                rejected = as_number(holder.peek(pattern.format("rejected", name)))
                if chosen is not None and rejected is not None:
                    return chosen, rejected
    return None
