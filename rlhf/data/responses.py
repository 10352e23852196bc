"""Prompts with their responses, and preference pairs, as plain rows for other programs.

A row is `{"prompt": messages, "responses": [text, …]}`, after scoring with `"rewards": [number, …]` in
the same order (RLHFlow's schema). What else a row holds is carried along; of that, `finish_reasons` is
read: a response was cut at the token limit where its reason says so (`rlhf.data.finish_reasons`). Pairs are
in TRL's conversational preference format.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import orjson

from rlhf.data.columns import Columns
from rlhf.data.finish_reasons import finish_reasons_of, one_for_each
from rlhf.data.json_text import json_text
from rlhf.data.pairing import LARGEST_SCORE
from rlhf.data.preferences import preferences_with_rows
from rlhf.data.prompts import parsed_rows, to_messages
from rlhf.data.records import FINISHED, SIDES, Candidate, Message, prompt_id
from rlhf.data.rendering import texts_of
from rlhf.data.rows import UnusableRow, as_row, plain_json
from rlhf.errors import DataError, writing

_MAKERS = {
    "responses": "python -m rlhf.generate makes files that have them.",
    "rewards": "python -m rlhf.score makes files that have them.",
    "qualities": "They must hold a number for each response, from people or a much stronger judge.",
}


def read_responses(
    path: Path | str,
    counts: Counter[str],
    numbers: str | None = None,
    *,
    columns: Columns | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of a `candidates` shard, with `scores` if asked for, and with `extra`: all other keys, as JSON.

    Rows that repeat an earlier one, responses and rewards included, are dropped; 64 bits of each are
    remembered.

    Args:
        path: a file that `rlhf.data.files` reads.
        counts: is added to while reading: `rows` = rows given + the sum of `dropped/<reason>`; and
            `unread/<column>`.
        numbers: the key under which rows must hold a number for each response, "rewards" or "qualities".
        columns: as for `rlhf.data.prompts.parsed_rows`.

    Raises:
        DataError: the file cannot be read, a row lacks a key that all must have, or no row can be used.
    """
    distinct = Distinct(path, counts)
    parse = partial(to_candidates, numbers=numbers)
    for number, row, candidates_row in parsed_rows(path, counts, parse, columns):
        if distinct.keeps(candidates_row, number, row.get("rewards")):
            yield candidates_row
    distinct.refuse_nothing()


class Distinct:
    """Which rows of a file are used: those that can be and that repeat no earlier one, rewards included."""

    def __init__(self, path: Path | str, counts: Counter[str]) -> None:
        self._path = path
        self._counts = counts
        self._seen: set[int] = set()
        self._first_problem = ""

    def keeps(
        self, row: dict[str, Any] | UnusableRow, number: int, rewards: Any
    ) -> TypeGuard[dict[str, Any]]:
        """Whether to use the row of a `candidates` shard that row `number` of the file became."""
        if isinstance(row, UnusableRow):
            self._first_problem = self._first_problem or f"row {number}: {row}"
            return False
        texts = [candidate["text"] for candidate in row["candidates"]]
        return self.is_new(row["id"], texts, rewards)

    def is_new(self, identity: str, texts: list[str], rewards: Any) -> bool:
        """Whether no earlier row had all of this; one that did is counted."""
        # Not the prompt alone: files of several rounds hold the same prompt with new responses.
        try:
            text = orjson.dumps([identity, texts, rewards], default=str)
        # Numbers of more than 64 bits, and nesting beyond what it takes.
        except TypeError:
            text = plain_json([identity, texts, rewards]).encode()
        # 64 bits, and as good as random in each process.
        key = hash(text)
        if key in self._seen:
            self._counts["dropped/duplicate"] += 1
            return False
        self._seen.add(key)
        return True

    def refuse_nothing(self) -> None:
        """DataError where no row can be used."""
        if not self._seen:
            raise DataError(
                f"{self._path}: none of {self._counts['rows']} rows can be used; {self._first_problem} "
                "Mend it or name another.",
            )


def to_candidates(row: Mapping[str, Any], numbers: str | None = None) -> dict[str, Any]:
    """One row as a row of a `candidates` shard; token ids, which files do not hold, are empty.

    Raises:
        DataError: `responses`, or the numbers that must be there, are missing.
        UnusableRow: (a DataError) something is wrong in them.

    Example:
        {"prompt": [{"role": "user", "content": "Hi"}], "responses": ["Hello!", "Yo."], "rewards": [1.5, 0.3]}
    """
    row = as_row(row)
    required = ["responses"]
    if numbers is not None:
        required.append(numbers)
    for key in required:
        if key not in row:
            raise DataError(f"No {key}: the keys are {sorted(row)}. {_MAKERS[key]}")
    messages = to_messages(row)
    # A cell of CSV holds the list as JSON.
    responses = texts_of(row["responses"]) if isinstance(row["responses"], str) else None
    if responses is None:
        responses = row["responses"]
    if not isinstance(responses, list) or not responses:
        raise UnusableRow("no_responses", f"responses must be a list of text; found {responses!r:.80}.")
    if not all(isinstance(text, str) for text in responses):
        raise UnusableRow("response_not_text", "responses must be text, each of them.")
    finish_reasons = finish_reasons_of(row, len(responses))
    # Without `numbers` the row is about to be scored: rewards it may hold are those of another judge.
    read = {"prompt", "responses", numbers or "rewards"}
    rest = {key: value for key, value in row.record.items() if key not in read}
    extra = plain_json(rest, ascii_only=False)
    # Responses are not trimmed as prompts are: judges and pairs must see what was sampled, to the last space.
    try:
        "".join([*responses, extra]).encode()
    except UnicodeEncodeError:
        raise UnusableRow("invalid_unicode", "the row holds half a surrogate pair.") from None
    candidates_row = _candidates_row(messages, responses, finish_reasons, extra)
    if numbers is not None:
        values = one_for_each(row, numbers, len(responses))
        candidates_row["scores"] = [to_number(value, numbers) for value in values]
    return candidates_row


