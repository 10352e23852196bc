"""Rows whose columns say which answer is the better one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from rlhf.data.bases import is_answer, is_turns
from rlhf.data.labels import better_of, names_sides, two_answers
from rlhf.data.questions import question_of
from rlhf.data.records import Message
from rlhf.data.rows import Row, UnusableRow, as_number
from rlhf.data.scores import chosen_and_rejected_score
from rlhf.data.sides import Comparison, Side, asked_of, of_row, side_of
from rlhf.data.turns import speaker_of

_NAMES = (
    ("chosen", "rejected"),
    ("chosen", "reject"),
    ("chosen_response", "rejected_response"),
    ("chosen_answer", "rejected_answer"),
    ("chosen_completion", "rejected_completion"),
    ("chosen_output", "rejected_output"),
    ("chosen_text", "rejected_text"),
    ("chosen_messages", "rejected_messages"),
    ("chosen_conversations", "rejected_conversations"),
    ("response_chosen", "response_rejected"),
    ("preferred", "dispreferred"),
    ("preferred", "rejected"),
    ("preferred_response", "dispreferred_response"),
    ("accepted", "rejected"),
    ("better_response", "worse_response"),
    ("winning_response", "losing_response"),
    ("winner_response", "loser_response"),
    ("best_response", "worst_response"),
    ("good_response", "bad_response"),
    ("response_j", "response_k"),
    ("y_w", "y_l"),
    ("real", "generated"),
    ("bon_best", "loser_list"),
    ("canonical_solution", "buggy_solution"),
)
_MARGINS = ("margin", "penalised_margin")
"""How much better the chosen answer is; the second one is what `rlhf.pair` writes."""
_REJECTED = ("rejected_response", "rejected", "rejected_messages")


def chosen_names(row: Row) -> tuple[str, str] | None:
    """The columns of the better and the worse answer; None where there are none, or both are null."""
    if row.maps("chosen") or row.maps("rejected"):
        return "chosen", "rejected"
    for better, worse in _NAMES:
        if better not in row or worse not in row:
            continue
        if row.peek(better) is None and row.peek(worse) is None:
            continue
        # "response_b" and "response_a" beside two columns of that name: labels, and no answers.
        if not names_sides(row, better, worse):
            return better, worse
    return None


@of_row
def chosen_rejected(row: Row) -> list[Comparison]:
    """A better and a worse answer, or several of each, every better one against every worse one.

    An answer is text, a turn, messages that may repeat the prompt, or marked text (HH-RLHF, UltraFeedback,
    TRL, LLaMA-Factory, axolotl, orca, RewardBench, RMB, stack-exchange).

    Example:
        {"prompt": "2+2?", "chosen": "4", "rejected": "5", "score_chosen": 9.0, "score_rejected": 2.5}
    """
    names = chosen_names(row)
    assert names is not None
    better, worse = names
    # HumanEvalPack has the bare code under `prompt`, for models that complete text.
    first = ("instruction",) if better == "canonical_solution" else ("conversations", "prompt")
    asked = asked_of(row, first)
    chosen = _sides(row, asked, "chosen", better)
    rejected = _sides(row, asked, "rejected", worse)
    comparisons = [Comparison(sides, better=0) for sides in itertools.product(chosen, rejected)]
    # Scores of the row speak of two answers; of several nobody knows which two.
    if len(comparisons) > 1:
        return comparisons
    if _is_tie(row):
        return [replace(comparisons[0], better=None)]
    return [replace(comparisons[0], contradicted=_contradicts(row))]


def _sides(row: Row, asked: list[Message], part: str, name: str) -> list[Side]:
    """The answers of one kind, one at least."""
    value = row.mapped(part) if row.maps(part) else row.get(name)
    # Without a question a list of text is no list of answers: nobody knows to what.
    if not asked or not isinstance(value, list) or not value:
        return [side_of(asked, value, name, row)]
    if not all(_is_answer(element) for element in value):
        return [side_of(asked, value, name, row)]
    sides = []
    for number, element in enumerate(value):
        sides.append(side_of(asked, element, f"{name}[{number}]", row))
    return sides


def _is_answer(element: Any) -> bool:
    """Whether an element of a list is an answer of its own, and no turn or part of one."""
    if isinstance(element, str):
        return True
    is_object = isinstance(element, Mapping) and "type" not in element
    return is_object and speaker_of(element) is None


def _is_tie(row: Row) -> bool:
    """Whether the row itself says that neither answer is better."""
    # distilabel's sets keep pairs of equal rating, and say so.
    if row.peek("status") == "tie":
        return True
    metadata = row.peek("metadata")
    scores = metadata if isinstance(metadata, Mapping) else row.record
    # Of these names alone: where other scores and sides disagree, the sides are what the data set stands by.
    score = scores.get("score_chosen")
    return score is not None and score == scores.get("score_rejected")


def _contradicts(row: Row) -> bool:
    """Whether the row's own scores or labels have the rejected answer as the better one."""
    scores = chosen_and_rejected_score(row)
    if scores is not None and scores[0] < scores[1]:
        return True
    for name in _MARGINS:
        margin = as_number(row.peek(name))
        if margin is not None and margin < 0:
            return True
    return _label_names(row, row.peek("rejected"))


def _label_names(row: Row, answer: Any) -> bool:
    """Whether a label of two other columns names this answer as the better one."""
    found = two_answers(row)
    if found is None:
        return False
    first, second, answers = found
    # A label that cannot be read contradicts nothing.
    with suppress(UnusableRow):
        is_labelled, better = better_of(row, answers)
        if is_labelled and better is not None:
            return bool(row.peek((first, second)[better]) == answer)
    return False


def has_rejected_alone(row: Row) -> bool:
    """Whether a row has a whole conversation, and a worse answer than its last."""
    if rejected_name(row) is None:
        return False
    turns = row.peek("messages")
    return is_turns(turns) and bool(turns) and is_answer(turns[-1])


def rejected_name(row: Row) -> str | None:
    """The column of the worse answer; None where there is none."""
    for name in _REJECTED:
        if row.peek(name) is not None:
            return name
    return None


@of_row
def rejected_alone(row: Row) -> list[Comparison]:
    """A conversation that ends with the better answer, and the worse one beside it (ms-swift).

    Example:
        {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
         "rejected_response": "5"}
    """
    name = rejected_name(row)
    question = question_of(row, ("messages",))
    assert name is not None
    assert question is not None
    rejected = side_of(question.messages, row[name], name, row)
    return [Comparison((Side(question.messages, question.answer), rejected), better=0)]


def lacks_rejected(row: Row) -> bool:
    """Whether a row has a question and a better answer, but no worse one."""
    if row.peek("chosen") is None or "rejected" in row or "reject" in row:
        return False
    return bool(asked_of(row))


def refuse_without_rejected() -> UnusableRow:
    """What to say of such a row."""
    return UnusableRow("no_rejected", "the row has a chosen answer and no rejected one.")
