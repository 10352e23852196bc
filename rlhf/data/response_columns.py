"""Scored responses as columns, the plain lines of JSONL without a record in between.

`rlhf.data.responses.read_responses` is the definition. A line that `orjson` takes, whose question is text or
plain messages and whose other columns say nothing about the question, is read here at a tenth of the cost;
every other row is given to the definition, from its bytes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache, partial
from hashlib import sha256
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from rlhf.data.columns import Columns, is_known, is_lettered
from rlhf.data.files import Line, no_rows, read_unparsed
from rlhf.data.finish_reasons import REASON_COLUMNS
from rlhf.data.pairing import LARGEST_SCORE
from rlhf.data.prompts import parsed_row
from rlhf.data.questions import TABLE
from rlhf.data.records import FINISHED
from rlhf.data.responses import Distinct, read_responses, to_candidates
from rlhf.data.rows import Row, plain_name
from rlhf.data.schemas import CANDIDATES_SCHEMA, SCORES_SCHEMA
from rlhf.data.shards import rows_of_shard
from rlhf.data.turns import ROLES, marked_turns

_LARGEST_INTEGER = 2**63
"""From here on orjson makes floats of integers."""
_MOST_LEVELS = 8
"""Of a column that nobody reads; with more the definition looks how many there are."""
_SCALARS = frozenset((str, int, float, bool, type(None)))
_TURN = '["%s", %s]'
_NUMBERS = frozenset((int, float))
_REASONS = frozenset((FINISHED, "length"))
_READ = ("prompt", "responses", "rewards", "finish_reasons")
_MAY_BE_READ = frozenset((*TABLE, *REASON_COLUMNS, "response_a", "response_b"))

PlainRow = tuple[str, list[str], list[str], list[str], list[str], list[float]]
"""Id; roles and contents of the messages; texts, finish reasons and scores of the responses."""


class _Columns:
    """What rows hold, in a list for each column; of a column of lists the lengths, and all values in one."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.num_turns: list[int] = []
        self.roles: list[str] = []
        self.contents: list[str] = []
        self.num_texts: list[int] = []
        self.texts: list[str] = []
        self.reasons: list[str] = []
        self.scores: list[float] = []

    # Nothing of a row is kept but texts and numbers: Python looks through lists of lists again and again for
    # circles, which took a quarter of the time.
    def add(self, row: PlainRow) -> None:
        """Add a row."""
        name, roles, contents, texts, reasons, scores = row
        self.ids.append(name)
        self.num_turns.append(len(roles))
        self.roles += roles
        self.contents += contents
        self.num_texts.append(len(texts))
        self.texts += texts
        self.reasons += reasons
        self.scores += scores

    def _finish_reasons(self) -> pa.Array:
        # Mostly there is one for all, which is told at once.
        if self.reasons.count(FINISHED) == len(self.reasons):
            return pa.repeat(FINISHED, len(self.reasons))
        return pa.array(self.reasons, pa.string())

    def tables(self) -> dict[str, pa.Table]:
        """The rows by `CANDIDATES_SCHEMA` and `SCORES_SCHEMA`, under the names of their folders."""
        scores = np.array(self.scores, dtype=np.float64)
        # As `to_number` has it, of all at once.
        beyond = np.abs(scores) > LARGEST_SCORE
        scores[beyond] = np.copysign(np.inf, scores[beyond])
        unknown = pa.array(np.full(len(scores), np.nan))
        no_seeds = np.zeros(len(scores), dtype=np.int64)
        no_token_ids = pa.array([], pa.int32())
        candidates = {
            "token_ids": _lists(no_seeds, no_token_ids),
            "text": pa.array(self.texts, pa.string()),
            "finish_reason": self._finish_reasons(),
            "logprob": unknown,
            "seed": pa.array(no_seeds),
            "temperature": unknown,
        }
        roles = pa.array(self.roles, pa.string())
        contents = pa.array(self.contents, pa.string())
        columns = {
            "id": pa.array(self.ids, pa.string()),
            "messages": _lists(self.num_turns, _structs(role=roles, content=contents)),
            "prompt_token_ids": _lists(no_seeds[: len(self.ids)], no_token_ids),
            "candidates": _lists(self.num_texts, _structs(**candidates)),
            "scores": _lists(self.num_texts, pa.array(scores)),
        }
        tables = {}
        for name, schema in (("candidates", CANDIDATES_SCHEMA), ("scores", SCORES_SCHEMA)):
            arrays = [columns[field.name].cast(field.type) for field in schema]
            tables[name] = pa.Table.from_arrays(arrays, schema=schema)
        return tables


def scored_tables(
    path: Path | str, counts: Counter[str], rows_per_table: int, *, columns: Columns | None = None
) -> Iterator[dict[str, pa.Table]]:
    """The rows of `read_responses(path, counts, "rewards")`, as tables for `candidates` and for `scores`.

    Args:
        path: as for `read_responses`.
        counts: as for `read_responses`.
        rows_per_table: so many in one, and more in later ones (`rows_of_shard`); only the last has fewer.
        columns: as for `read_responses`.

    Raises:
        DataError: as by `read_responses`.
    """
    if columns is None:
        rows = _distinct_rows(path, counts)
    else:
        rows = map(_plain_row, read_responses(path, counts, "rewards", columns=columns))
    block = _Columns()
    num_tables = 0
    for row in rows:
        block.add(row)
        if len(block.ids) == rows_of_shard(num_tables, rows_per_table):
            yield block.tables()
            num_tables += 1
            block = _Columns()
    if block.ids:
        yield block.tables()