def _candidates_row(
    messages: list[Message],
    responses: Sequence[str],
    finish_reasons: Sequence[str],
    extra: str,
) -> dict[str, Any]:
    """A row of a `candidates` shard that was not sampled here: its tokens and probabilities are unknown."""
    candidates = []
    for text, finish_reason in zip(responses, finish_reasons, strict=True):
        candidate = Candidate(
            token_ids=[],
            text=text,
            finish_reason=finish_reason,
            # NaN is "unknown" where numbers may be missing; a seed has no such value.
            logprob=math.nan,
            seed=0,
            temperature=math.nan,
        )
        candidates.append(vars(candidate))
    return {
        "id": prompt_id(messages),
        "messages": messages,
        "prompt_token_ids": [],
        "extra": extra,
        "candidates": candidates,
    }


def read_comparisons(
    path: Path | str, counts: Counter[str], *, columns: Columns | None = None
) -> Iterator[dict[str, Any]]:
    """Comparisons as rows of a `candidates` shard: two responses, the better one first.

    `extra` holds the row's `id` (else its number, from 0) and `subset` (else the file's name), as JSON.

    Args:
        path: a file that `rlhf.data.files` reads, with rows in one of `rlhf.data.comparisons.SHAPES`.
        counts: is added to while reading, as by `rlhf.data.preferences.read_preferences`.
        columns: as for `rlhf.data.prompts.parsed_rows`.
    """
    for number, (row, preference) in enumerate(preferences_with_rows(path, counts, columns=columns)):
        messages, chosen, rejected = preference
        # `number` counts the pairs, not the rows of the file.
        about = {
            "id": row.get("id", number),
            "subset": _subset(row, path),
        }
        extra = plain_json(about)
        yield _candidates_row(messages, [chosen, rejected], [FINISHED, FINISHED], extra)


def read_best_of_n(
    path: Path | str, counts: Counter[str], *, columns: Columns | None = None
) -> Iterator[dict[str, Any]]:
    """RewardBench 2's rows as rows of a `candidates` shard: all responses, the right ones first.

    Texts stay as they are. `extra` holds `id` (else the row's number, from 0), `subset` (else the file's
    name) and `num_correct`, as JSON.

    Args:
        path: a file that `rlhf.data.files` reads, with a question, and lists of text as `chosen` and
        `rejected`.
        counts: is added to while reading: `rows` = rows given + the sum of `dropped/<reason>`; and
            `unread/<column>`.
        columns: as for `rlhf.data.prompts.parsed_rows`.

    Raises:
        DataError: the file cannot be read, or a row has another shape.
    """

    def parse(row: Mapping[str, Any]) -> dict[str, Any]:
        # `parsed_rows` has counted this row already.
        number = counts["rows"] - 1
        name = row.get("id", number)
        return _best_of_n(row, name, _subset(row, path))

    for _, _, candidates_row in parsed_rows(path, counts, parse, columns):
        if not isinstance(candidates_row, UnusableRow):
            yield candidates_row


def _subset(row: Mapping[str, Any], path: Path | str) -> str:
    """The row's own subset, else the file's name."""
    subset = row.get("subset")
    if not subset:
        return Path(path).stem
    # Figures are sorted and named by it.
    return subset if isinstance(subset, str) else plain_json(subset)


