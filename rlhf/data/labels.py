"""Which of two answers a label names, in the many ways to write one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf.data.rows import Row, UnusableRow, as_number, words

_STEMS = (
    "response",
    "output",
    "answer",
    "completion",
    "generation",
    "conversation",
    "human_ref",
    "candidate",
    "text",
    "summary",
    "prediction",
    "assistant",
    "messages",
    "model_response",
    "orig_response",
)
_SIDES = (("1", "2"), ("a", "b"), ("0", "1"))

_TIES = words("""
    tie ties tied tie_bothbad tie_both_bad both_bad bothbad both_good both equal same draw neither c a_b
    no_preference unsure none
""")
_NAMES = (
    "{}",
    "{}_{}",
    "model_{}",
    "response_{}",
    "assistant_{}",
    "answer_{}",
    "output_{}",
    "option_{}",
    "system_{}",
)
_FIRST_WORDS = ("first", "left")
_SECOND_WORDS = ("second", "right")
_NAMED = "(?:model|response|assistant|answer|output)?([ab012])"
_VERDICT = re.compile(rf"{_NAMED}(>+|<+|=+|~+){_NAMED}")
# HelpSteer's scale of strengths ends at 3; anything beyond is no such label.
_MAX_STRENGTH = 3


@dataclass(frozen=True)
class TwoAnswers:
    """The columns of two answers, `response_a` and `response_b` say, as the tables spell them."""

    stem: str
    sides: tuple[str, str]

    def columns(self) -> list[tuple[str, str]]:
        """The names that the two columns may have: `response_a`, or `model_a_response`."""
        first, second = self.sides
        side_last = (f"{self.stem}_{first}", f"{self.stem}_{second}")
        side_first = (f"model_{first}_{self.stem}", f"model_{second}_{self.stem}")
        return [side_last, side_first]


def two_answers(row: Row) -> tuple[str, str, TwoAnswers] | None:
    """The names of the two columns of answers, and what they are called; None where there are none.

    Example:
        {"prompt": "2+2?", "response1": "4", "response2": "5"} gives "response1", "response2", …
    """
    # "response1" is the same name without a line. The first of two such columns stays.
    names = {_with_line(name): name for name in row.plain_names()}
    for stem in _STEMS:
        for sides in _SIDES:
            answers = TwoAnswers(stem, sides)
            for first, second in answers.columns():
                if first in names and second in names:
                    return names[first], names[second], answers
    return None


def _with_line(name: str) -> str:
    return re.sub(r"([a-z])([0-9])$", r"\1_\2", name)


def better_of(row: Row, answers: TwoAnswers) -> tuple[bool, int | None]:
    """Whether a row has a label, and which answer it names: 0 the first, 1 the second, None a tie.

    Raises:
        UnusableRow: a label that names neither, and no tie.
    """
    # Before the other labels: these rows have no other, and `winner_tie` belongs to them.
    if "winner_model_a" in row and "winner_model_b" in row:
        return True, _by_flags(row)
    present = [(name, read) for name, read in _LABELS if name in row]
    if not present:
        return False, None
    # Files of mixed rows hold every column, null where it is of another shape.
    filled = [(name, read) for name, read in present if row.peek(name) is not None]
    name, read = (filled or present)[0]
    label = row[name]
    better = read(label, row, answers)
    if better == _UNKNOWN:
        raise UnusableRow("unknown_label", f"{name} is {label!r:.80}; it names neither answer, and no tie.")
    for other_name, read_other in filled[1:]:
        if other_name in _STRENGTHS:
            continue
        # One that cannot be read is of something else: a category, say.
        other = read_other(row[other_name], row, answers)
        if other not in (better, _UNKNOWN):
            raise UnusableRow(
                "labels_disagree",
                f"{name} is {label!r:.80} and {other_name} is {row.peek(other_name)!r:.80}: "
                "they name two answers.",
            )
    return True, None if better == _TIE else better


def names_sides(row: Row, better: str, worse: str) -> bool:
    """Whether two columns hold the names of two answers in other columns, and not answers.

    Example:
        {"prompt": "2+2?", "response_a": "4", "response_b": "5", "chosen": "A", "rejected": "B"}
    """
    found = two_answers(row)
    if found is None:
        return False
    first, second, answers = found
    # The same texts as in those columns are answers, however short.
    if row.peek(better) in (row.peek(first), row.peek(second)):
        return False
    named = {_by_side(row.peek(name), row, answers) for name in (better, worse)}
    return named == {0, 1}


def require_two(row: Row, answers: TwoAnswers) -> None:
    """Refuse a row of more than two numbered answers, of which a label or two scores would lose the rest.

    Raises:
        UnusableRow: there is a third.
    """
    following = {"2": "3", "b": "c", "1": "2"}[answers.sides[1]]
    names = {_with_line(name) for name in row.plain_names() if row.peek(name) is not None}
    third = f"{answers.stem}_{following}"
    if third in names:
        raise UnusableRow(
            "more_than_two_answers",
            f"{third} is a third answer. Give them as a list, with a list of their scores.",
        )


# Beside 0 and 1, the indices of the two answers.
_TIE = 2
_UNKNOWN = 3


def _by_flags(row: Row) -> int | None:
    """Of three columns with one 1 (lmsys-arena-human-preference-55k)."""
    flags = [
        as_number(row[name]) if name in row else 0
        for name in ("winner_model_a", "winner_model_b", "winner_tie")
    ]
    if flags == [1, 0, 0]:
        return 0
    if flags == [0, 1, 0]:
        return 1
    if flags == [0, 0, 1]:
        return None
    raise UnusableRow(
        "unknown_label", f"winner_model_a, winner_model_b and winner_tie are {flags}; one must be 1."
    )


def _by_strength(label: Any, row: Row, answers: TwoAnswers) -> int:
    """Below 0 the first is better, above 0 the second (HelpSteer 2 and 3)."""
    strength = as_number(label)
    if strength is None or abs(strength) > _MAX_STRENGTH:
        return _UNKNOWN
    if strength == 0:
        return _TIE
    return 0 if strength < 0 else 1


def _by_preference(label: Any, row: Row, answers: TwoAnswers) -> int:
    """1 or 2, a tie, or 1 plus the probability that the second is better (AlpacaFarm, AlpacaEval 2)."""
    if answers.sides != ("1", "2"):
        return _by_name(label, row, answers)
    if label is None:
        return _TIE
    number = as_number(label)
    if number is None:
        return _by_name(label, row, answers)
    # AlpacaEval wrote 0 for a tie before it wrote 1.5.
    if number in (0, 1.5):
        return _TIE
    if not 1 <= number <= 2:
        return _UNKNOWN
    return 0 if number < 1.5 else 1


def _by_side(label: Any, row: Row, answers: TwoAnswers) -> int:
    """The number or letter of the better answer, 1.0 for 1; of SHP 1 names A and 0 names B."""
    number = as_number(label)
    if number is None:
        return _by_name(label, row, answers)
    if answers.stem == "human_ref":
        return {1.0: 0, 0.0: 1}.get(number, _UNKNOWN)
    for index, side in enumerate(answers.sides):
        if as_number(side) == number:
            return index
    return _UNKNOWN


def _by_name(label: Any, row: Row, answers: TwoAnswers) -> int:
    """The answer's letter or column, its model, a comparison such as "A>B", or a word for a tie."""
    if not isinstance(label, str):
        return _UNKNOWN if as_number(label) is None else _by_number_of_side(label, answers)
    # Before the letters: a model may be called "a".
    named = [_is_model(label, row, side) for side in answers.sides]
    if named in ([True, False], [False, True]):
        return named.index(True)
    # "[[A>>B]]" and "A > B" are one.
    verdict = _VERDICT.fullmatch(re.sub(r"[\s\[\]()_]+", "", label.lower()))
    if verdict is not None:
        return _by_verdict(verdict, answers)
    word = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")
    if word in _TIES:
        return _TIE
    for index, side in enumerate(answers.sides):
        names = [
            pattern.format(*([side] if pattern.count("{}") == 1 else [answers.stem, side]))
            for pattern in _NAMES
        ]
        if word in (*names, *(_FIRST_WORDS, _SECOND_WORDS)[index]):
            return index
    return _UNKNOWN


