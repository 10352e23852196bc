"""Preference pairs of files: a context, a chosen and a rejected answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rlhf.data.columns import Columns
from rlhf.data.comparisons import to_comparisons
from rlhf.data.files import Record
from rlhf.data.prompts import parsed_rows
from rlhf.data.records import Message, what_became
from rlhf.data.rows import UnusableRow
from rlhf.data.sides import Comparison, answer_text
from rlhf.errors import DataError

Preference = tuple[list[Message], str, str]
"""Messages that end with a user's turn, the chosen and the rejected answer."""


def read_preferences(
    path: Path | str, counts: Counter[str], *, columns: Columns | None = None
) -> Iterator[Preference]:
    """Preferences of a file as a stream.

    Args:
        path: a file that `rlhf.data.files` reads, with rows in one of `rlhf.data.comparisons.SHAPES`.
        counts: is added to while reading: `rows`, and `comparisons` (one of a row, or more where a row
            has n answers; a row that cannot be read counts as one) = `pairs` + the sum of
            `dropped/<reason>`; `contradicting_scores`, pairs whose own scores have it the other way round;
            and `unread/<column>`.
        columns: as for `rlhf.data.prompts.parsed_rows`.

    Raises:
        DataError: the file cannot be read, a row has no known shape, or no comparison is a pair.

    Example:
        ([{"role": "user", "content": "2+2?"}], "4", "5")
    """
    for _, preference in preferences_with_rows(path, counts, columns=columns):
        yield preference


def preferences_with_rows(
    path: Path | str, counts: Counter[str], *, columns: Columns | None = None
) -> Iterator[tuple[Record, Preference]]:
    """As `read_preferences`, each with the row it comes from."""
    for _, row, comparisons in parsed_rows(path, counts, to_comparisons, columns):
        if isinstance(comparisons, UnusableRow):
            # `parsed_rows` has counted why; what the row would have held nobody knows, so it counts as one.
            counts["comparisons"] += 1
            continue
        for comparison in comparisons:
            counts["comparisons"] += 1
            try:
                preference = to_preference(comparison)
            except UnusableRow as error:
                counts[f"dropped/{error.reason}"] += 1
                continue
            counts["pairs"] += 1
            if comparison.contradicted:
                counts["contradicting_scores"] += 1
            yield row, preference
    # Only now, for rows are not looked at before they are asked for.
    if not counts["pairs"]:
        raise DataError(
            f"{path}: no preference pair ({what_became(counts, 'comparisons')}). "
            "Give two different answers, one of them the better, to the same user's turn."
        )


def to_preference(comparison: Comparison) -> Preference:
    """One comparison as context, chosen and rejected answer, all trimmed.

    Raises:
        UnusableRow: a tie, equal or empty answers, or contexts that differ or end on no user's turn.
    """
    first, second = comparison.sides
    context = first.context
    answers = [answer_text(side.answer) for side in comparison.sides]
    # The order of these decides under which reason a row with two mistakes is counted.
    if context != second.context:
        raise UnusableRow("context_differs", "chosen and rejected differ before the last turn.")
    if not context or context[-1]["role"] != "user":
        raise UnusableRow("no_user_turn", "no user's turn stands before the answer.")
    # Compared after trimming: a pair that differs in white space alone teaches nothing.
    if answers[0] == answers[1]:
        raise UnusableRow("equal", "chosen and rejected are the same text.")
    if comparison.better is None:
        raise UnusableRow("tie", "neither answer is the better one.")
    chosen = answers[comparison.better]
    rejected = answers[1 - comparison.better]
    return context, chosen, rejected
