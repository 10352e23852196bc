"""Damage of every kind to every kind of file: found by checksum, named, and redone or refused, never used."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest

from rlhf.config.schema import Config
from rlhf.data.shards import damaged_shards
from rlhf.errors import RunChanged
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run
from tests.faults import subject
from tests.faults.conftest import IN_MEMORY
from tests.faults.tally import contents


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def delete(path):
    path.unlink()


DAMAGES = [truncate, flip, empty, delete]


@pytest.fixture(scope="module")
def finished():
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        subject.prepare(Path(folder))
        subject.whole(Path(folder))
        yield Path(folder)


@pytest.fixture
def run(finished, memory):
    """A copy of the finished run whose last stage is to do."""
    shutil.copytree(finished, memory / "copy")
    shutil.rmtree(memory / "copy" / "run" / "pair")
    shutil.rmtree(memory / "copy" / "again")
    return memory / "copy"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name",
    [
        "read/candidates/shard_00001.parquet",
        "read/candidates/tokens.json",
        "read/artifact.json",
        "score/shard_00002.parquet",
        "score/artifact.json",
    ],
)
def test_a_damaged_input_is_named_and_refused(run, damage, name):
    path = run / "run" / name
    damage(path)
    before = contents_but(run / "run", path)
    with pytest.raises(RunChanged, match="damaged") as refusal:
        subject.whole(run)
    assert str(path) in str(refusal.value)
    assert f"rm -r {path.parents[len(name.split('/')) - 2]}" in str(refusal.value)
    assert contents_but(run / "run", path) == before and not (run / "run" / "pair").exists()


def contents_but(folder, path):
    """Bytes of all files but the logs and one."""
    return {
        p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p != path and "lock" not in p.name
    }


def test_the_way_out_it_names_leads_out(run, finished):
    flip(run / "run" / "score" / "shard_00001.parquet")
    with pytest.raises(RunChanged):
        subject.whole(run)
    shutil.rmtree(run / "run" / "score")
    subject.whole(run)
    assert contents(run) == contents(finished)


@pytest.mark.parametrize("damage", [truncate, flip, empty])
def test_a_damaged_stage_of_another_run_is_not_taken(finished, memory, damage):
    shutil.copytree(finished, memory / "copy")
    shutil.rmtree(memory / "copy" / "again")
    damage(memory / "copy" / "run" / "pair" / "shard_00000.parquet")
    again = Run(memory / "copy" / "again", Config(reuse=[str(memory / "copy" / "run")]))
    with pytest.raises(RunChanged, match=str(memory / "copy" / "run" / "pair" / "shard_00000.parquet")):
        subject.stages(again, memory / "copy")
    assert not (memory / "copy" / "again" / "pair").exists()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["shard_00001.parquet", ".shard_00001.parquet.sha256"])
def test_a_damaged_shard_of_unfinished_work_is_named_and_made_again(run, finished, damage, name):
    """As if killed after two of three shards."""
    partial = unfinished(run)
    damage(partial / name)
    (run / "begun").unlink()
    said = subject.whole(run)["said"]
    named = any(str(partial / "shard_00001.parquet") in line and "made again" in line for line in said)
    assert named == (damage is not delete or name.startswith(".")), "what is not there is no surprise"
    begun = [line.split()[1] for line in (run / "begun").read_text().splitlines() if ".score." in line]
    assert begun == ["1", "2"]
    assert contents(run) == contents(finished)


@pytest.mark.parametrize("damage", DAMAGES)
def test_unfinished_work_that_does_not_say_what_it_is_is_refused(run, damage):
    partial = unfinished(run)
    damage(partial / ".identity.json")
    with pytest.raises(RunChanged, match=rf"identity.json is damaged[\s\S]*rm -r {partial}"):
        subject.whole(run)
    assert (partial / "shard_00000.parquet").exists()


def unfinished(run):
    """Turn the finished `score` into the work of a killed attempt."""
    score = run / "run" / "score"
    kept = {name: (score / name).read_bytes() for name in ("shard_00000.parquet", "shard_00001.parquet")}
    identity = json.loads((score / "artifact.json").read_text())["identity"]
    shutil.rmtree(score)
    partial = score.with_name(".score.partial")
    from hashlib import sha256

    from rlhf.data.digest import sealed

    partial.mkdir()
    (partial / ".identity.json").write_bytes(sealed(identity))
    for name, data in kept.items():
        (partial / name).write_bytes(data)
        (partial / f".{name}.sha256").write_text(sha256(data).hexdigest())
    assert damaged_shards(partial) == []
    return partial


def test_files_are_hashed_once_and_those_of_this_process_not_at_all(run, monkeypatch):
    hashed = []
    from rlhf.run import commit as module

    digest_files = module.digest_files

    def counting(folder, names):
        hashed.extend(folder / name for name in names)
        return digest_files(folder, names)

    monkeypatch.setattr(module, "digest_files", counting)
    plan = Run(run / "run", Config(), planning=True)
    subject.stages(plan, run)
    assert hashed == [], "a plan is made in no time"
    subject.whole(run)
    read = [path for path in hashed if path.is_relative_to(run / "run" / "read")]
    assert len(read) == len(set(read)) == 4
    scores = [path for path in hashed if path.is_relative_to(run / "run" / "score")]
    assert len(scores) == 3
    assert not [path for path in hashed if path.is_relative_to(run / "run" / "pair")], (
        "the commit hashed them"
    )


def test_a_part_of_an_artifact_is_all_that_is_looked_at(run):
    artifact = Artifact(run / "run" / "read", "d", json.loads((run / "run/read/artifact.json").read_text()))
    whole = Artifact(artifact.path, "d", artifact.record, root=artifact.path)
    flip(run / "run" / "read" / "candidates" / "tokens.json")
    fresh = Run(run / "run", Config())
    fresh.verify(whole.part("candidates/shard_00000.parquet"), None)
    with pytest.raises(RunChanged, match=r"tokens.json is damaged .its SHA-256 is \w{12}…, but .* \w{12}…"):
        fresh.verify(whole)


def test_what_the_run_remembers_of_files_outside_is_found_out_again(run, finished):
    from rlhf.run import sources

    plan = Run(run / "run", Config(), planning=True)
    digest = sources.data_file(plan, str(run / "in.jsonl"), "input").digest
    memory = run / "run" / ".digests.json"
    for damage in DAMAGES:
        assert memory.is_file()
        damage(memory)
        assert sources.data_file(plan, str(run / "in.jsonl"), "input").digest == digest
