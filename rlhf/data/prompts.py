"""Prompts in the shapes they come in, as conversations that end with a user's turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rlhf.data.files import Record, read_records
from rlhf.data.records import Message, Prompt, prompt_id
from rlhf.errors import DataError

ROLES = ("system", "user", "assistant")
SHAPES = (
    "context_messages: messages",
    "messages: messages, where one assistant's turn at the end is cut off",
    "prompt: text or messages",
    "instruction, perhaps with input: text",
    "question: text",
)
"""What a row may look like, the first that fits wins; `messages` are `[{"role": …, "content": …}, …]`."""


class UnusableRow(DataError):
    """A row of a known shape that is no prompt; `reason` is a word to count it under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


Parsed = TypeVar("Parsed")


def parsed_rows(
    path: Path | str, counts: Counter[str], parse: Callable[[Record], Parsed]
) -> Iterator[tuple[int, Record, Parsed | UnusableRow]]:
    """Rows of a file as a stream: number from 1, the row, and what `parse` makes of it.

    That is the `UnusableRow` where it raises one.

    Args:
        path: JSON, JSONL or Parquet file.
        counts: is added to while reading: `rows`, and `dropped/<reason>` for each unusable row.
        parse: reads one row.

    Raises:
        DataError: the file cannot be read, or a row has no known shape; names the row.

    Example:
        (1, {"prompt": "Hi", "source": "quiz"}, [{"role": "user", "content": "Hi"}])
    """
    for number, row in enumerate(read_records(path), start=1):
        counts["rows"] += 1
        parsed: Parsed | UnusableRow
        try:
            parsed = parse(row)
        # Before DataError, of which it is one: a single bad row is skipped, an unknown shape is a wrong file.
        except UnusableRow as error:
            counts[f"dropped/{error.reason}"] += 1
            parsed = error
        except DataError as error:
            raise DataError(f"{path}, row {number}: {error}") from None
        yield number, row, parsed


def clean_text(text: Any, what: str) -> str:
    """Text without outer white space, which chat templates trim anyway: every consumer must see the same.

    Raises:
        UnusableRow: no text, empty, or with half a surrogate pair, which no UTF-8 file can hold.
    """
    if text is None:
        raise UnusableRow("empty", f"{what} is null; it must be text.")
    if not isinstance(text, str):
        raise UnusableRow("not_text", f"{what} is {type(text).__name__} {text!r:.80}; it must be text.")
    trimmed: str = text.strip()
    if not trimmed:
        raise UnusableRow("empty", f"{what} is empty; it must be text.")
    # JSON may hold "\ud800" alone, and Python reads it; Parquet and tokenizers would fail on it much later.
    if any("\ud800" <= character <= "\udfff" for character in trimmed):
        raise UnusableRow("invalid_unicode", f"{what} holds half a surrogate pair: {trimmed!r:.80}.")
    return trimmed


def nonempty_list(value: Any, what: str) -> list[Any]:
    """A list that must hold messages, which are not yet looked at.

    Raises:
        UnusableRow: it is no list, or empty.
    """
    if isinstance(value, list) and value:
        return value
    # Null and [] are missing content; anything else is content of a wrong kind.
    reason = "empty" if value is None or value == [] else "not_messages"
    raise UnusableRow(reason, f"{what} must be a list of messages.")


def clean_messages(value: Any, what: str) -> list[Message]:
    """Messages with known roles and trimmed content; other keys are left out.

    Raises:
        UnusableRow: what is wrong, and in which message.

    Example:
        [{"role": "user", "content": "Hi", "name": "Ann"}] gives [{"role": "user", "content": "Hi"}]
    """
    messages = []
    for number, message in enumerate(nonempty_list(value, what)):
        where = f"{what}[{number}]"
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise UnusableRow("not_messages", f"{where} must have role and content; found {message!r:.80}.")
        # Chat templates agree on these three only; what else there is, "tool" say, each renders its own way.
        role = message["role"]
        if role not in ROLES:
            raise UnusableRow("unknown_role", f"{where} has role {role!r}; known are {', '.join(ROLES)}.")
        content = clean_text(message["content"], f"{where}.content")
        messages.append({"role": role, "content": content})
    return messages


