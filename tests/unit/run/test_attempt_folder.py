"""What an attempt wrote counts when the driver has taken it, and of a lost one nothing else does."""

import pytest

from rlhf.data.digest import sealed
from rlhf.data.schemas import SCORES_SCHEMA
from rlhf.data.shards import damaged_shards, shard_name, shard_paths, write_shard
from rlhf.errors import StorageError
from rlhf.run import attempt_folder as attempts

ROWS = [{"id": "a", "scores": [1.0]}]


def shard(folder, index=3):
    write_shard(folder / shard_name(index), SCORES_SCHEMA, ROWS)


def test_a_shard_appears_when_the_driver_takes_it(tmp_path):
    own = attempts.attempt_folder(tmp_path, "a1/0")
    shard(own)
    assert shard_paths(tmp_path) == []
    attempts.take_shard(tmp_path, own, 3)
    assert [path.name for path in shard_paths(tmp_path)] == [shard_name(3)]
    assert damaged_shards(tmp_path) == [] and list(own.iterdir()) == []


def test_a_worker_of_an_attempt_that_has_ended_finds_no_place(tmp_path):
    own = attempts.attempt_folder(tmp_path, "a1/0")
    attempts.end_attempts(tmp_path)
    with pytest.raises((OSError, StorageError)):
        shard(own)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_sealed", [True, False])
def test_of_a_lost_training_the_whole_checkpoints_are_kept(tmp_path, is_sealed):
    checkpoint = attempts.attempt_folder(tmp_path, "a1") / "checkpoint-20"
    checkpoint.mkdir()
    if is_sealed:
        (checkpoint / attempts.SEAL).write_bytes(sealed({"world_size": 4, "files": {}}))
    assert list(attempts.unfinished_checkpoints(tmp_path)) == [checkpoint]
    attempts.end_attempts(tmp_path)
    assert (tmp_path / "checkpoint-20").is_dir() == is_sealed
    assert attempts.pinned_ranks(tmp_path) == (4 if is_sealed else None)
    again = attempts.attempt_folder(tmp_path, "a2")
    attempts.take_checkpoints(tmp_path, again)
    assert (again / "checkpoint-20").is_dir() == is_sealed


def test_all_that_a_finished_training_wrote_is_taken_also_by_a_second_driver(tmp_path):
    own = attempts.attempt_folder(tmp_path, "a1")
    for folder in (own, tmp_path):
        (folder / "model").mkdir()
        (folder / "model" / f"of_{folder.name}").touch()
    (own / "metrics.jsonl").touch()
    attempts.take_all(own, tmp_path)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["of_a1"]
    assert (tmp_path / "metrics.jsonl").is_file()
    assert attempts.stage_folder(own) == tmp_path == attempts.stage_folder(tmp_path)
