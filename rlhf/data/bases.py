"""Where the question of a row stands: the table of columns, and how each is read."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.data.rendering import post_text, texts_of
from rlhf.data.rows import Row, UnusableRow, has_value, plain_text
from rlhf.data.turns import (
    clean_text,
    listed,
    marked_turns,
    nonempty_list,
    role_of,
    speaker_of,
    to_turns,
)

CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "trajectory")
"""Bases that hold a conversation with its answers: the last one is no part of the question."""
_TEXTS = (
    "instruction",
    "question",
    "query",
    "problem",
    "question_stem",
    "user_prompt",
    "user_input",
    "user_message",
)
# The first five are those of the first runs, whose prompts keep their ids only where the order stays.
BASES = (
    "context_messages",
    "messages",
    "prompt",
    "instruction",
    "question",
    *CONVERSATIONS[1:],
    "conversation_input",
    *_TEXTS[2:],
    "input",
    "turns",
    "text",
    "data",
    "context",
    "history",
    "info",
)
"""Where the question may stand; the first that holds something wins."""


def is_answer(turn: Any) -> bool:
    """Whether a turn, not yet cleaned, is the assistant's."""
    return role_of(speaker_of(turn)) == "assistant"


def base_of(row: Row, first: Sequence[str]) -> tuple[str, list[Any] | Mapping[str, Any]] | None:
    """The name of the base, and its turns as they stand there, one at least; None where no base holds any.

    Where the base is an object with parts of a question in it, this object.

    Raises:
        UnusableRow: a base holds something that cannot be read.

    Example:
        {"messages": [], "prompt": "Hi"} gives "prompt", [{"role": "user", "content": "Hi"}]
    """
    if row.maps("question"):
        value = row.mapped("question")
        if not has_value(value):
            raise UnusableRow("empty", "the columns mapped to question are empty.")
        if _is_nested(value):
            return "prompt", value
        is_written = isinstance(value, str | list | Mapping)
        turns = _text_turns(row, "prompt", value) if is_written else [_user(plain_text(value))]
        return "prompt", turns or []
    for name in (*first, *BASES):
        value = row.peek(name)
        if not has_value(value):
            continue
        read = _READERS.get(name, _text_turns)
        if read is _text_turns and _is_nested(value):
            return name, value
        turns = read(row, name, value)
        # Nothing: the column holds another kind of value here, and the next one may be the base.
        if turns:
            row.read.add(str(row.column(name)))
            return name, turns
    return None


def _is_nested(value: Any) -> bool:
    """Whether this is an object of several parts, and no turn."""
    return isinstance(value, Mapping) and speaker_of(value) is None


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _text_turns(row: Row, name: str, value: Any) -> list[Any] | None:
    """Of a column that is a base whatever it holds."""
    # Refused as no text; where messages may stand a number is refused as no messages.
    if name in _TEXTS and not isinstance(value, str | list | Mapping):
        clean_text(value, name)
    # The arena's prompts are lists written as text, which another prompt may just look like.
    if isinstance(value, str) and "response_a" in row and "response_b" in row:
        value = texts_of(value) or value
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return _user_turns(row, name, value)
    if name in (*CONVERSATIONS, "context_messages"):
        return _conversation(name, listed(value))
    return to_turns(value, name)


def _conversation(name: str, value: Any) -> list[Any]:
    """Of a column whose name promises turns."""
    if not isinstance(value, str):
        return to_turns(value, name)
    # A plain text there is a mistake in the file: nobody knows whose turn it is.
    return marked_turns(value, whole=True) or nonempty_list(value, name)


def _user_turns(row: Row, name: str, value: Any) -> list[Any] | None:
    """Of a list whose turns are all the user's (MT-Bench, Arena-Hard v0.1)."""
    if not isinstance(value, list):
        return None
    if any(speaker_of(turn) is not None for turn in value):
        return to_turns(value, name)
    if len(value) != 1:
        raise UnusableRow(
            "user_turns_only",
            f"{name}={value!r:.80}: must hold one turn. For MT-Bench, whose second turn needs "
            "an answer to the first, see docs/evaluation.md.",
        )
    turn = value[0]
    return [_user(turn.get("content") if isinstance(turn, Mapping) else turn)]


def _marked_text(row: Row, name: str, value: Any) -> list[Any] | None:
    """Of `text`, which is a question only where it says who speaks (guanaco), or the row does (OASST)."""
    if not isinstance(value, str):
        return None
    # OASST's files of single messages name the speaker in a column of its own.
    role = role_of(row.peek("role"))
    if role is None:
        return marked_turns(value, whole=True)
    if has_value(row.peek("parent_id")):
        raise UnusableRow(
            "part_of_a_tree", "the row is a later turn of a conversation that stands in other rows."
        )
    row.read.add(str(row.column("role")))
    return [{"role": role, "content": value}]


def _alternating(row: Row, name: str, value: Any) -> list[Any] | None:
    """Of a list of text, the user's and the assistant's in turn (UltraChat)."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        return None
    turns = []
    roles = itertools.cycle(("user", "assistant"))
    for role, text in zip(roles, value, strict=False):
        turns.append({"role": role, "content": text})
    return turns


def is_turns(value: Any) -> bool:
    """Whether this is a list of turns, each with somebody who says it."""
    if not isinstance(value, list):
        return False
    return all(speaker_of(turn) is not None for turn in value)


def _turns_only(row: Row, name: str, value: Any) -> list[Any] | None:
    """Of `context`, which mostly is a text that belongs to a question (HelpSteer 3 has turns there)."""
    return value if is_turns(value) else None


def _input(row: Row, name: str, value: Any) -> list[Any]:
    """Of `input` without an instruction."""
    if isinstance(value, str) or _turns_only(row, name, value):
        return to_turns(value, name)
    return [_user(plain_text(value))]


def _text_or_turns(row: Row, name: str, value: Any) -> list[Any] | None:
    """Of `history` without a question (SHP)."""
    if isinstance(value, str):
        return to_turns(value, name)
    return _turns_only(row, name, value)


def _post(row: Row, name: str, value: Any) -> list[Any] | None:
    """Of summarize-from-feedback's `info`."""
    text = post_text(value)
    return None if text is None else [_user(text)]


_READERS = {
    "turns": _user_turns,
    "text": _marked_text,
    "data": _alternating,
    "context": _turns_only,
    "input": _input,
    "history": _text_or_turns,
    "info": _post,
}
"""How a base is read that is one only where it holds the right kind of value; the others by `_text_turns`."""