def _best_of_n(row: Mapping[str, Any], name: Any, subset: str) -> dict[str, Any]:
    """One row of RewardBench 2.

    Example:
        {"id": "7", "subset": "Math", "prompt": "2+2?", "chosen": ["4"], "rejected": ["5", "3", "22"]}
    """
    row = as_row(row)
    chosen, rejected = (row.mapped(name) if row.maps(name) else row.get(name) for name in SIDES)
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise DataError(
            f"chosen and rejected must be lists of text; found {chosen!r:.80} and {rejected!r:.80}. "
            "Rows with one of each are read with version=1."
        )
    if not chosen or not rejected:
        raise UnusableRow(
            "one_sided",
            f"{len(chosen)} chosen, {len(rejected)} rejected; it takes one of each.",
        )
    if row.get("num_correct") not in (None, len(chosen)):
        raise UnusableRow(
            "num_correct",
            f"num_correct is {row['num_correct']!r}, but chosen holds {len(chosen)}.",
        )
    # This subset is scored by pairs of rows, `ref:1` and `tied:1`: ids must say which belong together.
    if subset == "Ties" and not re.fullmatch(r"(ref|tied):\d+", str(name)):
        raise UnusableRow("ties_id", f"id is {name!r}; ids of the subset Ties read ref:1 or tied:1.")
    # The question is read of the row itself, with all that belongs to it.
    plain_row = {
        "prompt": to_messages(row),
        "responses": chosen + rejected,
        "id": name,
        "subset": subset,
        "num_correct": len(chosen),
    }
    return to_candidates(plain_row)


def to_number(value: Any, key: str) -> float:
    """A score as JSON has it; null is NaN, and what is beyond any score infinite. Raises UnusableRow."""
    # JSON has no NaN: `scored_line` writes null for it.
    if value is None:
        return math.nan
    # Python counts true and false among its integers.
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise UnusableRow(f"{key}_not_numbers", f"{key} must be numbers or null; found {value!r:.80}.")
    try:
        # JSON's integers have no bound, floats do.
        number = float(value)
    except (OverflowError, ValueError):
        raise UnusableRow(
            f"{key}_not_numbers",
            f"{key} must be numbers of 64 bits; found {value!r:.80}.",
        ) from None
    # Whoever adds such numbers up would get infinity; whoever reads scores leaves out those that are not
    # finite.
    return math.copysign(math.inf, number) if abs(number) > LARGEST_SCORE else number


def candidates_line(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a `candidates` shard as others read it.

    Example:
        {"prompt": [{"role": "user", "content": "Hi"}], "responses": ["Hello!", "Yo."],
         "finish_reasons": ["stop", "stop"], "temperatures": [1.0, 0.7], "seeds": [41, 97]}
    """
    candidates = row["candidates"]
    line = {"prompt": row["messages"]}
    plural_names = {
        "responses": "text",
        "finish_reasons": "finish_reason",
        "temperatures": "temperature",
        "seeds": "seed",
    }
    for plural, name in plural_names.items():
        line[plural] = [candidate[name] for candidate in candidates]
    return line


def scored_line(row: Mapping[str, Any], scores: list[float]) -> dict[str, Any]:
    """A row that `read_responses` gave, with its scores as `rewards`; one that is not finite becomes null.

    Example:
        {"prompt": [{"role": "user", "content": "Hi"}], "responses": ["Hello!", ""], "rewards": [1.5, null]}
    """
    line = {
        "prompt": row["messages"],
        "responses": [candidate["text"] for candidate in row["candidates"]],
        "rewards": [score if math.isfinite(score) else None for score in scores],
    }
    # What the row held besides comes last, as it stood.
    return line | json.loads(row["extra"])


def pair_line(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a `pairs` shard in TRL's conversational preference format, with what it was chosen by.

    Example:
        {"prompt": [{"role": "user", "content": "Hi"}],
         "chosen": [{"role": "assistant", "content": "Hello!"}],
         "rejected": [{"role": "assistant", "content": "Yo."}],
         "penalised_margin": 1.8, "chosen_score": 1.5, "rejected_score": -0.3, …}
    """
    line = {"prompt": row["messages"]}
    for side in SIDES:
        line[side] = [{"role": "assistant", "content": row[side]}]
    # Not `margin`: TRL's RewardTrainer subtracts a column of that name in its loss.
    line["penalised_margin"] = row["chosen_penalised"] - row["rejected_penalised"]
    # Token ids are left out: they mean nothing without this policy's tokenizer.
    for name in ("score", "penalised", "rank", "chars", "truncated"):
        for side in SIDES:
            line[f"{side}_{name}"] = row[f"{side}_{name}"]
    return line


class Form(Enum):
    """How rows stand in a file."""

    lines = "one JSON object a line"
    list = "one JSON list"
    object = "one JSON object, the only row"


def write_rows(path: Path, rows: Iterable[Mapping[str, Any] | str], form: Form = Form.lines) -> int:
    """Write rows, or what they are as JSON, as a stream and flush them to disk; returns how many."""
    num_rows = 0
    # People read the only object of a file, so it is indented.
    indent = 1 if form is Form.object else None
    # "\n" on every system, else the same rows would give other bytes on Windows.
    with writing(path), open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            num_rows += 1
            assert num_rows == 1 or form is not Form.object, "an object is one row"
            text = row if isinstance(row, str) else json_text(row, ascii_only=False, indent=indent)
            if form is not Form.list:
                file.write(f"{text}\n")
            elif num_rows == 1:
                file.write(f"[\n{text}")
            else:
                file.write(f",\n{text}")
        if form is Form.list:
            file.write("\n]\n" if num_rows else "[]\n")
        file.flush()
        # Whoever is told that it is written may delete what it was made of.
        os.fsync(file.fileno())
    return num_rows
