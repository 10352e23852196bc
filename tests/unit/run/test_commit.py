"""What a stage's folder becomes an artifact by, and what of a manifest is refused."""

from __future__ import annotations

import os
import stat

import pytest

from rlhf.config.stage_configs import PairSettings
from rlhf.data.digest import digest_files, digest_of, digest_of_files, sealed
from rlhf.errors import RunChanged
from rlhf.run import commit as module
from rlhf.run.artifact import Artifact, open_artifact, read_manifest
from rlhf.run.commit import check_files, commit, discard, take, tidy
from rlhf.run.job import Job

IDENTITY = {"schema": 1, "stage": "pair", "seed": 42, "config": {}, "inputs": {}}
ENTRY = {"bytes": 1, "sha256": "0" * 64}


def write(path, text="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def committed(folder, name="pair", **files):
    """An artifact of files that hold their own names."""
    partial = folder / f".{name}.partial"
    for file in files or {"a": 1}:
        write(partial / file.replace("__", "/"), file)
    write(partial / "checkpoint-4" / "weights")
    write(partial / ".shard_00000.parquet.sha256")
    job = Job("pair", name, PairSettings(), {}, str(partial), 42)
    commit(partial, folder / name, IDENTITY, job, {"rows": 2}, {"loss": 0.5}, 1.23456)
    return folder / name


def test_an_artifact_holds_its_files_and_nothing_that_resuming_needed(tmp_path):
    final = committed(tmp_path, model__weights=1, b=1)
    names = sorted(str(path.relative_to(final)) for path in final.rglob("*") if path.is_file())
    assert names == ["artifact.json", "b", "model/weights"]
    record = read_manifest(final)
    assert record["files"] == digest_files(final, ["b", "model/weights"])
    assert record["digest"] == digest_of_files(record["files"])
    assert record["counts"] == {"rows": 2} and record["metrics"] == {"loss": 0.5}
    assert record["seconds"] == 1.235 and set(record["versions"]) == set(module.VERSIONS)
    assert not list(tmp_path.glob(".*"))


def test_files_can_be_read_by_whom_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        partial = write(tmp_path / ".pair.partial" / "weights").parent
        (partial / "weights").chmod(0o600)
        final = committed(tmp_path, weights=1)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((final / "weights").stat().st_mode) == 0o640


def test_an_artifact_and_its_parts_are_told_by_content(tmp_path):
    artifact = open_artifact(committed(tmp_path, model__weights=1, b=1))
    assert (artifact.counts, artifact.metrics, artifact.root) == ({"rows": 2}, {"loss": 0.5}, artifact.path)
    part = artifact.part("model")
    assert part.path == artifact.path / "model" and part.root == artifact.path
    assert part.digest == digest_of({"weights": artifact.record["files"]["model/weights"]["sha256"]})
    unmade = Artifact(tmp_path / "unmade", None).part("model")
    assert (unmade.path, unmade.digest, unmade.stale) == (tmp_path / "unmade" / "model", None, False)


@pytest.mark.parametrize("damage", ["longer", "shorter", "gone", "folder"])
def test_a_file_of_another_size_is_named_when_an_artifact_is_opened(tmp_path, damage):
    final = committed(tmp_path, b=1)
    path = final / "b"
    if damage == "longer":
        path.write_text("bb")
    elif damage == "shorter":
        path.write_text("")
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
    with pytest.raises(RunChanged, match="but the manifest says 1 bytes"):
        open_artifact(final)


@pytest.mark.parametrize(
    ("files", "is_refused"),
    [
        ({}, False),
        ({"b": ENTRY, "a..b/c..": ENTRY}, False),
        ([], True),
        ({"b": {"bytes": 1}}, True),
        ({"b": ENTRY | {"mood": "sad"}}, True),
        ({"b": None}, True),
        ({"/etc/b": ENTRY}, True),
        ({"a/../../b": ENTRY}, True),
    ],
)
def test_what_files_a_manifest_may_name(tmp_path, files, is_refused):
    record = {"files": files, "identity": IDENTITY, "digest": "0" * 64}
    (tmp_path / "artifact.json").write_bytes(sealed(record))
    if is_refused:
        with pytest.raises(RunChanged, match=r"artifact\.json is damaged"):
            read_manifest(tmp_path)
    else:
        assert read_manifest(tmp_path)["files"] == files


@pytest.mark.parametrize("key", ["identity", "digest", "files"])
def test_a_manifest_without_a_part_is_refused(tmp_path, key):
    record = {"files": {}, "identity": IDENTITY, "digest": "0" * 64}
    del record[key]
    (tmp_path / "artifact.json").write_bytes(sealed(record))
    with pytest.raises(RunChanged, match=f"it has no .*{key}"):
        read_manifest(tmp_path)


def test_files_are_held_against_the_manifest_where_they_were_copied_to(tmp_path):
    source = write(tmp_path / "source" / "a").parent
    copy = write(tmp_path / "copy" / "a").parent
    files = digest_files(source, ["a"])
    check_files(source, files, ["a"])
    check_files(source, files, ["a"], copy)
    write(copy / "a", "test")
    check_files(source, files, ["a"])
    with pytest.raises(RunChanged) as error:
        check_files(source, files, ["a"], copy)
    now = digest_files(copy, ["a"])["a"]["sha256"]
    assert f"{source / 'a'} is damaged (its SHA-256 is {now[:12]}…, " in str(error.value)
    assert f"says {files['a']['sha256'][:12]}…)" in str(error.value)


@pytest.mark.parametrize("has_links", [True, False])
def test_a_finished_stage_is_taken_whole(tmp_path, monkeypatch, has_links):
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError("no links here")))
    source = committed(tmp_path / "other", model__weights=1, b=1)
    final = tmp_path / "run" / "pair"
    write(tmp_path / "run" / ".pair.taken" / "left_by_a_killed_copy")
    take(source, read_manifest(source), final)
    names = sorted(str(path.relative_to(final)) for path in final.rglob("*") if path.is_file())
    assert names == ["artifact.json", "b", "model/weights"]
    assert open_artifact(final).digest == open_artifact(source).digest
    assert (final / "b").samefile(source / "b") == has_links
    assert not (tmp_path / "run" / ".pair.taken").exists()


def test_a_damaged_stage_is_not_taken(tmp_path):
    source = committed(tmp_path / "other", b=1)
    record = read_manifest(source)
    (source / "b").write_text("c")
    with pytest.raises(RunChanged, match="is damaged"):
        take(source, record, tmp_path / "run" / "pair")
    assert not (tmp_path / "run" / "pair").exists()


@pytest.mark.parametrize("name", ["pair", ".pair.partial"])
def test_a_folder_is_discarded_with_what_an_earlier_try_left(tmp_path, name):
    write(tmp_path / name / "a" / "b")
    write(tmp_path / f".{name.removeprefix('.')}.gone" / "c")
    discard(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_hidden_files_and_checkpoints_are_tidied_away_at_any_depth(tmp_path):
    for name in (".a", "b/.c", ".d/e", "checkpoint-1/f", "kept/checkpoint-2"):
        write(tmp_path / name)
    tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b", "checkpoint-2", "kept"]