def _distinct_rows(path: Path | str, counts: Counter[str]) -> Iterator[PlainRow]:
    distinct = Distinct(path, counts)
    parse = partial(to_candidates, numbers="rewards")
    number = 0
    for unparsed in read_unparsed(path):
        if isinstance(unparsed, Line):
            plain = plain_row(unparsed.data)
            if plain is not None:
                number += 1
                counts["rows"] += 1
                if distinct.is_new(plain[0], plain[3], plain[5]):
                    yield plain
                continue
            record = unparsed.record()
            if record is None:
                continue
        else:
            record = unparsed
        number += 1
        row = parsed_row(path, number, Row(record), counts, parse)
        if distinct.keeps(row, number, record.get("rewards")):
            yield _plain_row(row)
    if not number:
        raise no_rows(path)
    distinct.refuse_nothing()


def _plain_row(row: dict[str, Any]) -> PlainRow:
    """A row of `read_responses`."""
    return (
        row["id"],
        [message["role"] for message in row["messages"]],
        [message["content"] for message in row["messages"]],
        [candidate["text"] for candidate in row["candidates"]],
        [candidate["finish_reason"] for candidate in row["candidates"]],
        row["scores"],
    )


def plain_row(line: bytes) -> PlainRow | None:
    """What `read_responses` would read in a line; None where the definition must say."""
    try:
        row = orjson.loads(line)
    # Also of what only Python takes for JSON: NaN, half a surrogate pair, numbers beyond all floats.
    except ValueError:
        return None
    if type(row) is not dict or not _is_plain(tuple(row)):
        return None
    texts = row["responses"]
    scores = row["rewards"]
    reasons = row.get("finish_reasons")
    if type(texts) is not list or type(scores) is not list or not texts or len(texts) != len(scores):
        return None
    if reasons is None:
        reasons = [FINISHED] * len(texts)
    try:
        # All of them are text, in one look.
        "".join(texts)
        is_read = len(reasons) == len(texts) and type(reasons) is list and _REASONS.issuperset(reasons)
    except TypeError:
        return None
    if not is_read or not _NUMBERS.issuperset(map(type, scores)):
        return None
    if max(scores) >= _LARGEST_INTEGER or min(scores) <= -_LARGEST_INTEGER:
        return None
    if len(row) > len(_READ) - 1 and not all(_is_shallow(row[name]) for name in row if name not in _READ):
        return None
    turns = _turns(row["prompt"])
    if turns is None:
        return None
    roles, contents = turns
    return _prompt_id(roles, contents), roles, contents, texts, reasons, scores


@lru_cache(maxsize=1024)
def _is_plain(names: tuple[str, ...]) -> bool:
    """Whether a row has the columns that are read, and beside them only those that say nothing of them."""
    if not {"prompt", "responses", "rewards"} <= set(names):
        return False
    for name in names:
        if name in _READ:
            continue
        # In another spelling it may be one that is read.
        if plain_name(name) != name or name in _MAY_BE_READ or not is_known(name) or is_lettered(name):
            return False
    return True


def _is_shallow(value: Any, levels: int = _MOST_LEVELS) -> bool:
    if type(value) in _SCALARS:
        return True
    elements = value.values() if type(value) is dict else value
    return levels > 0 and all(_is_shallow(element, levels - 1) for element in elements)


def _turns(prompt: Any) -> tuple[list[str], list[str]] | None:
    """Roles and contents of a question that is plain text, or messages of a role and a text each."""
    if type(prompt) is str:
        text = prompt.strip()
        # A list as text, or a conversation with marks.
        if not text or text[0] == "[" or (_may_be_marked(text) and marked_turns(prompt) is not None):
            return None
        return ["user"], [text]
    if type(prompt) is not list or not prompt:
        return None
    roles: list[str] = []
    contents: list[str] = []
    for turn in prompt:
        if type(turn) is not dict or len(turn) != 2:
            return None
        role = turn.get("role")
        content = turn.get("content")
        if role not in ROLES or type(content) is not str or not content.strip():
            return None
        roles.append(role)
        contents.append(content.strip())
    return (roles, contents) if roles[-1] == "user" else None


def _may_be_marked(text: str) -> bool:
    return ":" in text or "<extra_id_1>" in text


def _prompt_id(roles: list[str], contents: list[str]) -> str:
    """`records.prompt_id` of messages; its very text, without the encoder that it makes for each."""
    turns = map(_TURN.__mod__, zip(roles, map(encode_basestring, contents), strict=True))
    text = f"[{', '.join(turns)}]"
    return sha256(text.encode()).hexdigest()[:16]


def _lists(lengths: list[int] | np.ndarray, values: pa.Array) -> pa.ListArray:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _structs(**columns: pa.Array) -> pa.StructArray:
    return pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
