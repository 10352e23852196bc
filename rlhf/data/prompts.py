"""Prompts in the shapes they come in, as conversations that end with a user's turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rlhf.data.columns import Columns, check_mapped, column_map, count_unread
from rlhf.data.files import Record, read_records
from rlhf.data.questions import SHAPES, Question, question_of, refuse_without_question
from rlhf.data.records import Message, Prompt, prompt_id
from rlhf.data.rows import Row, UnusableRow, as_row, check_values
from rlhf.errors import DataError

Parsed = TypeVar("Parsed")


def parsed_rows(
    path: Path | str,
    counts: Counter[str],
    parse: Callable[[Row], Parsed],
    columns: Columns | None = None,
) -> Iterator[tuple[int, Record, Parsed | UnusableRow]]:
    """Rows of a file as a stream: number from 1, the row, and what `parse` makes of it.

    That is the `UnusableRow` where it raises one.

    Args:
        path: a file that `rlhf.data.files` reads.
        counts: is added to while reading: `rows`, `dropped/<reason>` for each unusable row, and
            `unread/<column>` for each column that may belong to the question and was not read.
        parse: reads one row.
        columns: which columns hold a part of the question, where the names do not say so.

    Raises:
        DataError: the file cannot be read, or a row has no known shape; names the row. Or a column is
            mapped that no row has.

    Example:
        (1, {"prompt": "Hi", "source": "quiz"}, [{"role": "user", "content": "Hi"}])
    """
    mapped = column_map(columns)
    there: set[str] = set()
    for number, record in enumerate(read_records(path), start=1):
        if mapped:
            there.update(record)
        row = Row(record, mapped)
        try:
            parsed = parsed_row(path, number, row, counts, parse)
        except DataError:
            # A name that no row has makes every row look like one of no shape.
            if mapped:
                check_mapped(mapped, there)
            raise
        yield number, record, parsed
    if mapped:
        check_mapped(mapped, there)


def parsed_row(
    path: Path | str, number: int, row: Row, counts: Counter[str], parse: Callable[[Row], Parsed]
) -> Parsed | UnusableRow:
    """What `parse` makes of one row, counted as `parsed_rows` says; `number` is the row's, from 1.

    Raises:
        DataError: the row has no known shape.
    """
    counts["rows"] += 1
    try:
        check_values(row.record)
        parsed = parse(row)
        count_unread(counts, row)
    # Before DataError, of which it is one: a single bad row is skipped, an unknown shape is a wrong file.
    except UnusableRow as error:
        counts[f"dropped/{error.reason}"] += 1
        return error
    except DataError as error:
        raise DataError(f"{path}, row {number}: {error}") from None
    return parsed


def to_messages(row: Mapping[str, Any]) -> list[Message]:
    r"""The conversation of a row in one of the shapes of `rlhf.data.questions`, ending with a user's turn.

    Raises:
        DataError: no known shape; names the keys found and the shapes known.
        UnusableRow: (a DataError) a known shape with something wrong in it.

    Example:
        {"instruction": "Add", "input": "1 2"} gives [{"role": "user", "content": "Add\n\n1 2"}]
    """
    return _asked(as_row(row)).messages


def _asked(row: Row) -> Question:
    """The question of a row, which must end with a user's turn."""
    question = question_of(row)
    if question is None:
        refuse_without_question(row, "prompt", SHAPES)
    role = question.messages[-1]["role"]
    if role != "user":
        raise UnusableRow(
            "not_user_last",
            f"The conversation ends with the {role}'s turn; the user's must be last.",
        )
    return question


def read_prompts(
    path: Path | str, counts: Counter[str], *, columns: Columns | None = None
) -> Iterator[Prompt]:
    """Distinct prompts of a file as a stream, in its order; see `prompts_with_rows`."""
    for _, prompt in prompts_with_rows(path, counts, set(), columns=columns):
        yield prompt


def prompts_with_rows(
    path: Path | str, counts: Counter[str], seen: set[int], *, columns: Columns | None = None
) -> Iterator[tuple[Record, Prompt]]:
    """Distinct prompts of a file as a stream, in its order, each with the row it comes from.

    Args:
        path: a file that `rlhf.data.files` reads, with rows in one of the shapes of `rlhf.data.questions`.
        counts: is added to while reading: `rows` = prompts + the sum of `dropped/<reason>`;
            `answers_cut` are rows that lost an assistant's last turn; and `unread/<column>`.
        seen: 64 bits of each prompt of earlier files, which count as duplicates; is added to. About 70 bytes
            a prompt.
        columns: as for `parsed_rows`.

    Raises:
        DataError: the file cannot be read, a row has no known shape, or no row is a prompt.
    """
    first_problem = ""
    has_prompt = False
    for number, record, question in parsed_rows(path, counts, _asked, columns):
        if isinstance(question, UnusableRow):
            # The first only: one line of a file says what is the matter with all of them, as a rule.
            first_problem = first_problem or f"row {number}: {question}"
            continue
        # Added even where it is 0, so that the count is always there.
        counts["answers_cut"] += int(question.has_answer)
        has_prompt = True
        identity = prompt_id(question.messages)
        # As a number it takes half the memory of its text, and there may be millions.
        key = int(identity, 16)
        if key in seen:
            counts["dropped/duplicate"] += 1
            continue
        seen.add(key)
        yield record, Prompt(identity, tuple(question.messages))
    if not has_prompt:
        raise DataError(
            f"{path}: none of {counts['rows']} rows is a prompt; {first_problem} Mend it or name another.",
        )


def load_prompts(path: Path | str, *, columns: Columns | None = None) -> tuple[list[Prompt], Counter[str]]:
    """All distinct prompts of a file in its order, and what became of every row (see `read_prompts`).

    They are all in memory, about 2 KB a prompt: `rlhf.data.packed_prompts` holds many.
    """
    counts = Counter[str]()
    prompts = list(read_prompts(path, counts, columns=columns))
    return prompts, counts
