"""A finished stage's folder is what its manifest says, and the manifest has the types it must, or it is refused."""

import json
import os

import pytest

from rlhf.config.schema import Config
from rlhf.config.stage_configs import PromptsSettings
from rlhf.data.digest import sealed, unsealed
from rlhf.errors import RunChanged
from rlhf.run.artifact import Artifact, artifact_around, open_artifact
from rlhf.run.commit import commit
from rlhf.run.job import Job
from rlhf.run.manifest import read_identity, read_manifest
from rlhf.run.plan import Run
from tests.unit.run.test_plan import InProcess, make, prompts_file

__all__ = ["prompts_file"]
SHA = "0" * 64
IDENTITY = {"schema": 1, "stage": "x", "seed": 42, "config": {}, "inputs": {}}


@pytest.fixture
def folder(tmp_path):
    """A finished stage with a file of its own, one in a folder, and one two folders deep."""
    partial = tmp_path / ".x.partial"
    for name in ("shard_00000.parquet", "model/config.json", "model/more/template.jinja"):
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_text(name)
    commit(partial, tmp_path / "x", IDENTITY, Job("x", "x", {}, {}, str(partial), 0), {"rows": 1}, {}, 0.5)
    return tmp_path / "x"


def change(path, dotted, value):
    """Set a field of a sealed record, and seal it anew: whoever made a run can do that."""
    record = unsealed(path.read_bytes())
    *parents, last = dotted
    inner = record
    for key in parents:
        inner = inner[key]
    inner[last] = value
    path.write_bytes(sealed(record))


SHARD = ("files", "shard_00000.parquet")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (("identity",), [1]),
        (("identity",), "x"),
        (("identity", "schema"), "1"),
        (("identity", "schema"), True),
        (("identity", "stage"), None),
        (("identity", "seed"), 4.2),
        (("identity", "config"), []),
        (("identity", "inputs"), 7),
        (("identity", "inputs"), {"policy": None}),
        (("identity", "inputs"), {"policy": ["d"]}),
        (("digest",), 5),
        (("digest",), {"a": 1}),
        (("counts",), [1]),
        (("counts",), None),
        (("counts", "rows"), "1"),
        (("counts", "rows"), 1.5),
        (("counts", "rows"), True),
        (("metrics",), "loss"),
        (("seconds",), "long"),
        (("seconds",), None),
        (("config",), 3),
        (("compute",), [None]),
        (("versions",), "torch"),
        (("files",), ["shard_00000.parquet"]),
        (SHARD, 12),
        (SHARD, None),
        (SHARD, ["bytes", "sha256"]),
        ((*SHARD, "bytes"), "19"),
        ((*SHARD, "bytes"), 19.0),
        ((*SHARD, "bytes"), True),
        ((*SHARD, "sha256"), 0),
        ((*SHARD, "sha256"), "abc"),
    ],
)
def test_a_field_of_another_type_is_refused_by_name(folder, field, value):
    change(folder / "artifact.json", field, value)
    with pytest.raises(RunChanged) as refusal:
        open_artifact(folder)
    said = str(refusal.value)
    shown = value if not isinstance(value, dict) else next(iter(value.values()))
    assert str(folder / "artifact.json") in said and f"rm -r {folder}" in said
    assert ".".join(field) in said and json.dumps(shown) in said


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b'"x"', b"5", b"\xff", b"[" * 100_000])
@pytest.mark.parametrize(
    ("name", "read"), [("artifact.json", read_manifest), (".identity.json", read_identity)]
)
def test_what_is_no_sealed_object_is_refused_by_name(tmp_path, content, name, read):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunChanged, match=rf"{name} is damaged[\s\S]*rm -r {tmp_path}"):
        read(tmp_path)


@pytest.mark.parametrize("field", list(IDENTITY))
def test_unfinished_work_names_its_types_too(tmp_path, field):
    (tmp_path / ".identity.json").write_bytes(sealed(IDENTITY))
    assert read_identity(tmp_path) == IDENTITY
    change(tmp_path / ".identity.json", (field,), [3])
    with pytest.raises(RunChanged, match=rf"identity.json is damaged \(its {field} is \[3\]"):
        read_identity(tmp_path)


def link(path):
    path.symlink_to("nowhere")


def folder_with_a_file(path):
    path.mkdir()
    (path / "file").write_text("x")


def text(path):
    path.write_text("x")


@pytest.mark.parametrize("make_stranger", [text, link, folder_with_a_file, os.mkfifo])
@pytest.mark.parametrize(
    "name", ["shard_00001.parquet", "model/model.safetensors", "model/more/other.jinja", "notes.txt"]
)
def test_only_listed_files_exist(folder, name, make_stranger):
    make_stranger(folder / name)
    with pytest.raises(RunChanged) as refusal:
        open_artifact(folder)
    said = str(refusal.value)
    assert str(folder / name) in said and "does not name it" in said
    assert "Move it out" in said and f"rm -r {folder}" in said


def test_what_nobody_reads_is_no_stranger(folder):
    (folder / ".DS_Store").write_text("x")
    (folder / "model" / ".cache").mkdir()
    (folder / "model" / ".cache" / "x").write_text("x")
    (folder / "empty").mkdir()
    (folder / "checkpoint-3").mkdir()  # a kill right after the commit left it
    (folder / "checkpoint-3" / "weights").write_text("x")
    assert open_artifact(folder).counts == {"rows": 1}


def test_a_folder_that_was_moved_to_another_disk_and_linked_is_looked_into(folder, tmp_path):
    (folder / "model").rename(tmp_path / "other disk")
    (folder / "model").symlink_to(tmp_path / "other disk")
    open_artifact(folder)
    (tmp_path / "other disk" / "extra.safetensors").write_text("x")
    with pytest.raises(RunChanged, match=r"model/extra\.safetensors: no part of this finished stage"):
        open_artifact(folder)


def test_a_stranger_that_comes_later_is_found_before_the_next_stage_reads(tmp_path, prompts_file):
    run = Run(tmp_path / "run", Config(), InProcess())
    made = make(run, prompts_file)
    (made.path / "shard_00007.parquet").write_text("x")
    with pytest.raises(RunChanged, match=r"shard_00007\.parquet"):
        run.stage("prompts", "later", PromptsSettings(0), {"prompts": made.part("train.parquet")})


def test_a_file_that_vanishes_while_it_is_hashed_is_damage(folder, monkeypatch):
    artifact = open_artifact(folder)
    monkeypatch.setattr("rlhf.run.verified.check_folder", lambda *of: frozenset())
    (folder / "shard_00000.parquet").unlink()
    with pytest.raises(RunChanged, match=r"shard_00000\.parquet is damaged \(cannot be read: No such file"):
        Run(folder.parent, Config()).verify(artifact)


def test_the_artifact_around_a_file(folder, tmp_path):
    found = artifact_around(folder / "model" / "config.json")
    assert (found.root, found.path) == (folder, folder / "model" / "config.json")
    assert artifact_around(folder).path == folder and artifact_around(tmp_path) is None
    (tmp_path / "artifact.json").write_text('{"of": "another program"}')
    assert artifact_around(tmp_path / "model") is None
    (tmp_path / "artifact.json").write_text("{")
    with pytest.raises(RunChanged, match=r"artifact\.json is damaged"):
        artifact_around(tmp_path / "model")


def test_an_artifact_of_outside_is_nothing_to_verify(tmp_path):
    Run(tmp_path, Config()).verify(Artifact(tmp_path / "nowhere", "d"), None)
