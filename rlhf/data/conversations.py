"""Whole conversations to learn from, in the shapes they come in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.data.comparisons import from_speakers
from rlhf.data.prompts import UnusableRow, clean_messages, clean_text, from_text, parsed_rows, to_messages
from rlhf.data.records import Message
from rlhf.errors import DataError

_ANSWERS = {
    "prompt": ("response", "completion"),
    "instruction": ("output", "response"),
    "question": ("answer", "response"),
}
"""Where the answer to what stands under a key may be."""
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
    turns: Any = row.get("conversations")
    if row.get("messages") is not None:
        messages = clean_messages(row["messages"], "messages")
    elif _has_speakers(turns):
        messages = from_speakers(turns, "conversations")
    elif turns is not None:
        messages = clean_messages(turns, "conversations")
    else:
        messages = _question_and_answer(row)
    system = row.get("system")
    # A system turn of the conversation itself goes before the one beside it; templates take only one.
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        system_turn = {"role": "system", "content": clean_text(system, "system")}
        messages.insert(0, system_turn)
    return messages


def _has_speakers(turns: Any) -> bool:
    """Whether these are turns with `from` and `value` (ShareGPT)."""
    if not isinstance(turns, list):
        return False
    # One such turn is enough: the error about the others then speaks of `from`, not of `role`.
    return any(isinstance(turn, Mapping) and "from" in turn for turn in turns)


def _question_and_answer(row: Mapping[str, Any]) -> list[Message]:
    for key, answer_keys in _ANSWERS.items():
        answer_key = _present_key(row, answer_keys)
        if row.get(key) is None or answer_key is None:
            continue
        answer = row[answer_key]
        messages = _question(row, key)
        if isinstance(answer, list):
            return messages + clean_messages(answer, answer_key)
        answer_turn = {"role": "assistant", "content": clean_text(answer, answer_key)}
        return [*messages, answer_turn]
    raise DataError(
        f"No conversation found: the keys are {sorted(row)}; known shapes are: {'; '.join(SHAPES)}.",
    )


def _present_key(row: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    """The first of the keys that holds something, else the first that is there at all."""
    present = [key for key in keys if key in row]
    for key in present:
        if row[key] is not None:
            return key
    # A null answer is a row of this shape with an empty answer, to be counted, and not an unknown shape.
    return present[0] if present else None


def _question(row: Mapping[str, Any], key: str) -> list[Message]:
    value = row[key]
    if key == "instruction":
        # Dolly calls `context` what Alpaca calls `input`.
        return to_messages({key: value, "input": row.get("input") or row.get("context")})
    # What is neither text nor a list is called "no text" here, and "no messages" by `text_or_messages`.
    if isinstance(value, list):
        return clean_messages(value, key)
    return from_text(value, key)


def read_conversations(path: Path | str, counts: Counter[str]) -> Iterator[list[Message]]:
    """Conversations of a file as a stream, in its order.

    Args:
        path: JSON, JSONL or Parquet file with rows in one of `SHAPES`.
        counts: is added to while reading: `rows` = conversations + the sum of `dropped/<reason>`.

    Raises:
        DataError: the file cannot be read, or a row has no known shape.
    """
    for _, _, conversation in parsed_rows(path, counts, to_conversation):
        # `parsed_rows` has counted why.
        if not isinstance(conversation, UnusableRow):
            yield conversation
