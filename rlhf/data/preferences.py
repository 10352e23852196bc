"""Preference pairs of files: a context, a chosen and a rejected answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.data.files import read_records
from rlhf.data.prompts import UnusableRow, clean_messages, clean_text, from_text
from rlhf.errors import DataError
from rlhf.records import Message

Preference = tuple[list[Message], str, str]
"""Messages that end with a user's turn, the chosen and the rejected answer."""

SHAPES = (
    "chosen and rejected: messages that differ in the last turn only",
    "prompt: text or messages, chosen and rejected: text or one assistant's message",
)


def read_preferences(path: Path | str, counts: Counter[str]) -> Iterator[Preference]:
    """Preferences of a file as a stream.

    Args:
        path: JSON, JSONL or Parquet file with rows in one of `SHAPES`.
        counts: is added to while reading: `rows` = `pairs` + the sum of `dropped/<reason>`.

    Raises:
        DataError: the file cannot be read, or a row has no known shape.
    """
    for number, row in enumerate(read_records(path), start=1):
        counts["rows"] += 1
        try:
            preference = to_preference(row)
        except UnusableRow as error:
            counts[f"dropped/{error.reason}"] += 1
            continue
        except DataError as error:
            raise DataError(f"{path}, row {number}: {error}") from None
        counts["pairs"] += 1
        yield preference


def to_preference(row: Mapping[str, Any]) -> Preference:
    """One row as context, chosen and rejected answer, all trimmed.

    Raises:
        DataError: no known shape; names the keys found and the shapes known.
        UnusableRow: (a DataError) a known shape with something wrong in it.
    """
    if row.get("chosen") is None or row.get("rejected") is None:
        raise DataError(f"No preference found: the keys are {sorted(row)}; known shapes are: {'; '.join(SHAPES)}.")
    chosen_context, chosen = _side(row, "chosen")
    rejected_context, rejected = _side(row, "rejected")
    if chosen_context != rejected_context:
        raise UnusableRow("context_differs", "chosen and rejected differ before the last turn.")
    if not chosen_context or chosen_context[-1]["role"] != "user":
        raise UnusableRow("no_user_turn", "no user's turn stands before the answer.")
    if chosen == rejected:
        raise UnusableRow("equal", "chosen and rejected are the same text.")
    return chosen_context, chosen, rejected


def _side(row: Mapping[str, Any], side: str) -> tuple[list[Message], str]:
    """Context and answer of one side."""
    value, prompt = row[side], row.get("prompt")
    if isinstance(value, str):
        if prompt is None:
            raise DataError(f"{side} is text without a prompt; the keys are {sorted(row)}; known: {'; '.join(SHAPES)}.")
        return _context(prompt), clean_text(value, side)
    messages = clean_messages(value, side)
    if messages[-1]["role"] != "assistant":
        raise UnusableRow("ends_on_user", f"{side} ends with the {messages[-1]['role']}'s turn, not with an answer.")
    context = messages[:-1] if len(messages) > 1 or prompt is None else _context(prompt)
    return context, messages[-1]["content"]


def _context(prompt: Any) -> list[Message]:
    return from_text(prompt, "prompt") if isinstance(prompt, str) else clean_messages(prompt, "prompt")
