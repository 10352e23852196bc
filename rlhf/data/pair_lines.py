"""The output of `rlhf.pair`: `rlhf.data.responses.pair_line` of every pair as JSON, made on columns."""

from __future__ import annotations

from collections.abc import Iterator
from json.encoder import encode_basestring
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from rlhf.data.json_text import json_text
from rlhf.data.records import SIDES
from rlhf.data.responses import pair_line
from rlhf.data.schemas import PAIRS_SCHEMA
from rlhf.data.shards import shard_paths

_BATCH_ROWS = 2048
_TEXTS = ("messages", *SIDES)
_NUMBERS = tuple(f"{side}_{name}" for name in ("score", "penalised") for side in SIDES)
_REST = tuple(f"{side}_{name}" for name in ("rank", "chars", "truncated") for side in SIDES)
_LEAST, _MOST = 1e-4, 1e15
"""Between these Python and orjson write a number with the same digits, and neither with an exponent."""


def _template() -> str:
    """A line with `%s` for each value, in the order of `pair_line`."""
    parts = ['"prompt": %s']
    parts += [f'"{side}": [{{"role": "assistant", "content": %s}}]' for side in SIDES]
    parts += [f'"{name}": %s' for name in ("penalised_margin", *_NUMBERS, *_REST)]
    return "{" + ", ".join(parts) + "}"


_TEMPLATE = _template()


def pair_lines(folder: Path) -> Iterator[str]:
    """The rows of a folder of `pairs` shards as lines of JSONL, a batch in memory at a time."""
    columns = [name for name in PAIRS_SCHEMA.names if name in (*_TEXTS, *_NUMBERS, *_REST)]
    for path in shard_paths(folder):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                yield from _lines_of(batch)


def _lines_of(batch: pa.RecordBatch) -> Iterator[str]:
    numbers = {name: batch[name].to_numpy() for name in _NUMBERS}
    with np.errstate(over="ignore", invalid="ignore"):
        margins = numbers["chosen_penalised"] - numbers["rejected_penalised"]
    if not all(np.isfinite(column).all() for column in (margins, *numbers.values())):
        # JSON has no word for them; `json_text` says null.
        yield from (json_text(pair_line(row), ascii_only=False) for row in batch.to_pylist())
        return
    columns = [_prompts(batch["messages"])]
    for side in SIDES:
        columns.append(list(map(encode_basestring, batch[side].to_pylist())))
    for column in (margins, *numbers.values()):
        columns.append(_written(column))
    for name in _REST:
        columns.append(_values(batch[name].to_pylist()))
    yield from map(_TEMPLATE.__mod__, zip(*columns, strict=True))


def _prompts(messages: pa.ListArray) -> list[str]:
    """Conversations as JSON."""
    roles, contents = (part.to_pylist() for part in messages.flatten().flatten())
    turns = []
    for role, content in zip(roles, contents, strict=True):
        turns.append(f'{{"role": {encode_basestring(role)}, "content": {encode_basestring(content)}}}')
    ends = np.cumsum(messages.value_lengths().to_numpy()).tolist()
    prompts = []
    start = 0
    for end in ends:
        prompts.append(f"[{', '.join(turns[start:end])}]")
        start = end
    return prompts


def _written(numbers: np.ndarray) -> list[str]:
    """Finite floats as Python writes them."""
    sizes = np.abs(numbers)
    is_plain = (sizes == 0) | ((sizes >= _LEAST) & (sizes < _MOST))
    return _values(numbers.tolist()) if is_plain.all() else list(map(repr, numbers.tolist()))


def _values(values: list[float] | list[int] | list[bool]) -> list[str]:
    """Each value as JSON, by one call for all."""
    text = orjson.dumps(values).decode()
    return text[1:-1].split(",")