def _by_number_of_side(label: Any, answers: TwoAnswers) -> int:
    number = as_number(label)
    for index, side in enumerate(answers.sides):
        if as_number(side) == number:
            return index
    return _UNKNOWN


def _by_verdict(verdict: re.Match[str], answers: TwoAnswers) -> int:
    left, sign, right = verdict.groups()
    if left == right or left not in answers.sides or right not in answers.sides:
        return _UNKNOWN
    if sign[0] in "=~":
        return _TIE
    better = left if sign[0] == ">" else right
    return answers.sides.index(better)


def _is_model(label: str, row: Row, side: str) -> bool:
    """Whether a label is the name of the model that gave an answer."""
    model = row.peek(f"model_{side}")
    generator = row.peek(f"generator_{side}")
    return label in (model, generator)


_LABELS: tuple[tuple[str, Callable[[Any, Row, TwoAnswers], int]], ...] = (
    ("better_response_id", _by_side),
    ("winner", _by_side),
    ("chosen", _by_side),
    ("preference", _by_preference),
    ("human_preference", _by_preference),
    ("orig_preference", _by_preference),
    ("label", _by_side),
    ("labels", _by_side),
    ("choice", _by_side),
    ("preferred", _by_side),
    ("better", _by_side),
    ("verdict", _by_side),
    # Last: beside another label it may be a strength without a sign, which says how much and not which.
    ("overall_preference", _by_strength),
    ("preference_strength", _by_strength),
)
"""Columns with a label, and how it is read; the first that a row has is taken."""
_STRENGTHS = ("overall_preference", "preference_strength")
