"""Runs by folder, by what holds them, and by pattern; what is no run is told."""

from __future__ import annotations

import os
import shutil

import pytest

from rlhf.errors import ConfigError
from rlhf.view.several_runs import letter, runs_of
from tests.unit.old_run import old_run


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A folder with two runs, a file, a folder of something else, and a hidden one."""
    for name in ("beta=0.1", "beta=0.2"):
        old_run(tmp_path / "sweep", name)
    (tmp_path / "sweep" / "notes.txt").write_text("")
    (tmp_path / "sweep" / "plots").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "sweep"


def names_of(*paths):
    runs, notes = runs_of(paths)
    return [(run.letter, run.name) for run in runs], notes


BOTH = [("A", "beta=0.1"), ("B", "beta=0.2")]


def test_by_folder_by_what_holds_them_and_by_pattern(sweep):
    assert names_of("sweep/beta=0.1", "sweep/beta=0.2") == (BOTH, [])
    assert names_of("sweep") == (BOTH, [])
    found, notes = names_of("sweep/*")
    assert found == BOTH
    assert notes == ["runs=sweep/*: no run, and passed over: sweep/notes.txt, sweep/plots"]
    assert names_of("sw*") == (BOTH, [])
    assert names_of("sweep/beta=0.[2-9]") == ([("A", "beta=0.2")], [])


def test_names_tell_runs_apart_and_no_more(sweep):
    shutil.copytree(sweep, sweep.parent / "again")
    found, _ = names_of("again", "sweep/beta=0.2")
    assert [name for _, name in found] == ["again/beta=0.1", "again/beta=0.2", "sweep/beta=0.2"]
    inside = shutil.copytree(sweep / "beta=0.2", sweep / "beta=0.1" / "inside")
    assert [name for _, name in names_of("sweep/beta=0.1", str(inside))[0]] == ["beta=0.1", "beta=0.1/inside"]


def test_a_run_is_shown_once(sweep):
    os.symlink("beta=0.1", sweep / "link")
    found, notes = names_of("sweep/beta=0.1", "sweep/link", "sweep/beta=0.2")
    assert found == BOTH
    assert notes == [f"{sweep / 'beta=0.1'} is named twice, and shown once."]


def test_a_name_with_the_signs_of_a_pattern(sweep):
    (sweep / "beta=0.1").rename(sweep / "[a]*")
    assert names_of("sweep/[a]*")[0] == [("A", "[a]*")]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere", "runs=nowhere: .*does not exist"),
        ("sweep/notes.txt", "notes.txt is a file"),
        ("sweep/plots", "is empty"),
        ("sweep/beta=0.1/iteration_001", "is a part of the run"),
        ("nowhere/*", r"runs=nowhere/\*: matches nothing"),
        ("sweep/p*", "matches 1 things, and none is another run"),
        ("", "is empty"),
    ],
)
def test_no_run(sweep, path, said):
    with pytest.raises(ConfigError, match=said):
        runs_of([path])


def test_no_path():
    with pytest.raises(ConfigError, match=r"runs=\[\]: names no run.*runs/sweep/\*"):
        runs_of([])


def test_what_cannot_be_read_is_left_out_and_named(sweep):
    shard = next((sweep / "beta=0.1" / "iteration_002/held_out/gold").glob("*.parquet"))
    shard.write_bytes(bytes(len(shard.read_bytes())))
    (run, _), _ = runs_of(["sweep"])
    assert list(run.folder.damaged) == ["iteration_002/held_out/gold"]
    assert "SHA-256" in run.folder.damaged["iteration_002/held_out/gold"]
    assert run.folder.rows[2].gold_accuracy is None and run.folder.rows[1].gold_accuracy is not None


def test_letters():
    assert [letter(number) for number in (0, 25, 26, 52)] == ["A", "Z", "A1", "A2"]
