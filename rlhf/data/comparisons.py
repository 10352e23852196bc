"""The shapes in which preference data comes: every row as comparisons of two answers.

A comparison says which answer is better, or that neither is. A row with n answers gives up to n (n − 1)
/ 2 of them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.prompts import (
    UnusableRow,
    clean_messages,
    clean_text,
    from_text,
    nonempty_list,
    text_or_messages,
)
from rlhf.data.records import Message
from rlhf.errors import DataError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Side:
    """What was asked, ending with a user's turn, and one answer to it; not yet cleaned."""

    context: list[Message]
    answer: Any


@dataclass(frozen=True)
class Comparison:
    """Two answers; `better` is 0 for the first, 1 for the second, None for a tie."""

    sides: tuple[Side, Side]
    better: int | None


# HH-RLHF has an empty line before each mark; other sets write it as a heading, with the text below.
_MARK = re.compile(r"(?:^|\n\n)(?:## )?(Human|Assistant):[ \n]?")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}

# Labels that are not here are ties. 1.0 finds 1, which files hold whose labels include 1.5 or null.
_BETTER_BY_LABEL = {1: 0, 2: 1}


def _compare(context: list[Message], first: Any, second: Any, better: int | None) -> Comparison:
    """A comparison of two answers to the same context."""
    first_side = Side(context, first)
    second_side = Side(context, second)
    return Comparison((first_side, second_side), better)


def _side_of_marked_text(text: Any, what: str) -> Side:
    r"""A conversation of turns that begin with `Human:` and `Assistant:` (HH-RLHF), or with such headings.

    Example:
        "\n\nHuman: Hi\n\nAssistant: Hello!"
    """
    parts = _MARK.split(text) if isinstance(text, str) else []
    # Split gives what stands before the first mark, then a role and its text for every mark.
    if len(parts) < 3 or parts[0].strip():
        raise UnusableRow(
            "not_turns",
            f"{what} is no conversation of turns that begin with 'Human:' or 'Assistant:'.",
        )
    turns = []
    for speaker, content in zip(parts[1::2], parts[2::2], strict=True):
        turns.append({"role": _ROLES[speaker], "content": content})
    return _side_of_turns(turns, what)


def _side_of_turns(turns: list[Any], what: str) -> Side:
    """A conversation whose last turn is the answer."""
    context = turns[:-1]
    last = turns[-1]
    role = last.get("role") if isinstance(last, Mapping) else type(last).__name__
    if role != "assistant":
        raise UnusableRow("ends_on_user", f"{what} ends with the {role}'s turn, not with an answer.")
    # A lone answer is fine so far: the question may stand beside it, under `prompt`.
    messages = clean_messages(context, what) if context else []
    return Side(messages, last.get("content"))


def from_speaker(turn: Any, what: str) -> Message:
    """A message of a turn with `from` and `value` (ShareGPT).

    Raises:
        UnusableRow: no such turn, an unknown speaker, or no text.

    Example:
        {"from": "human", "value": "Hi"} gives {"role": "user", "content": "Hi"}
    """
    if not isinstance(turn, Mapping) or turn.get("from") not in _SPEAKERS:
        raise UnusableRow("unknown_role", f"{what} must have `from` ({', '.join(_SPEAKERS)}) and `value`.")
    content = clean_text(turn.get("value"), what)
    role = _SPEAKERS[turn["from"]]
    return {"role": role, "content": content}


def from_speakers(turns: Sequence[Any], what: str) -> list[Message]:
    """Messages of turns with `from` and `value`; UnusableRow as for one."""
    messages = []
    for number, turn in enumerate(turns):
        messages.append(from_speaker(turn, f"{what}[{number}]"))
    return messages


def by_score(answers: Sequence[Side], scores: Any, what: str) -> list[Comparison]:
    """Every two of n answers, the higher score better.

    Raises:
        UnusableRow: fewer than two answers, or not one finite score for each.
    """
    if not isinstance(scores, list) or len(scores) != len(answers) or len(answers) < 2:
        raise UnusableRow(
            "not_scored",
            f"{what} must hold one number for each of {len(answers)} answers, 2 at least.",
        )
    # A NaN is neither higher nor lower than anything, and would pass for a tie.
    if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
        raise UnusableRow("not_scored", f"{what} holds {scores!r:.80}; it must hold numbers.")
    comparisons = []
    for first, second in itertools.combinations(range(len(answers)), 2):
        better: int | None = None
        if scores[first] > scores[second]:
            better = 0
        elif scores[first] < scores[second]:
            better = 1
        comparisons.append(Comparison((answers[first], answers[second]), better))
    return comparisons


def _text_lists(row: Row) -> list[Comparison]:
    """Several right and several wrong answers (RewardBench 2).

    Example:
        {"prompt": "2+2?", "chosen": ["4", "Four."], "rejected": ["5", "22", "3"]}
    """
    asked = text_or_messages(row["prompt"], "prompt")
    # Every right answer against every wrong one; two right ones say nothing about each other.
    pairs = itertools.product(row["chosen"], row["rejected"])
    return [_compare(asked, right, wrong, better=0) for right, wrong in pairs]


