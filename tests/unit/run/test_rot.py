"""Shards that a disk gives back with other bytes than were written, after a resume that did not hash them."""

from __future__ import annotations

import pytest

from rlhf.config.schema import Config
from rlhf.config.stage_configs import ScoreStage
from rlhf.data.digest import sealed
from rlhf.data.schemas import CANDIDATES_SCHEMA, SCORES_SCHEMA
from rlhf.data.shards import read_all_rows, shard_name, write_shard
from rlhf.errors import StorageError
from rlhf.run.artifact import Artifact
from rlhf.run.job import Outcome
from rlhf.run.plan import Run
from tests.unit.data.test_many_shards import rot


class Scoring:
    """A launcher that gives every prompt the score 1; `rots` of its attempts end with a shard that has rotted."""

    def __init__(self, rots=0):
        self.ran = []
        self.rots = rots

    def launch(self, job, kind, shards):
        self.ran.append(list(shards))
        for index in shards:
            write_shard(
                job.out_path / shard_name(index),
                SCORES_SCHEMA,
                [{"id": "a", "scores": [1.0]}],
                {"prompts": 1},
            )
        if self.rots:
            self.rots -= 1
            rot(job.out_path / shard_name(shards[-1]))
        return Outcome()


class Listening(Run):
    def say(self, text):
        self.said = [*getattr(self, "said", []), text]


def scored(folder, launcher):
    candidates = folder / "candidates"
    if not candidates.exists():
        candidates.mkdir()
        for index in range(4):
            write_shard(candidates / shard_name(index), CANDIDATES_SCHEMA, [])
    run = Listening(folder / "run", Config(), launcher)
    artifact = run.stage("score", "score", ScoreStage(), {"candidates": Artifact(candidates, "d")})
    return artifact, getattr(run, "said", [])


def test_only_what_has_rotted_is_made_again(tmp_path):
    whole, _ = scored(tmp_path, launcher := Scoring())
    assert launcher.ran == [[0, 1, 2, 3]]
    other = tmp_path / "other"
    other.mkdir()
    artifact, said = scored(other, launcher := Scoring(rots=1))
    assert launcher.ran == [[0, 1, 2, 3], [3]]
    assert len(said) == 1 and "shard_00003.parquet: not what was written" in said[0]
    assert artifact.digest == whole.digest and artifact.counts == whole.counts == {"prompts": 4}
    assert len(list(read_all_rows(artifact.path))) == 4


def test_rot_of_what_an_earlier_attempt_has_kept_is_found_before_it_is_used(tmp_path):
    scored(tmp_path, Scoring())
    final = tmp_path / "run" / "score"
    identity = Run(tmp_path / "run", Config())._identity(
        "score", ScoreStage(), {"candidates": Artifact(tmp_path, "d")}
    )
    partial = final.rename(final.with_name(".score.partial"))
    (partial / "artifact.json").unlink()
    (partial / ".identity.json").write_bytes(sealed(identity))
    for index in range(3):
        write_shard(
            partial / shard_name(index), SCORES_SCHEMA, [{"id": "a", "scores": [1.0]}], {"prompts": 1}
        )
    (partial / shard_name(3)).unlink()
    rot(partial / shard_name(1))
    artifact, said = scored(tmp_path, launcher := Scoring())
    assert launcher.ran == [[3], [1]] and len(said) == 1
    assert artifact.counts == {"prompts": 4}


def test_a_disk_that_keeps_nothing_right_is_named(tmp_path):
    with pytest.raises(StorageError, match="3 times in a row the disk gave back other bytes"):
        scored(tmp_path, Scoring(rots=9))
    assert not (tmp_path / "run" / "score").exists()
