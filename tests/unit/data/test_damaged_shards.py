"""A shard of unfinished work counts only when it is what was written."""

from __future__ import annotations

import pyarrow as pa
import pytest

from rlhf.data.shards import damaged_shards, num_rows, read_counts, read_rows, shard_name, write_shard

SCHEMA = pa.schema([("n", pa.int64())])


def written(folder, index, numbers=(1, 2)):
    path = folder / shard_name(index)
    write_shard(path, SCHEMA, [{"n": number, "unknown": 0} for number in numbers], {"b": 0, "a": 1})
    return path


def test_names_are_padded():
    assert shard_name(3) == "shard_00003.parquet"


def test_what_was_written_is_not_damaged(tmp_path):
    path = written(tmp_path, 0)
    assert damaged_shards(tmp_path) == []
    assert list(read_rows(path)) == [{"n": 1}, {"n": 2}] and num_rows(path) == 2
    assert read_counts(path) == {"a": 1, "b": 0}


@pytest.mark.parametrize("damage", ["byte", "digest", "no digest", "digest is no text"])
def test_damage_is_found(tmp_path, damage):
    written(tmp_path, 0)
    path = written(tmp_path, 1)
    digest = tmp_path / f".{path.name}.sha256"
    if damage == "byte":
        data = bytearray(path.read_bytes())
        data[10] ^= 1
        path.write_bytes(bytes(data))
    elif damage == "digest":
        digest.write_text("0" * 64)
    elif damage == "no digest":
        digest.unlink()
    else:
        digest.write_bytes(b"\xff\xfe")
    assert damaged_shards(tmp_path) == [path]


def test_many_rows_come_in_order_and_by_column(tmp_path):
    path = written(tmp_path, 0, range(600))
    assert [row["n"] for row in read_rows(path, ["n"])] == list(range(600))