def _sharegpt(row: Row) -> list[Comparison]:
    """Turns of ShareGPT, and an answer of either kind.

    Example:
        {"conversations": [{"from": "human", "value": "2+2?"}],
         "chosen": {"from": "gpt", "value": "4"}, "rejected": {"from": "gpt", "value": "5"}}
    """
    context = from_speakers(row["conversations"], "conversations")
    chosen = from_speaker(row["chosen"], "chosen")
    rejected = from_speaker(row["rejected"], "rejected")
    return [_compare(context, chosen["content"], rejected["content"], better=0)]


def _chosen_rejected(row: Row) -> list[Comparison]:
    """Messages, marked text, or answers to a prompt (HH-RLHF, UltraFeedback, TRL's two formats).

    Example:
        {"prompt": "2+2?", "chosen": "4", "rejected": "5", "score_chosen": 9.0, "score_rejected": 2.5}
    """
    chosen = _answered(row, "chosen")
    rejected = _answered(row, "rejected")
    better = None if _same_score(row) else 0
    return [Comparison((chosen, rejected), better)]


def _answered(row: Row, name: str) -> Side:
    """What stands under "chosen" or "rejected", with the prompt that the row may hold beside it."""
    value = row[name]
    prompt = row.get("prompt")
    if isinstance(value, str):
        if prompt is not None:
            return Side(text_or_messages(prompt, "prompt"), value)
        # An error for the whole file, not a row to skip: the other rows will not say either what was asked.
        if not _MARK.search(value):
            raise DataError(f"{name} is text without a prompt; the keys are {sorted(row)}; known: {known()}.")
        return _side_of_marked_text(value, name)
    side = _side_of_turns(nonempty_list(value, name), name)
    # Messages mostly repeat the prompt; it is looked at only where they hold the answer alone.
    if side.context or prompt is None:
        return side
    return Side(text_or_messages(prompt, "prompt"), side.answer)


def _same_score(row: Row) -> bool:
    """Whether the row's own scores say that neither answer is better."""
    metadata = row.get("metadata")
    scores = metadata if isinstance(metadata, Mapping) else row
    # Ties alone are read off: where scores and sides disagree, the sides are what the data set stands by.
    score = scores.get("score_chosen")
    return score is not None and score == scores.get("score_rejected")


def _scored_texts(row: Row) -> list[Comparison]:
    r"""Whole conversations as marked text, a score for each.

    Example:
        {"text": ["Human: 2+2?\n\nAssistant: 4", "Human: 2+2?\n\nAssistant: 5"], "score": [0.9, 0.1]}
    """
    answers = []
    for number, text in enumerate(row["text"]):
        answers.append(_side_of_marked_text(text, f"text[{number}]"))
    return by_score(answers, row["score"], "score")


def _completions(row: Row) -> list[Comparison]:
    """Answers with an overall score (UltraFeedback as first published).

    Example:
        {"instruction": "2+2?", "completions": [{"response": "4", "overall_score": 9.0},
         {"response": "5", "overall_score": 2.5}]}
    """
    asked = text_or_messages(row["instruction"], "instruction")
    # A completion without a score leaves None in its place, which `by_score` refuses.
    answers = []
    scores = []
    for completion in row["completions"]:
        answers.append(Side(asked, completion.get("response")))
        scores.append(completion.get("overall_score"))
    return by_score(answers, scores, "overall_score")


def _two_outputs(row: Row) -> list[Comparison]:
    """Two answers and a label that also knows ties (AlpacaFarm).

    Example:
        {"instruction": "2+2?", "output_1": "4", "output_2": "5", "preference": 1}
    """
    asked = text_or_messages(row["instruction"], "instruction")
    label = row["preference"]
    if label is not None and label not in (0, 1, 1.5, 2):
        raise UnusableRow(
            "unknown_label",
            f"preference is {label!r}; known are 1, 2, and 0, 1.5 or null for a tie.",
        )
    better = _BETTER_BY_LABEL.get(label)
    return [_compare(asked, row["output_1"], row["output_2"], better)]


def _labelled_outputs(row: Row) -> list[Comparison]:
    """Two answers and a label.

    Example:
        {"input": "2+2?", "output_1": "4", "output_2": "5", "label": 1}
    """
    asked = text_or_messages(row["input"], "input")
    label = row["label"]
    if label not in (1, 2):
        raise UnusableRow("unknown_label", f"label is {label!r}; known are 1 and 2.")
    return [_compare(asked, row["output_1"], row["output_2"], _BETTER_BY_LABEL[label])]


