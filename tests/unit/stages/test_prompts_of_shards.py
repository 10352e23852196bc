"""The prompts that each shard of `generate` samples, and how often their file is read."""

from __future__ import annotations

import pytest

from rlhf.config.stage_configs import GenerateStage
from rlhf.data.schemas import PROMPT_SCHEMA
from rlhf.data.shards import read_rows, shard_name, write_shard
from rlhf.run.job import Job
from rlhf.stages import generate

ROWS = [{"id": f"{number:016d}", "messages": []} for number in range(23)]


@pytest.fixture
def reads(monkeypatch):
    """Files that were opened."""
    opened = []

    def counting(path, **start):
        opened.append(path)
        return read_rows(path, **start)

    monkeypatch.setattr(generate, "read_rows", counting)
    return opened


def prompts(path, rows=None):
    config = GenerateStage(shard_size=5, slice=rows)
    return generate._Prompts(Job("generate", "generate", config, {"prompts": str(path)}, "", 0))


def ids(rows):
    return [int(row["id"]) for row in rows]


@pytest.fixture
def file(tmp_path):
    write_shard(tmp_path / "train.parquet", PROMPT_SCHEMA, ROWS)
    return tmp_path / "train.parquet"


def test_rising_shards_read_a_file_once(file, reads):
    reader = prompts(file)
    assert [ids(reader.of_shard(index)) for index in (0, 1, 3, 4)] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        [15, 16, 17, 18, 19],
        [20, 21, 22],
    ]
    assert len(reads) == 1


@pytest.mark.parametrize("order", [(2, 0, 1), (4, 4), (3, 2, 4, 0)])
def test_any_order_gives_the_same_rows(file, order):
    reader = prompts(file)
    for index in order:
        first = 5 * index
        assert ids(reader.of_shard(index)) == list(range(first, min(first + 5, 23)))


def test_a_slice_is_cut_from_its_own_beginning(file, reads):
    reader = prompts(file, [7, 18])
    assert [ids(reader.of_shard(index)) for index in range(3)] == [
        [7, 8, 9, 10, 11],
        [12, 13, 14, 15, 16],
        [17],
    ]
    assert len(reads) == 1


def test_shards_are_taken_as_they_are(tmp_path):
    for index, rows in enumerate((ROWS[:2], ROWS[2:9])):
        write_shard(tmp_path / shard_name(index), PROMPT_SCHEMA, rows)
    reader = prompts(tmp_path)
    assert ids(reader.of_shard(1)) == list(range(2, 9)) and ids(reader.of_shard(0)) == [0, 1]
