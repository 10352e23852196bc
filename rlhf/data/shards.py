"""Parquet shards that appear whole or not at all, and are read as a stream."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf.data.digest import digest_file
from rlhf.errors import writing

_COUNTS = b"rlhf.counts"


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"shard_{index:05d}.parquet"


def shard_paths(folder: Path) -> list[Path]:
    """All finished shards of an artifact, in order."""
    return sorted(folder.glob("shard_*.parquet"))


def fsync_dir(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that its name never shows half of it, and survives power loss."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_dir(path.parent)


def _note(path: Path) -> Path:
    """Where the digest of an unfinished stage's shard stands; hidden, so no part of the artifact."""
    return path.with_name(f".{path.name}.sha256")


def damaged_shards(folder: Path) -> list[Path]:
    """The shards of an unfinished stage that are not what `write_shard` wrote, or of which nobody knows."""
    return [path for path in shard_paths(folder) if not _is_as_written(path)]


def _is_as_written(path: Path) -> bool:
    return _note(path).is_file() and _note(path).read_bytes() == digest_file(path).encode()


def write_shard(
    path: Path, schema: pa.Schema, rows: Iterable[Mapping[str, Any]], counts: Mapping[str, int] | None = None
) -> None:
    """Write one shard, after its digest, with what was counted while making it; equal rows give equal bytes."""
    metadata = {_COUNTS: json.dumps(dict(counts or {}), sort_keys=True).encode()}
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema.with_metadata(metadata))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    write_atomic(_note(path), hashlib.sha256(data).hexdigest().encode())
    write_atomic(path, data)


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of one shard, a batch in memory at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256, columns=columns):
            yield from batch.to_pylist()


def read_all_rows(folder: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of all shards of an artifact, in order."""
    for path in shard_paths(folder):
        yield from read_rows(path, columns)


def num_rows(path: Path) -> int:
    """Rows of one shard, from its footer."""
    return pq.read_metadata(path).num_rows


def read_counts(path: Path) -> dict[str, int]:
    """What was counted while a shard was made."""
    metadata = pq.read_schema(path).metadata or {}
    return json.loads(metadata.get(_COUNTS, b"{}"))


def sum_counts(folder: Path) -> dict[str, int]:
    """The counts of all shards of a folder, added up."""
    total: dict[str, int] = {}
    for path in shard_paths(folder):
        for key, value in read_counts(path).items():
            total[key] = total.get(key, 0) + value
    return total