def _solutions(row: Row) -> list[Comparison]:
    """A program that works and one that does not (HumanEvalPack).

    Example:
        {"instruction": "Add a and b.", "canonical_solution": "a + b", "buggy_solution": "a - b"}
    """
    asked = text_or_messages(row["instruction"], "instruction")
    return [_compare(asked, row["canonical_solution"], row["buggy_solution"], better=0)]


def _labelled_pairs(row: Row) -> list[Comparison]:
    """n answers and a label for each two of them, in the order (1, 2), (1, 3), …: 0 tie, 1 first, 2 second.

    Example:
        {"question": "2+2?", "prediction 1": "4", "prediction 2": "5", "prediction 3": "Four.",
         "passages": [["Sums", "2+2 is 4."]], "preference": [1, 0, 2]}
    """
    passages = ["\n".join(passage) for passage in row.get("passages") or []]
    text = "\n\n".join([*passages, str(row["question"])])
    asked = from_text(text, "question")
    # A row may have any number of them; `keys` of the shape asks for the first two.
    names = [key for key in row if key.startswith("prediction ")]
    # By number, for "prediction 10" comes before "prediction 2" as text, and the labels go by number.
    names.sort(key=lambda name: int(name.split()[1]))
    pairs = list(itertools.combinations(names, 2))
    labels = row["preference"]
    if not isinstance(labels, list) or len(labels) != len(pairs) or set(labels) - {0, 1, 2}:
        raise UnusableRow(
            "unknown_label",
            f"preference is {labels!r:.80}; it must hold {len(pairs)} of 0, 1 and 2.",
        )
    comparisons = []
    for (first, second), label in zip(pairs, labels, strict=True):
        better = _BETTER_BY_LABEL.get(label)
        comparisons.append(_compare(asked, row[first], row[second], better))
    return comparisons


@dataclass(frozen=True)
class Shape:
    """One way to write comparisons: how it looks, which keys tell it, how it is read."""

    looks: str
    keys: tuple[str, ...]
    read: Callable[[Row], list[Comparison]]
    texts: tuple[str, ...] = ()
    """Keys that must hold a list of text, which tells the shape from another one with the same keys."""

    def fits(self, row: Row) -> bool:
        """Whether a row looks like this."""
        if not all(key in row for key in self.keys):
            return False
        # Parquet files of mixed rows hold every key, null where the row is of another shape.
        if row[self.keys[0]] is None:
            return False
        return all(_is_text_list(row[key]) for key in self.texts)


def _is_text_list(value: Any) -> bool:
    """Whether this is a list of text with something in it."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(text, str) for text in value)


# The order matters: the first three share keys, and the one that asks for more comes first.
SHAPES = (
    # Lists of text, not of messages: `texts` keeps rows of messages for the third shape.
    Shape(
        looks="prompt, chosen and rejected: lists of text, each of the first better than each of the second",
        keys=("prompt", "chosen", "rejected"),
        read=_text_lists,
        texts=("chosen", "rejected"),
    ),
    Shape(
        looks="conversations, chosen, rejected: turns with from and value",
        keys=("conversations", "chosen"),
        read=_sharegpt,
    ),
    Shape(
        looks="chosen and rejected: messages, HH-RLHF text, or with prompt (text or messages) answers",
        keys=("chosen", "rejected"),
        read=_chosen_rejected,
    ),
    Shape(
        looks="text and score: n conversations, n numbers",
        keys=("text", "score"),
        read=_scored_texts,
    ),
    Shape(
        looks="instruction and completions: response and overall_score",
        keys=("instruction", "completions"),
        read=_completions,
    ),
    Shape(
        looks="instruction, output_1, output_2, preference: 1, 2, or a tie",
        keys=("instruction", "output_1", "output_2", "preference"),
        read=_two_outputs,
    ),
    Shape(
        looks="input, output_1, output_2, label: 1 or 2",
        keys=("input", "output_1", "output_2", "label"),
        read=_labelled_outputs,
    ),
    Shape(
        looks="instruction, canonical_solution, buggy_solution",
        keys=("instruction", "canonical_solution", "buggy_solution"),
        read=_solutions,
    ),
    Shape(
        looks="question, prediction 1 … n, preference: a label for each two",
        keys=("question", "prediction 1", "prediction 2", "preference"),
        read=_labelled_pairs,
    ),
)
"""The first that fits a row is taken."""


def known() -> str:
    """All shapes, for a message."""
    looks = [shape.looks for shape in SHAPES]
    return "; ".join(looks)


def to_comparisons(row: Row) -> list[Comparison]:
    """The comparisons of a row in one of `SHAPES`.

    Raises:
        DataError: no known shape; names the keys found and the shapes known.
        UnusableRow: (a DataError) a known shape with something wrong in it.

    Example:
        {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    """
    # One row at a time: a file may mix shapes.
    for shape in SHAPES:
        if shape.fits(row):
            return shape.read(row)
    raise DataError(f"No preference found: the keys are {sorted(row)}; known shapes are: {known()}.")
