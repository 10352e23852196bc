"""Token ids of training data in a memory-mapped file that all ranks read in the same order."""

from __future__ import annotations

import itertools
import logging
import os
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rlhf.data.shards import fsync_dir
from rlhf.errors import TemplateRefuses
from rlhf.models.chat_template import spells_special_token
from rlhf.models.template import Messages
from rlhf.training.ranks import barrier, own_rank

TokenRow = dict[str, list[int]]
"""Columns of token ids: `{"input_ids": [128000, 9906, 128009], "labels": [-100, 9906, 128009]}`."""
IGNORED = -100
"""Label of a token that no loss is taken on."""
TOKENS = "tokens.arrow"
"""File of all rows, in the folder of a training under way."""
PACKS = "packs.arrow"
"""File of the rows that are trained on, joined to packs."""
PAIRS = "pairs.arrow"
"""File of the pairs of DPO, cut as they are trained on (`rlhf.training.pair_file`)."""
_ROWS_AT_A_TIME = 1000
_log = logging.getLogger(__name__)


def token_dataset(
    path: Path,
    columns: list[str],
    make_rows: Callable[[], Iterator[TokenRow]],
) -> Any:
    """A `datasets.Dataset` of what rank 0 gets from `make_rows`; the other ranks wait for its file.

    A file, because ranks with in-memory datasets can come to differ, and because tokens need not
    fit in memory.
    """
    if own_rank() == 0:
        _write(path, columns, make_rows())
    barrier()
    return Dataset.from_file(str(path))


def remove_token_files(out: Path) -> None:
    """Delete the files of token ids in a training's folder, those that are there."""
    for name in (TOKENS, PACKS, PAIRS):
        (out / name).unlink(missing_ok=True)


def count_refused(counts: Counter[str], error: TemplateRefuses) -> None:
    """Count a row that the chat template refuses or changes; the first of each reason is written to the
    log.
    """
    key = f"dropped/{error.reason}"
    counts[key] += 1
    if counts[key] == 1:
        _log.warning("rows are dropped (%s); the first: %s", error.reason.replace("_", " "), error)


def count_spelled(counts: Counter[str], tokenizer: PreTrainedTokenizerBase, messages: Messages) -> None:
    """Count a row whose contents spell a special token of the tokenizer, which is read as text."""
    if spells_special_token(tokenizer, messages) is not None:
        counts["spelled_special_tokens"] += 1


def pack(lengths: list[int], max_length: int) -> list[list[int]]:
    """Indices of rows that share a pack of at most `max_length` tokens; a longer row stands alone.

    Best fit, longest first: each row goes where it leaves the least room.

    Example:
        `pack([5, 3, 9, 2, 1], max_length=10)` gives `[[2, 4], [0, 1, 3]]`
    """
    # TRL's `pack_dataset(strategy="bfd")` makes as many packs, but other ones where rows are
    # equally long or packs equally full, so trained weights would change. It also packs each 1,000
    # rows by themselves unless told not to.
    packs: list[list[int]] = []
    # (room left, number of the pack), least room first, so that a search finds the best fit.
    rooms: list[tuple[int, int]] = []
    longest_first = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for index in longest_first:
        place = bisect_left(rooms, (lengths[index], 0))
        if place < len(rooms):
            room, number = rooms.pop(place)
        else:
            room = max_length
            number = len(packs)
            packs.append([])
        packs[number].append(index)
        insort(rooms, (room - lengths[index], number))
    return packs


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write columns as an Arrow stream that appears whole."""
    unfinished = path.with_name(f".{path.name}.partial")
    with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for batch in batches:
            stream.write_batch(batch)
    os.replace(unfinished, path)
    fsync_dir(path.parent)


def _write(path: Path, columns: list[str], rows: Iterator[TokenRow]) -> None:
    schema = pa.schema([(name, pa.list_(pa.int32())) for name in columns])
    write_batches(path, schema, _batches(schema, rows))


def _batches(schema: pa.Schema, rows: Iterator[TokenRow]) -> Iterator[pa.RecordBatch]:
    while block := list(itertools.islice(rows, _ROWS_AT_A_TIME)):
        yield pa.RecordBatch.from_pylist(block, schema=schema)
