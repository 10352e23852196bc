"""Rows of n answers with a number, a rank or a label for each, or for each two of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlhf.data.labels import better_of, require_two, two_answers
from rlhf.data.questions import with_system
from rlhf.data.records import Message
from rlhf.data.rendering import texts_of
from rlhf.data.rows import Row, UnusableRow, as_number, has_value
from rlhf.data.scores import better_by_sides, by_score
from rlhf.data.sides import Comparison, Side, asked_of, of_row, side_of, side_of_marked_text
from rlhf.data.turns import clean_turns, content_of, content_text, speaker_of

_LISTS = ("completions", "answers", "responses", "generations", "candidates", "outputs", "replies")
_SCORES = ("rewards", "scores", "ratings", "rating", "score", "qualities", "overall_scores")
_RANKS = ("ranks", "ranking", "rank")
_ELEMENT_SCORES = ("overall_score", "score", "rating", "reward", "quality")
# 0 is a tie, 1 the first of the two, 2 the second.
_BETTER_OF_TWO = {0.0: None, 1.0: 0, 2.0: 1}


def has_two_answers(row: Row) -> bool:
    """Whether a row holds two answers and a label or a score for each."""
    found = two_answers(row)
    if found is None:
        return False
    first, second, answers = found
    if row.peek(first) is None and row.peek(second) is None:
        return False
    if better_by_sides(row, answers.sides)[0]:
        return True
    try:
        return better_of(row, answers)[0]
    # It has one, which names neither; whoever reads the row says so.
    except UnusableRow:
        return True


@of_row
def labelled_answers(row: Row) -> list[Comparison]:
    """Two answers and a label: a number, a letter, a model, "A>B", a strength, or a score for each.

    (AlpacaFarm, AlpacaEval 2, LLMBar, PKU-SafeRLHF, SHP, Chatbot Arena, HelpSteer 2 and 3, JudgeBench,
    WebGPT.)

    Example:
        {"instruction": "2+2?", "output_1": "4", "output_2": "5", "preference": 1}
    """
    found = two_answers(row)
    assert found is not None
    first, second, answers = found
    require_two(row, answers)
    is_labelled, better = better_of(row, answers)
    is_scored, higher = better_by_sides(row, answers.sides)
    # A label is what people said; scores are looked at beside it, and decide where there is none.
    if not is_labelled:
        better = higher
    contradicted = is_labelled and is_scored and None not in (better, higher) and better != higher
    turns = _turns_of_arena(row, first, second)
    sides = _sides_of_arena(*turns) if turns is not None else _sides(row, first, second)
    return [Comparison(sides, better, contradicted)]


def _sides(row: Row, first: str, second: str) -> tuple[Side, Side]:
    asked = asked_of(row)
    first_side = side_of(asked, row[first], first, row)
    return first_side, side_of(asked, row[second], second, row)


def _turns_of_arena(row: Row, first: str, second: str) -> tuple[list[str], list[str], list[str]] | None:
    """The user's turns and both models' answers, each a list of text, also as JSON
    (arena-human-preference-55k).
    """
    asked = texts_of(row.peek("prompt"))
    answers = [texts_of(row.peek(name)) for name in (first, second)]
    if asked is None or answers[0] is None or answers[1] is None:
        return None
    # Else the texts are no lists that belong together, but prompts and answers in brackets.
    if not len(asked) == len(answers[0]) == len(answers[1]):
        return None
    for name in ("prompt", first, second):
        row.read.add(str(row.column(name)))
    return asked, answers[0], answers[1]


def _sides_of_arena(asked: list[str], first: list[str], second: list[str]) -> tuple[Side, Side]:
    sides = []
    for answers in (first, second):
        turns = []
        for question, answer in zip(asked, answers, strict=True):
            turns.append({"role": "user", "content": question})
            turns.append({"role": "assistant", "content": answer})
        # The last answer is cleaned with the others' of its kind.
        sides.append(Side(clean_turns(turns[:-1], "prompt"), answers[-1]))
    return sides[0], sides[1]


def _predictions(row: Row) -> list[str]:
    """Columns such as "prediction 1", in the order of their numbers."""
    names = []
    for name in row.plain_names():
        stem, _, number = name.rpartition("_")
        if (
            stem in ("prediction", "response", "answer", "output")
            and number.isascii()
            and number.isdigit()
            and len(number) < 9
        ):
            names.append(name)
    # By number, for "prediction 10" comes before "prediction 2" as text, and the labels go by number.
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))


def has_predictions(row: Row) -> bool:
    """Whether a row holds several numbered answers, and a list of labels."""
    labels = row.peek("preference")
    if not isinstance(labels, list):
        return False
    return len(_predictions(row)) >= 2


@of_row
def labelled_pairs(row: Row) -> list[Comparison]:
    """n answers and a label for each two of them, in the order (1, 2), (1, 3), …: 0 tie, 1 first, 2 second.

    Example:
        {"question": "2+2?", "prediction 1": "4", "prediction 2": "5", "prediction 3": "Four.",
         "passages": [["Sums", "2+2 is 4."]], "preference": [1, 0, 2]}
    """
    asked = asked_of(row)
    pairs = list(itertools.combinations(_predictions(row), 2))
    labels = row["preference"]
    numbers = [as_number(label) for label in labels]
    if len(labels) != len(pairs) or any(number not in _BETTER_OF_TWO for number in numbers):
        raise UnusableRow(
            "unknown_label",
            f"preference is {labels!r:.80}; it must hold {len(pairs)} of 0, 1 and 2.",
        )
    comparisons = []
    for (first, second), number in zip(pairs, numbers, strict=True):
        assert number is not None
        sides = (Side(asked, row[first]), Side(asked, row[second]))
        comparisons.append(Comparison(sides, _BETTER_OF_TWO[number]))
    return comparisons


def has_scored_texts(row: Row) -> bool:
    """Whether a row holds whole conversations and their scores."""
    texts = row.peek("text")
    return isinstance(texts, list) and "score" in row


@of_row
def scored_texts(row: Row) -> list[Comparison]:
    r"""Whole conversations as marked text, a score for each.

    Example:
        {"text": ["Human: 2+2?\n\nAssistant: 4", "Human: 2+2?\n\nAssistant: 5"], "score": [0.9, 0.1]}
    """
    answers = []
    for number, text in enumerate(row["text"]):
        answers.append(side_of_marked_text(text, f"text[{number}]"))
    return by_score(answers, row["score"], "score")


def has_summaries(row: Row) -> bool:
    """Whether a row holds two summaries and a choice."""
    summaries = row.peek("summaries")
    return isinstance(summaries, list) and "choice" in row


@of_row
def chosen_summary(row: Row) -> list[Comparison]:
    """Two summaries of a post, and the index of the better one (summarize-from-feedback).

    Example:
        {"info": {"post": "I fell.", "title": "Ouch"}, "summaries": [{"text": "Fell."}, {"text": "Rose."}],
         "choice": 0}
    """
    choice = as_number(row["choice"])
    summaries = row["summaries"]
    if choice not in (0, 1) or len(summaries) != 2:
        raise UnusableRow("unknown_label", f"choice is {row['choice']!r:.40}, of {len(summaries)} summaries.")
    asked = asked_of(row)
    first = side_of(asked, summaries[0], "summaries[0]", row)
    second = side_of(asked, summaries[1], "summaries[1]", row)
    return [Comparison((first, second), int(choice))]


def has_ordered_outputs(row: Row) -> bool:
    """Whether a row has two answers in one list, the better one first."""
    outputs = row.peek("output")
    if not isinstance(outputs, list) or len(outputs) != 2:
        return False
    if not all(isinstance(text, str) for text in outputs):
        return False
    return row.holds("instruction")


@of_row
def ordered_outputs(row: Row) -> list[Comparison]:
    """The better and the worse answer in one list (LLaMA-Factory before 2024).

    Example:
        {"instruction": "Add.", "input": "2+2", "output": ["4", "5"]}
    """
    asked = asked_of(row)
    better, worse = row["output"]
    return [Comparison((Side(asked, better), Side(asked, worse)), better=0)]


def has_rated_answers(row: Row) -> bool:
    """Whether a row holds a list of answers; of a null in its place, the row is of this shape and empty."""
    return _rated_list(row) is not None


def _rated_list(row: Row) -> str | None:
    """The column with the list of answers."""
    tree = row.peek("prompt")
    if isinstance(tree, Mapping) and isinstance(tree.get("replies"), list):
        return "prompt"
    for name in _LISTS:
        value = row.peek(name)
        if isinstance(value, list) and (_numbers_column(row) is not None or _holds_numbers(value)):
            return name
    # A null, or whatever else stands where the list should: this one row is bad, its shape is known.
    for name in _LISTS[:2]:
        if name in row and not isinstance(row.peek(name), str):
            return name
    return None


def _holds_numbers(answers: list[Any]) -> bool:
    # An empty list is one of this shape, too: the row is dropped and counted.
    if not answers:
        return True
    return any(isinstance(answer, Mapping) for answer in answers)


def _numbers_column(row: Row) -> str | None:
    for name in (*_SCORES, *_RANKS):
        if isinstance(row.peek(name), list):
            return name
    return None


@of_row
def rated_answers(row: Row) -> list[Comparison]:
    """Answers with a score or a rank for each, in the answers or beside them (UltraFeedback, Nectar, OASST
    trees).

    Example:
        {"instruction": "2+2?", "completions": [{"response": "4", "overall_score": 9.0},
         {"response": "5", "overall_score": 2.5}]}
    """
    name = _rated_list(row)
    assert name is not None
    # UltraFeedback's own rows have the instruction, and no prompt that differs.
    asked = asked_of(row, ("conversations", "instruction", "prompt"))
    answers = row["prompt"]["replies"] if name == "prompt" else row[name]
    if not isinstance(answers, list):
        raise UnusableRow("not_scored", f"{name} is {answers!r:.40}; it must be a list of answers.")
    sides = []
    for number, answer in enumerate(answers):
        sides.append(_side_of_rated(asked, answer, f"{name}[{number}]", row))
    column = _numbers_column(row)
    # Numbers beside the answers are of the row; those in the answers may be of another kind, a length say.
    if column is not None:
        return by_score(sides, row[column], column, lower_is_better=column in _RANKS)
    is_ranked = any(isinstance(answer, Mapping) and has_value(answer.get("rank")) for answer in answers)
    names = ("rank",) if is_ranked else _ELEMENT_SCORES
    return by_score(
        sides, [_first_value(answer, names) for answer in answers], names[0], lower_is_better=is_ranked
    )


def _first_value(answer: Any, names: tuple[str, ...]) -> Any:
    """What stands under the first of the names; an answer without a score has None, which `by_score`
    refuses.
    """
    if not isinstance(answer, Mapping):
        return None
    for name in names:
        if answer.get(name) is not None:
            return answer[name]
    return None


def _side_of_rated(asked: list[Message], answer: Any, what: str, row: Row) -> Side:
    """One answer, with the system turn it was given to where it has one of its own."""
    if not isinstance(answer, Mapping):
        return Side(asked, answer)
    system = answer.get("custom_system_prompt")
    # An answer of OASST's trees is a turn, with all that follows it.
    side = (
        Side(asked, content_of(answer))
        if speaker_of(answer) is not None
        else side_of(asked, answer, what, row)
    )
    if not has_value(system):
        return side
    return replace(side, context=with_system(content_text(system, what), side.context))
