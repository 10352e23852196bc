"""Token ids of training data in a memory-mapped file that all ranks read in the same order."""

from __future__ import annotations

import itertools
import logging
import os
import random
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch.distributed as dist

from rlhf.data.shards import fsync_dir
from rlhf.errors import TemplateRefuses

TokenRow = dict[str, list[int]]
_log = logging.getLogger(__name__)


def token_dataset(path: Path, columns: list[str], make_rows: Callable[[], Iterator[TokenRow]]) -> Any:
    """A `datasets.Dataset` of what rank 0 gets from `make_rows`; the other ranks wait for its file.

    A file, because ranks with in-memory datasets can come to differ, and because tokens need not fit in memory.
    """
    from datasets import Dataset

    if not dist.is_initialized() or dist.get_rank() == 0:
        _write(path, columns, make_rows())
    if dist.is_initialized():
        dist.barrier()
    return Dataset.from_file(str(path))


def count_refused(counts: Counter[str], error: TemplateRefuses) -> None:
    """Count a row that the chat template refuses; the first is written to the log."""
    counts["dropped/refused_by_template"] += 1
    if counts["dropped/refused_by_template"] == 1:
        _log.warning("rows that the chat template refuses are dropped; the first: %s", error)


def split(num_rows: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of training and held-out rows, both in order; the held-out ones are a seeded sample."""
    held_out = set(random.Random(f"held out {seed}").sample(range(num_rows), int(num_rows * share)))
    return [i for i in range(num_rows) if i not in held_out], sorted(held_out)


def pack(lengths: list[int], max_length: int) -> list[list[int]]:
    """Indices of rows that share a pack of at most `max_length` tokens; a longer row stands alone.

    Best fit, longest first: each row goes where it leaves the least room.
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(room, (lengths[index], 0))
        left, number = room.pop(place) if place < len(room) else (max_length, len(packs))
        if number == len(packs):
            packs.append([])
        packs[number].append(index)
        insort(room, (left - lengths[index], number))
    return packs


def _write(path: Path, columns: list[str], rows: Iterator[TokenRow]) -> None:
    schema = pa.schema([(name, pa.list_(pa.int32())) for name in columns])
    partial = path.with_name(f".{path.name}.partial")
    with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        while block := list(itertools.islice(rows, 1000)):
            stream.write_batch(pa.RecordBatch.from_pylist(block, schema=schema))
    os.replace(partial, path)
    fsync_dir(path.parent)
