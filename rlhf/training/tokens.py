"""Token ids of training data in a memory-mapped file that all ranks read in the same order."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch.distributed as dist

from rlhf.data.shards import fsync_dir

TokenRow = dict[str, list[int]]


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


def _write(path: Path, columns: list[str], rows: Iterator[TokenRow]) -> None:
    schema = pa.schema([(name, pa.list_(pa.int32())) for name in columns])
    partial = path.with_name(f".{path.name}.partial")
    with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        while block := list(itertools.islice(rows, 1000)):
            stream.write_batch(pa.RecordBatch.from_pylist(block, schema=schema))
    os.replace(partial, path)
    fsync_dir(path.parent)
