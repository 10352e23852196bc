"""Whole conversations to learn from, in the shapes they come in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.data.bases import BASES, CONVERSATIONS
from rlhf.data.columns import Columns
from rlhf.data.prompts import parsed_rows
from rlhf.data.questions import Question, joined, question_of, refuse_without_question
from rlhf.data.records import Message
from rlhf.data.rows import Row, UnusableRow, as_number, as_row
from rlhf.data.turns import clean_turns, content_text, listed, role_of, speaker_of
from rlhf.errors import DataError

_ANSWERS = {
    "prompt": ("response", "completion"),
    "instruction": ("output", "response"),
    "question": ("answer", "response"),
}
"""Where the answer to what stands under a key may be."""
_ANY_ANSWER = (
    "response",
    "completion",
    "output",
    "answer",
    "target",
    "solution",
    "generation",
    "reply",
    "model_output",
    "assistant",
    "best_answer",
)
"""And where it is looked for otherwise."""
SHAPES = (
    "messages: messages",
    "conversations: turns with from and value, or messages",
    "prompt with response or completion: text or messages",
    "instruction, perhaps with input or context, with output or response: text",
    "question with answer or response: text",
)
"""What a row may look like, perhaps with `system: text`; the first that fits wins; `messages` are
`[{"role": …, "content": …}, …]`."""


def to_conversation(row: Mapping[str, Any]) -> list[Message]:
    """The conversation of a row in one of `SHAPES`.

    Raises:
        DataError: no known shape; names the keys found and the shapes known.
        UnusableRow: (a DataError) a known shape with something wrong in it.

    Example:
        {"prompt": "Hi", "response": "Hello!"} gives
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    """
    row = as_row(row)
    base, answer_key = _preferred(row)
    # Whole conversations come first: they hold their answers, and most.
    first = CONVERSATIONS if base is None else (*CONVERSATIONS, base)
    question = question_of(row, first)
    if question is None:
        refuse_without_question(row, "conversation", SHAPES, (*BASES[:5], *CONVERSATIONS))
    if question.has_answer:
        return [*question.messages, _answer_turn(question.answer, question.base)]
    tree = row.peek("prompt")
    if question.base == "prompt" and isinstance(tree, Mapping) and isinstance(tree.get("replies"), list):
        return question.messages + _best_path(tree["replies"])
    return _with_answer(row, question, answer_key)


def _preferred(row: Row) -> tuple[str | None, str | None]:
    """The base whose answer stands under a name of its own, and that name."""
    for base, answer_keys in _ANSWERS.items():
        answer_key = _present_key(row, answer_keys)
        if row.peek(base) is not None and answer_key is not None:
            return base, answer_key
    return None, _present_key(row, _ANY_ANSWER)


def _present_key(row: Row, keys: tuple[str, ...]) -> str | None:
    """The first of the keys that holds something, else the first that is there at all."""
    present = [key for key in keys if key in row]
    for key in present:
        if row.peek(key) is not None:
            return key
    # A null answer is a row of this shape with an empty answer, to be counted, and not an unknown shape.
    return present[0] if present else None


def _with_answer(row: Row, question: Question, answer_key: str | None) -> list[Message]:
    """The question with the answer that stands beside it."""
    if row.maps("answer"):
        return _answered(question, row.mapped("answer"), "answer")
    if answer_key is not None:
        return _answered(question, row[answer_key], answer_key)
    instances = row.peek("instances")
    if isinstance(instances, list) and instances and isinstance(instances[0], Mapping):
        return _answered(question, instances[0].get("output"), "instances[0].output")
    # Its last turn is the user's: for whoever trains on it to count.
    if question.base in CONVERSATIONS:
        return question.messages
    raise DataError(
        f"No conversation found: the keys are {sorted(row)}; known shapes are: {'; '.join(SHAPES)}.",
    )


def _answered(question: Question, answer: Any, what: str) -> list[Message]:
    # A cell of CSV holds turns as JSON.
    answer = listed(answer)
    if isinstance(answer, Mapping) and speaker_of(answer) is not None:
        answer = [answer]
    if isinstance(answer, list) and any(speaker_of(turn) is not None for turn in answer):
        # TRL's completions may repeat the prompt, or hold several turns.
        return joined(question.messages, clean_turns(answer, what))
    if isinstance(answer, list) and len(answer) > 1 and all(isinstance(text, str) for text in answer):
        raise UnusableRow("several_answers", f"{what} holds {len(answer)} answers; it must be one.")
    return [*question.messages, _answer_turn(answer, what)]


def _answer_turn(answer: Any, what: str) -> Message:
    return {"role": "assistant", "content": content_text(answer, what)}


def _best_path(replies: list[Any]) -> list[Message]:
    """The best reply, what was said to it, and so on to the last answer (OASST)."""
    turns: list[Any] = []
    while replies:
        answers = [reply for reply in replies if isinstance(reply, Mapping)]
        if not answers:
            break
        turns.append(min(answers, key=_rank))
        following = turns[-1].get("replies")
        replies = following if isinstance(following, list) else []
    # A question nobody answered teaches nothing.
    while turns and role_of(speaker_of(turns[-1])) != "assistant":
        turns.pop()
    if not turns:
        raise UnusableRow("empty", "prompt has no reply.")
    return clean_turns(turns, "replies")


def _rank(reply: Mapping[str, Any]) -> float:
    """0 of the best; a reply that nobody ranked comes last."""
    rank = as_number(reply.get("rank"))
    return math.inf if rank is None else rank


def read_conversations(
    path: Path | str, counts: Counter[str], *, columns: Columns | None = None
) -> Iterator[list[Message]]:
    """Conversations of a file as a stream, in its order.

    Args:
        path: a file that `rlhf.data.files` reads, with rows in one of `SHAPES`.
        counts: is added to while reading: `rows` = conversations + the sum of `dropped/<reason>`; and
            `unread/<column>`.
        columns: as for `rlhf.data.prompts.parsed_rows`.

    Raises:
        DataError: the file cannot be read, or a row has no known shape.
    """
    for _, _, conversation in parsed_rows(path, counts, to_conversation, columns):
        # `parsed_rows` has counted why.
        if not isinstance(conversation, UnusableRow):
            yield conversation
