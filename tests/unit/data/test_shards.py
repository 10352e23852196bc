"""Shards appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlhf.data.schemas import SCORES_SCHEMA
from rlhf.data.shards import (
    num_rows,
    read_all_rows,
    read_counts,
    read_rows,
    shard_name,
    shard_paths,
    sum_counts,
    write_atomic,
    write_shard,
)

ROWS = [{"id": str(i), "scores": [float(i)]} for i in range(600)]


def test_rows_and_counts_come_back(tmp_path: Path) -> None:
    path = tmp_path / shard_name(3)
    write_shard(path, SCORES_SCHEMA, iter(ROWS), {"b": 2, "a": 1})
    assert path.name == "shard_00003.parquet"
    assert list(read_rows(path)) == ROWS
    assert list(read_rows(path, ["id"])) == [{"id": row["id"]} for row in ROWS]
    assert num_rows(path) == 600
    assert read_counts(path) == {"a": 1, "b": 2}


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", SCORES_SCHEMA, ROWS, {"b": 2, "a": 1})
    write_shard(tmp_path / "b", SCORES_SCHEMA, ROWS, {"a": 1, "b": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_folder_is_read_in_order_and_summed(tmp_path: Path) -> None:
    for index in (10, 2, 0):
        write_shard(
            tmp_path / shard_name(index), SCORES_SCHEMA, [ROWS[index]], {"rows": 1, f"only/{index}": 1}
        )
    (tmp_path / ".shard_00001.parquet.tmp").write_bytes(b"half")
    assert [path.name for path in shard_paths(tmp_path)] == [shard_name(i) for i in (0, 2, 10)]
    assert [row["id"] for row in read_all_rows(tmp_path)] == ["0", "2", "10"]
    assert sum_counts(tmp_path) == {"rows": 3, "only/0": 1, "only/2": 1, "only/10": 1}


def test_a_shard_may_be_empty(tmp_path: Path) -> None:
    write_shard(tmp_path / shard_name(0), SCORES_SCHEMA, [], {"rows": 4})
    assert num_rows(tmp_path / shard_name(0)) == 0
    assert list(read_rows(tmp_path / shard_name(0))) == []
    assert sum_counts(tmp_path) == {"rows": 4}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", b"old")
    write_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
