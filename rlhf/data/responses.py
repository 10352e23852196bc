"""Prompts with their responses, and preference pairs, as plain rows for other programs.

A row is `{"prompt": messages, "responses": [text, …]}`, after scoring with `"rewards": [number, …]` in the same order
(RLHFlow's schema). What else a row holds is carried along; of that, `finish_reasons` is read: a response whose reason
is neither "stop" nor null was cut at the token limit. Pairs are in TRL's conversational preference format.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from rlhf.data.digest import digest_of
from rlhf.data.preferences import preferences_with_rows
from rlhf.data.prompts import UnusableRow, parsed_rows, to_messages
from rlhf.data.records import FINISHED, Candidate, prompt_id
from rlhf.errors import DataError, writing

_MAKERS = {
    "responses": "python -m rlhf.generate makes files that have them.",
    "rewards": "python -m rlhf.score makes files that have them.",
    "qualities": "They must hold a number for each response, from people or a much stronger judge.",
}


def read_responses(path: Path | str, counts: Counter[str], numbers: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a `candidates` shard, with `scores` if they are asked for, and with `extra`: all other keys, as JSON.

    Rows that repeat an earlier one, responses and rewards included, are dropped; 64 bits of each are remembered.

    Args:
        path: JSON, JSONL or Parquet file.
        counts: is added to while reading: `rows` = rows given + the sum of `dropped/<reason>`.
        numbers: the key under which rows must hold a number for each response, "rewards" or "qualities".

    Raises:
        DataError: the file cannot be read, a row lacks a key that all must have, or no row can be used.
    """
    seen: set[int] = set()
    first_problem = ""
    for number, row, made in parsed_rows(path, counts, partial(to_candidates, numbers=numbers)):
        if isinstance(made, UnusableRow):
            first_problem = first_problem or f"row {number}: {made}"
            continue
        identity = int(digest_of([made["id"], row["responses"], row.get("rewards")])[:16], 16)
        if identity in seen:
            counts["dropped/duplicate"] += 1
            continue
        seen.add(identity)
        yield made
    if not seen:
        raise DataError(f"{path}: none of {counts['rows']} rows can be used; {first_problem} Mend it or name another.")


def to_candidates(row: Mapping[str, Any], numbers: str | None = None) -> dict[str, Any]:
    """One row as a row of a `candidates` shard; token ids, which files do not hold, are empty.

    Raises:
        DataError: `responses`, or the numbers that must be there, are missing.
        UnusableRow: (a DataError) something is wrong in them.
    """
    for key in filter(None, ("responses", numbers)):
        if key not in row:
            raise DataError(f"No {key}: the keys are {sorted(row)}. {_MAKERS[key]}")
    messages, responses = to_messages(row), row["responses"]
    if not isinstance(responses, list) or not responses:
        raise UnusableRow("no_responses", f"responses must be a list of text; found {responses!r:.80}.")
    if not all(isinstance(text, str) for text in responses):
        raise UnusableRow("response_not_text", "responses must be text, each of them.")
    reasons = _beside(row, "finish_reasons", responses) if row.get("finish_reasons") is not None else []
    read = {"prompt", "responses", numbers or "rewards"}
    extra = json.dumps({k: v for k, v in row.items() if k not in read}, ensure_ascii=False, default=str)
    try:
        "".join([*responses, extra]).encode()
    except UnicodeEncodeError:
        raise UnusableRow("invalid_unicode", "the row holds half a surrogate pair.") from None
    truncated = [reason not in (None, FINISHED) for reason in reasons] or [False] * len(responses)
    candidates = [
        Candidate([], text, "length" if cut else FINISHED, logprob=math.nan, seed=0, temperature=math.nan)
        for text, cut in zip(responses, truncated, strict=True)
    ]
    made: dict[str, Any] = {"id": prompt_id(messages), "messages": messages, "prompt_token_ids": [], "extra": extra}
    if numbers is not None:
        made["scores"] = [to_number(value, numbers) for value in _beside(row, numbers, responses)]
    return made | {"candidates": [vars(candidate) for candidate in candidates]}


