"""Whole conversations to learn from, in the shapes they come in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.data.comparisons import from_speaker
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
    """
    turns = row.get("conversations")
    if row.get("messages") is not None:
        messages = clean_messages(row["messages"], "messages")
    elif isinstance(turns, list) and any(isinstance(turn, Mapping) and "from" in turn for turn in turns):
        messages = [from_speaker(turn, f"conversations[{i}]") for i, turn in enumerate(turns)]
    elif turns is not None:
        messages = clean_messages(turns, "conversations")
    else:
        messages = _asked_and_answered(row)
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": clean_text(system, "system")})
    return messages


def _asked_and_answered(row: Mapping[str, Any]) -> list[Message]:
    for key, names in _ANSWERS.items():
        present = sorted((name for name in names if name in row), key=lambda name: row[name] is None)
        if row.get(key) is None or not present:
            continue
        asked, answer = row[key], row[present[0]]
        if key == "instruction":
            messages = to_messages({key: asked, "input": row.get("input") or row.get("context")})
        else:
            messages = clean_messages(asked, key) if isinstance(asked, list) else from_text(asked, key)
        if isinstance(answer, list):
            return messages + clean_messages(answer, present[0])
        return [*messages, {"role": "assistant", "content": clean_text(answer, present[0])}]
    raise DataError(f"No conversation found: the keys are {sorted(row)}; known shapes are: {'; '.join(SHAPES)}.")


def read_conversations(path: Path | str, counts: Counter[str]) -> Iterator[list[Message]]:
    """Conversations of a file as a stream, in its order.

    Args:
        path: JSON, JSONL or Parquet file with rows in one of `SHAPES`.
        counts: is added to while reading: `rows` = conversations + the sum of `dropped/<reason>`.

    Raises:
        DataError: the file cannot be read, or a row has no known shape.
    """
    for _, _, conversation in parsed_rows(path, counts, to_conversation):
        if not isinstance(conversation, UnusableRow):
            yield conversation
