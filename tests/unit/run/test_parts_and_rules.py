"""What a run takes of its own artifacts and of Python modules, and how files are remembered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlhf.config.schema import Config
from rlhf.errors import ConfigError, DataError, ModelError
from rlhf.run import sources
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run

FILES = {name: {"bytes": 1, "sha256": name} for name in ("model/config.json", "model/w", "prompts.jsonl")}


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path / "run", Config())
    made.made["world"] = Artifact(tmp_path / "world", "d", {"files": FILES})
    made.made["planned"] = Artifact(tmp_path / "planned", None)
    return made


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("@world", "world"),
        ("@world/model", "world/model"),
        ("@world/prompts.jsonl", "world/prompts.jsonl"),
        ("@planned/anything", "planned/anything"),
    ],
)
def test_a_part_of_the_run_is_named(run, tmp_path, path, part):
    assert sources.made_here(run, path, "model.path").path == tmp_path / part


@pytest.mark.parametrize(
    ("path", "phrase"),
    [
        ("@nothing/model", "made by then: planned, world. Name one"),
        ("@world/../world/model", "'..' leads out"),
        ("@world/mod", "'world' has no such part. Name one of model/config.json, model/w, prompts.jsonl"),
        ("@world/model/w/x", "has no such part"),
    ],
)
def test_what_is_no_part_of_the_run_is_refused(run, path, phrase):
    with pytest.raises(ConfigError) as error:
        sources.made_here(run, path, "model.path")
    assert f"model.path={path}: " in str(error.value) and phrase in str(error.value)


@pytest.mark.parametrize("path", ["/nowhere", "./a/b", "~/nowhere", "one", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_no_model(run, path):
    with pytest.raises(ModelError, match="no such folder, and no Hub id either"):
        sources.model(run, path, None, "model.path")


@pytest.mark.parametrize(
    ("key", "revision_key"),
    [("model.path", "model.revision"), ("evaluate.judges.a", "evaluate.judges.a")],
)
def test_a_revision_of_a_folder_is_refused_by_its_key(run, tmp_path, key, revision_key):
    with pytest.raises(ConfigError) as error:
        sources.model(run, str(tmp_path), "v2", key)
    assert str(error.value).startswith(f"{revision_key}=v2: ")
    with pytest.raises(ConfigError, match="something this run makes"):
        sources.model(run, "@world/model", "v2", key)


@pytest.mark.parametrize(("path", "what"), [("", "a folder, no file"), ("no", "no such file (looked for ")])
def test_a_data_file_has_to_be_a_file(tmp_path, path, what):
    with pytest.raises(DataError) as error:
        sources.local_file(str(tmp_path / path), "sft.data")
    assert what in str(error.value)


def test_a_digest_is_remembered_until_the_file_is_another_one(run, tmp_path, monkeypatch):
    hashed = []
    real = sources.digest_files

    def counting(folder, names):
        hashed.append(names)
        return real(folder, names)

    monkeypatch.setattr(sources, "digest_files", counting)
    file = tmp_path / "data.jsonl"
    file.write_text("one")
    stat = file.stat()
    # There is no run folder yet, so nothing is remembered.
    first = sources.data_file(run, str(file), "sft.data").digest
    assert sources.data_file(run, str(file), "sft.data").digest == first and len(hashed) == 2
    run.folder.mkdir()
    for _ in range(2):
        assert sources.data_file(run, str(file), "sft.data").digest == first
    assert len(hashed) == 3
    # Of the same size and time, but another file.
    other = tmp_path / "other"
    other.write_text("two")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(other, file)
    assert sources.data_file(run, str(file), "sft.data").digest != first and len(hashed) == 4
    (run.folder / ".digests.json").write_text("damaged")
    sources.data_file(run, str(file), "sft.data")
    assert len(hashed) == 5


@pytest.mark.parametrize(
    "rule", ["no.such.module:f", "json", "json:", ":f", "sys:exit", "", ".relative:f", "a b:c"]
)
def test_what_is_no_function_of_a_module_is_refused(rule):
    with pytest.raises(ConfigError, match="expected module:function"):
        sources.function_source(rule, "evaluate.gold")


def test_a_rule_is_its_name_and_its_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    Path(tmp_path / "rule_of_parts.py").write_text("def f(): ...\n")
    first = sources.function_source("rule_of_parts:f", "evaluate.gold")
    assert sources.function_source("rule_of_parts:g", "evaluate.gold") != first
    Path(tmp_path / "rule_of_parts.py").write_text("def f(): return 1\n")
    assert sources.function_source("rule_of_parts:f", "evaluate.gold") != first


def test_the_quickstarts_rule_is_the_one_that_runs_have_held_since_the_first():
    """A comment in the file is no reason to refuse them."""
    digest = "5e8fae084b75a834c8e0f18be369d055241f434792778fe204d7a7be5c52df16"
    assert sources.function_source("rlhf.world.tasks:gold", "evaluate.gold") == digest