def read_comparisons(path: Path | str, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """Comparisons as rows of a `candidates` shard: two responses, the better one first.

    `extra` holds the row's `id` (else its number, from 0) and `subset` (else the file's name), as JSON.

    Args:
        path: JSON, JSONL or Parquet file with rows in one of `rlhf.data.comparisons.SHAPES`.
        counts: is added to while reading, as by `rlhf.data.preferences.read_preferences`.
    """
    numbers = itertools.count()
    for row, preference in preferences_with_rows(path, counts):
        messages, *answers = preference
        about = {"id": row.get("id", next(numbers)), "subset": row.get("subset") or Path(path).stem}
        candidates = [Candidate([], text, FINISHED, logprob=math.nan, seed=0, temperature=math.nan) for text in answers]
        made: dict[str, Any] = {"id": prompt_id(messages), "messages": messages, "prompt_token_ids": []}
        yield made | {"extra": json.dumps(about, default=str), "candidates": [vars(c) for c in candidates]}


def read_best_of_n(path: Path | str, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """RewardBench 2's rows as rows of a `candidates` shard: all responses, the right ones first, texts as they are.

    `extra` holds `id` (else the row's number, from 0), `subset` (else the file's name) and `num_correct`, as JSON.

    Args:
        path: JSON, JSONL or Parquet file with `prompt`, `chosen` and `rejected`, the latter two lists of text.
        counts: is added to while reading: `rows` = rows given + the sum of `dropped/<reason>`.

    Raises:
        DataError: the file cannot be read, or a row has another shape.
    """

    def parse(row: Mapping[str, Any]) -> dict[str, Any]:
        return _best_of_n(row, row.get("id", counts["rows"] - 1), row.get("subset") or Path(path).stem)

    return (made for _, _, made in parsed_rows(path, counts, parse) if not isinstance(made, UnusableRow))


def _best_of_n(row: Mapping[str, Any], name: Any, subset: str) -> dict[str, Any]:
    prompt, chosen, rejected = (row.get(key) for key in ("prompt", "chosen", "rejected"))
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise DataError(
            f"chosen and rejected must be lists of text; found {chosen!r:.80} and {rejected!r:.80}. "
            "Rows with one of each are read with version=1."
        )
    if not chosen or not rejected:
        raise UnusableRow("one_sided", f"{len(chosen)} chosen, {len(rejected)} rejected; it takes one of each.")
    if row.get("num_correct") not in (None, len(chosen)):
        raise UnusableRow("num_correct", f"num_correct is {row['num_correct']!r}, but chosen holds {len(chosen)}.")
    if subset == "Ties" and not re.fullmatch(r"(ref|tied):\d+", str(name)):
        raise UnusableRow("ties_id", f"id is {name!r}; ids of the subset Ties read ref:1 or tied:1.")
    about = {"id": name, "subset": subset, "num_correct": len(chosen)}
    return to_candidates({"prompt": prompt, "responses": chosen + rejected} | about)


def _beside(row: Mapping[str, Any], key: str, responses: list[str]) -> list[Any]:
    """A list that must be as long as the responses."""
    values = row[key]
    if not isinstance(values, list) or len(values) != len(responses):
        raise UnusableRow(f"{key}_do_not_match", f"{key} must be a list of {len(responses)}; found {values!r:.80}.")
    return values


def to_number(value: Any, key: str) -> float:
    """A score as JSON has it; null is NaN. Raises UnusableRow."""
    if value is None:
        return math.nan  # what no number can be written as in JSON
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnusableRow(f"{key}_not_numbers", f"{key} must be numbers or null; found {value!r:.80}.")
    try:
        return float(value)
    except OverflowError:
        raise UnusableRow(f"{key}_not_numbers", f"{key} must be numbers of 64 bits; found {value!r:.80}.") from None


def candidates_line(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a `candidates` shard as others read it."""
    candidates = row["candidates"]
    names = {"responses": "text", "finish_reasons": "finish_reason", "temperatures": "temperature", "seeds": "seed"}
    return {"prompt": row["messages"]} | {name: [c[key] for c in candidates] for name, key in names.items()}


def scored_line(row: Mapping[str, Any], scores: list[float]) -> dict[str, Any]:
    """A row that `read_responses` gave, with its scores as `rewards`; one that is not finite becomes null."""
    rewards = [score if math.isfinite(score) else None for score in scores]
    texts = [candidate["text"] for candidate in row["candidates"]]
    return {"prompt": row["messages"], "responses": texts, "rewards": rewards} | json.loads(row["extra"])


def pair_line(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a `pairs` shard in TRL's conversational preference format, with what it was chosen by."""
    sides = ("chosen", "rejected")
    line = {"prompt": row["messages"]} | {side: [{"role": "assistant", "content": row[side]}] for side in sides}
    line["margin"] = row["chosen_penalised"] - row["rejected_penalised"]
    kept = ("score", "penalised", "rank", "chars", "truncated")
    return line | {f"{side}_{name}": row[f"{side}_{name}"] for name in kept for side in sides}


class Form(Enum):
    """How rows stand in a file."""

    lines = "one JSON object a line"
    list = "one JSON list"
    object = "one JSON object, the only row"


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], form: Form = Form.lines) -> int:
    """Write rows as a stream and flush them to disk; returns how many."""
    number, many = 0, form is Form.list
    with writing(path), open(path, "w", encoding="utf-8", newline="\n") as file:
        for number, row in enumerate(rows, start=1):
            assert number == 1 or form is not Form.object, "an object is one row"
            before = "" if not many else "[\n" if number == 1 else ",\n"
            indent = 1 if form is Form.object else None
            file.write(before + json.dumps(row, ensure_ascii=False, indent=indent) + ("" if many else "\n"))
        if many:
            file.write("\n]\n" if number else "[]\n")
        file.flush()
        os.fsync(file.fileno())
    return number
