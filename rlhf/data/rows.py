"""One row of a file, whatever is in it: names in any spelling, and which columns were read."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

from rlhf.data.json_text import json_text
from rlhf.errors import DataError

# Far more than any data set nests, and far below where Python's own recursion ends.
_MAX_DEPTH = 64
_SURROGATE = re.compile("[\ud800-\udfff]")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SEPARATORS = re.compile(r"[\s./_-]+")


class UnusableRow(DataError):
    """A row of a known shape that cannot be used; `reason` is a word to count it under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def words(text: str) -> frozenset[str]:
    """The words of a table that is written as text."""
    return frozenset(text.split())


@lru_cache(maxsize=4096)
def plain_name(name: str) -> str:
    """A column's name as the tables of this package spell it: "System Prompt" and "systemPrompt" alike."""
    apart = _CAMEL.sub("_", name)
    return _SEPARATORS.sub("_", apart).strip("_").lower()


def has_value(value: Any) -> bool:
    """Whether there is something: null, NaN, white space alone and empty lists or objects are nothing."""
    # NaN is unlike itself; pandas writes it where a cell is empty.
    if value is None or value != value:
        return False
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, list | tuple | dict):
        return len(value) > 0
    return True


class Row(Mapping[str, Any]):
    """A record whose columns are found in any spelling; it remembers which ones were read.

    `row["system_prompt"]` reads the column "System-Prompt", where no other is spelled just so; `peek` looks
    without reading. `unread_inside` are keys of a column that is an object, as `question.hint`.

    Args:
        record: the row as the file has it.
        mapped: columns that the user says to belong to a part of the question, by part.

    Example:
        {"Question": "2+2?", "evidence": "Sums.", "id": 7}
    """

    def __init__(self, record: Mapping[str, Any], mapped: Mapping[str, Sequence[str]] | None = None) -> None:
        self.record = record
        self.read: set[str] = set()
        self.unread_inside: list[str] = []
        self._mapped = mapped or {}
        self._names: dict[str, str] = {}
        for name in record:
            self._names.setdefault(plain_name(name), name)

    def __getitem__(self, name: str) -> Any:
        column = self.column(name)
        if column is None:
            raise KeyError(name)
        self.read.add(column)
        return self.record[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self.record)

    def __len__(self) -> int:
        return len(self.record)

    # Without these two, Mapping would ask `__getitem__`, and a look would count as reading.
    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return self.column(name) is not None

    def peek(self, name: str) -> Any:
        """What stands in a column, null where there is none; it does not count as read."""
        column = self.column(name)
        return None if column is None else self.record[column]

    def column(self, name: str) -> str | None:
        """The name of a column as the file spells it."""
        if name in self.record:
            return name
        return self._names.get(name)

    def plain_names(self) -> list[str]:
        """The names of all columns as the tables spell them, in the row's order."""
        return list(self._names)

    def holds(self, name: str) -> bool:
        """Whether there is something in a column."""
        return has_value(self.peek(name))

    def unfolded(self, name: str, value: Any, inner: Mapping[str, Any]) -> Row:
        """The same row with another value in a column, and with more columns; its question is mapped no
        more.
        """
        record = dict(self.record)
        record.update(inner)
        record[name] = value
        mapped = dict(self._mapped)
        mapped.pop("question", None)
        return Row(record, mapped)

    def maps(self, part: str) -> bool:
        """Whether the user says which columns a part of the question stands in."""
        return part in self._mapped

    def mapped(self, part: str) -> Any:
        """What stands in the columns of a part, joined in the user's order; null where they are empty."""
        values: list[Any] = []
        for name in self._mapped[part]:
            # Read in any case: an empty column of this row is one that is looked at.
            value = self.get(name)
            if has_value(value):
                values.append(value)
        if len(values) <= 1:
            return values[0] if values else None
        if all(isinstance(value, list) for value in values):
            return list(itertools.chain.from_iterable(values))
        return "\n\n".join(plain_text(value) for value in values)


def as_row(row: Mapping[str, Any]) -> Row:
    """The row itself, or a plain record as one."""
    return row if isinstance(row, Row) else Row(row)


def has_half_pair(text: str) -> bool:
    """Whether a text holds half a surrogate pair, which UTF-8 has no bytes for."""
    # Plain ASCII is told at once, and most text is.
    if text.isascii():
        return False
    return _SURROGATE.search(text) is not None


def without_half_pairs(text: str) -> str:
    r"""Text that UTF-8 can hold: U+FFFD stands for each half of a surrogate pair.

    Example:
        "7 \ud800" gives "7 \ufffd"
    """
    return _SURROGATE.sub("\ufffd", text) if has_half_pair(text) else text


def check_values(value: Any, depth: int = 0) -> None:
    """Refuse what no UTF-8 file can hold and what nests without end, anywhere in a record.

    Raises:
        UnusableRow: half a surrogate pair in a text or key, or more than 64 levels.
    """
    if isinstance(value, str):
        # JSON may hold "\ud800" alone, and Python reads it; Parquet and tokenizers would fail much later.
        if has_half_pair(value):
            raise UnusableRow("invalid_unicode", "the row holds half a surrogate pair.")
        return
    if not isinstance(value, list | tuple | dict):
        return
    # Else a writer, in a deeper stack than the reader's, would be the one to run out of it.
    if depth == _MAX_DEPTH:
        raise UnusableRow("too_deep", f"the row nests more than {_MAX_DEPTH} levels.")
    if isinstance(value, dict):
        for key in value:
            check_values(key, depth + 1)
        value = value.values()
    for element in value:
        check_values(element, depth + 1)


def plain_text(value: Any) -> str:
    """A value as text that a person would write: numbers as they are, texts of a list line by line, else
    JSON.

    Example:
        [1, {"a": 2}] gives '[1, {"a": 2}]'
    """
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list) and value and all(isinstance(element, str) for element in value):
        return "\n".join(value).strip()
    # Dates of Parquet: JSON has no form for them, and quotes would be in the way.
    if not isinstance(value, list | tuple | dict | int | float | None):
        return str(value)
    return plain_json(value, ascii_only=False)


def plain_json(value: Any, ascii_only: bool = True) -> str:
    """JSON text that every reader takes: what JSON has no form for is text, numbers that are not finite
    null.
    """
    return json_text(value, ascii_only=ascii_only, default=str)


def as_number(value: Any) -> float | None:
    """A finite number of 64 bits, also one written as text (CSV has no other); None for anything else."""
    # Python counts true and false among its integers.
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return None
    try:
        number = float(value)
    # JSON's integers have no bound, floats do; and most texts are no numbers.
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