def from_text(text: Any, what: str) -> list[Message]:
    """A conversation of one user's turn."""
    content = clean_text(text, what)
    return [{"role": "user", "content": content}]


def text_or_messages(value: Any, what: str) -> list[Message]:
    """A conversation that may be written as the text of its only turn."""
    if isinstance(value, str):
        return from_text(value, what)
    return clean_messages(value, what)


def has_answer(row: Mapping[str, Any]) -> bool:
    """Whether `to_messages` cuts an assistant's turn off the end of this row."""
    # Of `context_messages` nothing is cut: they are a context by name, so an answer there is a mistake.
    if row.get("context_messages") is not None:
        return False
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        return False
    last = messages[-1]
    return isinstance(last, Mapping) and last.get("role") == "assistant"


def to_messages(row: Mapping[str, Any]) -> list[Message]:
    r"""The conversation of a row in one of `SHAPES`, ending with a user's turn.

    Raises:
        DataError: no known shape; names the keys found and the shapes known.
        UnusableRow: (a DataError) a known shape with something wrong in it.

    Example:
        {"instruction": "Add", "input": "1 2"} gives [{"role": "user", "content": "Add\n\n1 2"}]
    """
    # A key whose value is null counts as absent: Parquet files of mixed rows fill the gaps with null.
    if row.get("context_messages") is not None:
        messages = clean_messages(row["context_messages"], "context_messages")
    elif row.get("messages") is not None:
        turns = row["messages"]
        if has_answer(row):
            turns = turns[:-1]
        messages = clean_messages(turns, "messages")
    elif row.get("prompt") is not None:
        messages = text_or_messages(row["prompt"], "prompt")
    elif row.get("instruction") is not None:
        messages = from_text(row["instruction"], "instruction")
        # Alpaca's rows without an input hold "" there.
        if isinstance(row.get("input"), str) and row["input"].strip():
            messages[0]["content"] += "\n\n" + clean_text(row["input"], "input")
    elif row.get("question") is not None:
        messages = from_text(row["question"], "question")
    else:
        raise DataError(
            f"No prompt found: the keys are {sorted(row)}; known shapes are: {'; '.join(SHAPES)}.",
        )
    role = messages[-1]["role"]
    if role != "user":
        raise UnusableRow(
            "not_user_last",
            f"The conversation ends with the {role}'s turn; the user's must be last.",
        )
    return messages


def read_prompts(path: Path | str, counts: Counter[str]) -> Iterator[Prompt]:
    """Distinct prompts of a file as a stream, in its order.

    64 bits of each are remembered to find duplicates.

    Args:
        path: JSON, JSONL or Parquet file with rows in one of `SHAPES`.
        counts: is added to while reading: `rows` = prompts + the sum of `dropped/<reason>`;
            `answers_cut` are rows that lost an assistant's last turn.

    Raises:
        DataError: the file cannot be read, a row has no known shape, or no row is a prompt.
    """
    seen: set[int] = set()
    first_problem = ""
    for number, row, messages in parsed_rows(path, counts, to_messages):
        if isinstance(messages, UnusableRow):
            # The first only: one line of a file says what is the matter with all of them, as a rule.
            first_problem = first_problem or f"row {number}: {messages}"
            continue
        # Added even where it is 0, so that the count is always there.
        counts["answers_cut"] += int(has_answer(row))
        identity = prompt_id(messages)
        # As a number it takes half the memory of its text, and there may be millions.
        key = int(identity, 16)
        if key in seen:
            counts["dropped/duplicate"] += 1
            continue
        seen.add(key)
        yield Prompt(identity, tuple(messages))
    if not seen:
        raise DataError(
            f"{path}: none of {counts['rows']} rows is a prompt; {first_problem} Mend it or name another.",
        )


def load_prompts(path: Path | str) -> tuple[list[Prompt], Counter[str]]:
    """All distinct prompts of a file in its order, and what became of every row (see `read_prompts`).

    They are all in memory: about 2 KB a prompt, so 2 GB for a million; split larger files.
    """
    counts = Counter[str]()
    prompts = list(read_prompts(path, counts))
    return prompts, counts
