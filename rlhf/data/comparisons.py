"""The shapes in which preference data comes: every row as comparisons of two answers.

A comparison says which answer is better, or that neither is. A row with n answers gives up to n (n − 1)
/ 2 of them. The question is that of `rlhf.data.questions`, system and context included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from rlhf.data import chosen_rejected, rated_answers
from rlhf.data.rows import Row, UnusableRow, as_row, has_value
from rlhf.data.sides import Comparison
from rlhf.errors import DataError


@dataclass(frozen=True)
class Shape:
    """One way to write comparisons: how it looks, what tells it, how it is read."""

    looks: str
    is_there: Callable[[Row], bool]
    read: Callable[[Mapping[str, Any]], list[Comparison]]

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row looks like this."""
        return self.is_there(as_row(row))


# The order matters: rows of one shape may hold columns of a later one, and what says most comes first.
SHAPES = (
    Shape(
        looks="chosen and rejected: messages, HH-RLHF text, or with prompt (text or messages) one "
        "or more answers",
        is_there=lambda row: chosen_rejected.chosen_names(row) is not None,
        read=chosen_rejected.chosen_rejected,
    ),
    Shape(
        looks="messages and rejected_response: a conversation, and another answer than its last",
        is_there=chosen_rejected.has_rejected_alone,
        read=chosen_rejected.rejected_alone,
    ),
    Shape(
        looks="text and score: n conversations, n numbers",
        is_there=rated_answers.has_scored_texts,
        read=rated_answers.scored_texts,
    ),
    Shape(
        looks="question, prediction 1 … n, preference: a label for each two",
        is_there=rated_answers.has_predictions,
        read=rated_answers.labelled_pairs,
    ),
    Shape(
        looks="instruction, output_1, output_2 (or response_a, response_b, …), preference (or "
        "winner, label, scores)",
        is_there=rated_answers.has_two_answers,
        read=rated_answers.labelled_answers,
    ),
    Shape(
        looks="info, summaries, choice: 0 or 1",
        is_there=rated_answers.has_summaries,
        read=rated_answers.chosen_summary,
    ),
    Shape(
        looks="instruction and output: a list of the better and the worse answer",
        is_there=rated_answers.has_ordered_outputs,
        read=rated_answers.ordered_outputs,
    ),
    Shape(
        looks="instruction and completions (or prompt and answers): response and overall_score, or "
        "answer and rank",
        is_there=rated_answers.has_rated_answers,
        read=rated_answers.rated_answers,
    ),
)
"""The first that fits a row is taken."""

# What rows of one answer hold: people try them here, since they come from preference data too.
_ONE_ANSWER = ("completion", "response", "output", "answer")
_LABELS = ("label", "kto_tag", "labels")
_RATINGS = ("score", "rating", "reward", "helpfulness", "correctness", "coherence", "complexity", "verbosity")


def known() -> str:
    """All shapes, for a message."""
    looks = [shape.looks for shape in SHAPES]
    return "; ".join(looks)


def to_comparisons(row: Mapping[str, Any]) -> list[Comparison]:
    """The comparisons of a row in one of `SHAPES`.

    Raises:
        DataError: no known shape; names the keys found and the shapes known, or what to use instead.
        UnusableRow: (a DataError) a known shape with something wrong in it.

    Example:
        {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    """
    row = as_row(row)
    # One row at a time: a file may mix shapes.
    for shape in SHAPES:
        if shape.fits(row):
            return _read(shape, row)
    if chosen_rejected.lacks_rejected(row):
        raise chosen_rejected.refuse_without_rejected()
    _refuse(row)


def _read(shape: Shape, row: Row) -> list[Comparison]:
    try:
        return shape.read(row)
    except UnusableRow:
        raise
    # A wrong file: where the shapes are known, they are named.
    except DataError as error:
        raise DataError(f"{error}; known shapes are: {known()}.") from None


def _refuse(row: Row) -> NoReturn:
    """Say what is missing, and of rows of one answer what to use in their place."""
    keys = f"the keys are {sorted(row)}"
    has_one_answer = any(row.holds(name) for name in _ONE_ANSWER) or row.holds("messages")
    if has_one_answer and any(has_value(row.peek(name)) for name in _RATINGS):
        raise DataError(
            f"Rows of one answer with ratings (such as HelpSteer 2's) are no pairs; {keys}. Use "
            "the data set's preference split (response_1, response_2, preference_strength), or join the rows "
            "of a prompt: completions with response and overall_score."
        )
    if has_one_answer and any(row.peek(name) is not None for name in _LABELS):
        raise DataError(
            f"Rows of one answer with a label (KTO) are no pairs; {keys}. Join a liked and a "
            "disliked answer to the same prompt as chosen and rejected, or train on the liked ones with "
            "sft.data."
        )
    raise DataError(f"No preference found: {keys}; known shapes are: {known()}.")
