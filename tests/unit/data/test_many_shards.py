"""Many rows and shards: what is hashed, opened and held of them, counted and not timed."""

from __future__ import annotations

import os
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.data import shards
from rlhf.data.digest import digest_files
from rlhf.data.origins import Origin
from rlhf.data.packed_prompts import PackedPrompts
from rlhf.data.records import Prompt, to_row
from rlhf.data.response_columns import scored_tables
from rlhf.data.schemas import PROMPT_SCHEMA
from rlhf.data.shards import (
    MOST_SHARDS,
    damaged_shards,
    fewest_rows,
    not_as_written,
    read_rows,
    rows_of_shard,
    shard_name,
    shard_paths,
    sum_counts,
    write_shard,
    write_table,
)

SCHEMA = pa.schema([("n", pa.int64())])


def written(folder, index):
    write_shard(folder / shard_name(index), SCHEMA, [{"n": index}], {"rows": 1, "odd": index % 2})
    return folder / shard_name(index)


def rot(path):
    """Change a byte as a bad disk does: size, time and inode stay."""
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    with open(path, "r+b") as file:
        file.write(bytes(data))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def hashed(monkeypatch):
    """Names of files whose bytes were read for a checksum."""
    names = []
    monkeypatch.setattr(
        shards, "digest_files", lambda folder, wanted: names.extend(wanted) or digest_files(folder, wanted)
    )
    return names


def test_shards_that_nobody_wrote_to_are_not_hashed_before_the_commit(tmp_path, hashed):
    for index in range(5):
        written(tmp_path, index)
    assert damaged_shards(tmp_path, are_read=False) == [] and hashed == []
    assert damaged_shards(tmp_path) == [] and len(hashed) == 5, "what a stage reads again is looked at"


@pytest.mark.parametrize("change", ["touched", "copied", "shorter"])
def test_a_shard_that_may_have_changed_is_hashed(tmp_path, hashed, change):
    written(tmp_path, 0)
    path = written(tmp_path, 1)
    data = path.read_bytes()
    if change == "touched":
        os.utime(path, ns=(1, 1))
    elif change == "copied":
        path.rename(tmp_path / "moved")
        path.write_bytes(data)
    else:
        path.write_bytes(data[:-1])
    assert damaged_shards(tmp_path, are_read=False) == ([path] if change == "shorter" else [])
    assert hashed == [path.name]


def test_rot_that_leaves_no_trace_is_found_by_the_checksums_of_the_commit(tmp_path):
    paths = [written(tmp_path, index) for index in range(3)]
    rot(paths[1])
    names = [path.name for path in paths]
    assert damaged_shards(tmp_path, are_read=False) == []
    assert not_as_written(tmp_path, digest_files(tmp_path, names)) == [paths[1]]
    assert damaged_shards(tmp_path) == [paths[1]]


def test_counts_of_unfinished_work_are_summed_without_opening_a_shard(tmp_path, monkeypatch):
    for index in range(4):
        written(tmp_path, index)
    expected = {"odd": 2, "rows": 4}
    for path in tmp_path.glob(".*.sha256"):
        path.rename(path.with_suffix(".away"))
    assert sum_counts(tmp_path) == expected
    for path in tmp_path.glob(".*.away"):
        path.rename(path.with_suffix(".sha256"))
    monkeypatch.setattr(pq, "read_schema", lambda path: pytest.fail(f"{path} was opened"))
    assert list(sum_counts(tmp_path).items()) == list(expected.items())


def test_a_hundred_thousand_shards_stay_in_order(tmp_path):
    for index in (100_000, 99_999, 3):
        (tmp_path / shard_name(index)).touch()
    assert [path.name for path in shard_paths(tmp_path)] == [shard_name(i) for i in (3, 99_999, 100_000)]


def test_as_many_shards_as_a_folder_holds_are_enough():
    assert fewest_rows(1_000_000) * MOST_SHARDS >= 1_000_000 > (fewest_rows(1_000_000) - 1) * MOST_SHARDS
    assert sum(rows_of_shard(index, 256) for index in range(MOST_SHARDS)) == 4_800_000
    assert [rows_of_shard(index, 256) for index in (0, 1249, 1250, 2500)] == [256, 256, 512, 1024]


def test_tables_of_a_long_file_grow(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MOST_SHARDS", 8)
    lines = [f'{{"prompt": "q{i}", "responses": ["a", "b"], "rewards": [1, 2]}}\n' for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    tables = list(scored_tables(tmp_path / "rows.jsonl", Counter(), 2))
    assert [len(table["scores"]) for table in tables] == [2, 2, 4, 4, 8]


@pytest.mark.parametrize("start", [0, 3, 255, 256, 700, 999, 1000, 2000])
def test_rows_before_the_first_wanted_are_not_made(tmp_path, start):
    table = pa.table({"n": list(range(1000))})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=300)
    assert [row["n"] for row in read_rows(tmp_path / "rows.parquet", start=start)] == list(range(1000))[
        start:
    ]


def prompts(number):
    rng = random.Random(0)
    found = []
    for index in range(number):
        messages = [{"role": "user", "content": f"{index} ü🙂\n" * rng.randint(1, 9)}] * rng.choice([1, 3])
        found.append(Prompt(f"{rng.getrandbits(64):016x}", tuple(messages)))
    return found


@pytest.mark.parametrize("number", [0, 1, 5000])
def test_packed_prompts_become_the_file_that_objects_would(tmp_path, number):
    packed = PackedPrompts()
    for prompt in (all_prompts := prompts(number)):
        packed.add(prompt, Origin("quiz", None))
    places = packed.shuffled(seed=7)
    from hashlib import sha256

    ordered = sorted(all_prompts, key=lambda prompt: sha256(f"7/{prompt.id}".encode()).digest())
    assert [packed.name(place) for place in places.tolist()] == [prompt.id for prompt in ordered]
    assert packed.origins(places[:2]) == dict.fromkeys([p.id for p in ordered[:2]], Origin("quiz", None))
    write_shard(tmp_path / "objects", PROMPT_SCHEMA, map(to_row, ordered))
    write_table(tmp_path / "packed", packed.take(places))
    assert (tmp_path / "packed").read_bytes() == (tmp_path / "objects").read_bytes()


def test_a_packed_prompt_takes_its_text_and_little_more(monkeypatch):
    import sys

    packed = PackedPrompts()
    text = "x" * 100
    packed.add(Prompt("0" * 16, ({"role": "user", "content": text},)), Origin(None, None))
    assert sys.getsizeof(packed._messages[0]) < 100 + 80
    packed.take(packed.shuffled(0))
    assert packed._messages == [b""], "its text is not held twice"
