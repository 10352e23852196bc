"""The shapes in which preference data comes: every row as comparisons of two answers.

A comparison says which answer is better, or that neither is. A row with n answers gives up to n (n − 1) / 2 of them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.prompts import UnusableRow, clean_messages, clean_text, from_text
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


_MARK = re.compile(r"(?:^|\n\n)(?:## )?(Human|Assistant):[ \n]?")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def _turns(text: Any, what: str) -> Side:
    """A conversation of turns that begin with `Human:` and `Assistant:` (HH-RLHF), or with such headings."""
    parts = _MARK.split(text) if isinstance(text, str) else []
    if len(parts) < 3 or parts[0].strip():
        raise UnusableRow("not_turns", f"{what} is no conversation of turns that begin with 'Human:' or 'Assistant:'.")
    turns = [{"role": _ROLES[role], "content": body} for role, body in zip(parts[1::2], parts[2::2], strict=True)]
    return _last_turn(turns, what)


def _last_turn(turns: Sequence[Any], what: str) -> Side:
    *context, last = turns
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        role = last.get("role") if isinstance(last, Mapping) else type(last).__name__
        raise UnusableRow("ends_on_user", f"{what} ends with the {role}'s turn, not with an answer.")
    return Side(clean_messages(context, what) if context else [], last.get("content"))


def _asked(prompt: Any, what: str = "prompt") -> list[Message]:
    return from_text(prompt, what) if isinstance(prompt, str) else clean_messages(prompt, what)


def _chosen_rejected(row: Row) -> list[Comparison]:
    sides = []
    for name in ("chosen", "rejected"):
        value, prompt = row[name], row.get("prompt")
        if isinstance(value, str):
            if prompt is None and not _MARK.search(value):
                raise DataError(f"{name} is text without a prompt; the keys are {sorted(row)}; known: {known()}.")
            sides.append(_turns(value, name) if prompt is None else Side(_asked(prompt), value))
        else:
            turns = clean_turns(value, name)
            side = _last_turn(turns, name)
            sides.append(side if side.context or prompt is None else Side(_asked(prompt), side.answer))
    scores = row.get("metadata") if isinstance(row.get("metadata"), Mapping) else row
    both = [scores.get("score_chosen"), scores.get("score_rejected")] if scores else [None, None]
    tie = both[0] is not None and both[0] == both[1]
    return [Comparison((sides[0], sides[1]), None if tie else 0)]


def clean_turns(value: Any, what: str) -> list[Any]:
    """A list of messages, of which the last may still be empty."""
    if not isinstance(value, list) or not value:
        raise UnusableRow("empty" if value in (None, []) else "not_messages", f"{what} must be a list of messages.")
    return value


def from_speaker(turn: Any, what: str) -> Message:
    """A message of a turn with `from` and `value` (ShareGPT).

    Raises:
        UnusableRow: no such turn, an unknown speaker, or no text.
    """
    if not isinstance(turn, Mapping) or turn.get("from") not in _SPEAKERS:
        raise UnusableRow("unknown_role", f"{what} must have `from` ({', '.join(_SPEAKERS)}) and `value`.")
    return {"role": _SPEAKERS[turn["from"]], "content": clean_text(turn.get("value"), what)}


def _sharegpt(row: Row) -> list[Comparison]:
    context = [from_speaker(turn, f"conversations[{i}]") for i, turn in enumerate(row["conversations"])]
    chosen, rejected = (from_speaker(row[name], name)["content"] for name in ("chosen", "rejected"))
    return [Comparison((Side(context, chosen), Side(context, rejected)), 0)]


def _scored_texts(row: Row) -> list[Comparison]:
    return by_score([_turns(text, f"text[{i}]") for i, text in enumerate(row["text"])], row["score"], "score")


def _completions(row: Row) -> list[Comparison]:
    asked = _asked(row["instruction"], "instruction")
    answers = [Side(asked, completion.get("response")) for completion in row["completions"]]
    return by_score(answers, [completion.get("overall_score") for completion in row["completions"]], "overall_score")


def by_score(answers: Sequence[Side], scores: Any, what: str) -> list[Comparison]:
    """Every two of n answers, the higher score better."""
    if not isinstance(scores, list) or len(scores) != len(answers) or len(answers) < 2:
        raise UnusableRow("not_scored", f"{what} must hold one number for each of {len(answers)} answers, 2 at least.")
    if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
        raise UnusableRow("not_scored", f"{what} holds {scores!r:.80}; it must hold numbers.")
    return [
        Comparison((answers[i], answers[j]), None if scores[i] == scores[j] else int(scores[j] > scores[i]))
        for i, j in itertools.combinations(range(len(answers)), 2)
    ]


def _two_outputs(row: Row) -> list[Comparison]:
    asked, label = _asked(row["instruction"], "instruction"), row["preference"]
    if label is not None and label not in (0, 1, 1.5, 2):
        raise UnusableRow("unknown_label", f"preference is {label!r}; known are 1, 2, and 0, 1.5 or null for a tie.")
    better = {1: 0, 2: 1}.get(label)
    return [Comparison((Side(asked, row["output_1"]), Side(asked, row["output_2"])), better)]


def _labelled_outputs(row: Row) -> list[Comparison]:
    asked, label = _asked(row["input"], "input"), row["label"]
    if label not in (1, 2):
        raise UnusableRow("unknown_label", f"label is {label!r}; known are 1 and 2.")
    return [Comparison((Side(asked, row["output_1"]), Side(asked, row["output_2"])), label - 1)]


def _code(row: Row) -> list[Comparison]:
    asked = _asked(row["instruction"], "instruction")
    return [Comparison((Side(asked, row["canonical_solution"]), Side(asked, row["buggy_solution"])), 0)]


def _lists(row: Row) -> list[Comparison]:
    asked = _asked(row["prompt"])
    return [Comparison((Side(asked, a), Side(asked, b)), 0) for a in row["chosen"] for b in row["rejected"]]


def _labelled_pairs(row: Row) -> list[Comparison]:
    """n answers and a label for each two of them, in the order (1, 2), (1, 3), …: 0 tie, 1 first, 2 second."""
    names = sorted((key for key in row if key.startswith("prediction ")), key=lambda key: int(key.split()[1]))
    passages = ["\n".join(passage) for passage in row.get("passages") or []]
    asked = from_text("\n\n".join([*passages, str(row["question"])]), "question")
    answers = [Side(asked, row[name]) for name in names]
    pairs = list(itertools.combinations(answers, 2))
    labels = row["preference"]
    if not isinstance(labels, list) or len(labels) != len(pairs) or set(labels) - {0, 1, 2}:
        raise UnusableRow("unknown_label", f"preference is {labels!r:.80}; it must hold {len(pairs)} of 0, 1 and 2.")
    return [Comparison(pair, label - 1 if label else None) for pair, label in zip(pairs, labels, strict=True)]


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
        return (
            all(key in row for key in self.keys)
            and row[self.keys[0]] is not None
            and all(
                isinstance(row[key], list) and row[key] and all(isinstance(text, str) for text in row[key])
                for key in self.texts
            )
        )


SHAPES = (
    Shape(
        "prompt, chosen and rejected: lists of text, each of the first better than each of the second",
        ("prompt", "chosen", "rejected"),
        _lists,
        ("chosen", "rejected"),
    ),
    Shape("conversations, chosen, rejected: turns with from and value", ("conversations", "chosen"), _sharegpt),
    Shape(
        "chosen and rejected: messages, HH-RLHF text, or with prompt (text or messages) answers",
        ("chosen", "rejected"),
        _chosen_rejected,
    ),
    Shape("text and score: n conversations, n numbers", ("text", "score"), _scored_texts),
    Shape("instruction and completions: response and overall_score", ("instruction", "completions"), _completions),
    Shape(
        "instruction, output_1, output_2, preference: 1, 2, or a tie",
        ("instruction", "output_1", "output_2", "preference"),
        _two_outputs,
    ),
    Shape("input, output_1, output_2, label: 1 or 2", ("input", "output_1", "output_2", "label"), _labelled_outputs),
    Shape(
        "instruction, canonical_solution, buggy_solution",
        ("instruction", "canonical_solution", "buggy_solution"),
        _code,
    ),
    Shape(
        "question, prediction 1 … n, preference: a label for each two",
        ("question", "prediction 1", "prediction 2", "preference"),
        _labelled_pairs,
    ),
)
"""The first that fits a row is taken."""


def known() -> str:
    """All shapes, for a message."""
    return "; ".join(shape.looks for shape in SHAPES)


def to_comparisons(row: Row) -> list[Comparison]:
    """The comparisons of a row in one of `SHAPES`.

    Raises:
        DataError: no known shape; names the keys found and the shapes known.
        UnusableRow: (a DataError) a known shape with something wrong in it.
    """
    for shape in SHAPES:
        if shape.fits(row):
            return shape.read(row)
    raise DataError(f"No preference found: the keys are {sorted(row)}; known shapes are: {known()}.")
