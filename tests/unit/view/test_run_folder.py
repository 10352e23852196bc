"""A run's folder as it is read for people: whole, damaged, under way, or none at all."""

from __future__ import annotations

import os
import shutil

import pytest

from rlhf.errors import ConfigError
from rlhf.view.run_folder import iteration_of, open_run
from rlhf.view.standing import lacking, standing_of


def test_a_finished_run(run):
    read = open_run(str(run))
    assert read.damaged == {} and read.unfinished == []
    assert read.config["num_iterations"] == len(read.rows) - 1
    assert [row.iteration for row in read.rows] == list(range(len(read.rows)))
    assert read.rows[0].win_rate is None and 0 <= read.rows[1].win_rate <= 1
    names = list(read.artifacts)
    assert names.index("iteration_000/held_out/generate") < names.index("iteration_001/generate")
    assert names.index("iteration_001/generate") < names.index("iteration_001/score")
    assert names.index("iteration_001/dpo") < names.index("iteration_001/held_out/generate")


def test_a_copy_is_read_without_what_it_was_made_of(run, tmp_path):
    figures = open_run(str(run)).rows
    shutil.rmtree(run / "prompts")
    (run / "config.yaml").unlink()
    moved = run.rename(tmp_path / "elsewhere")
    assert open_run(str(moved)).rows == figures


def test_a_run_under_way(run):
    (run / "iteration_001" / "dpo").rename(run / "iteration_001" / ".dpo.partial")
    shutil.rmtree(run / "iteration_001" / "held_out")
    read = open_run(str(run))
    assert read.unfinished == ["iteration_001/dpo"]
    assert 1 not in [row.iteration for row in read.rows]


@pytest.mark.parametrize("what", ["manifest", "size", "missing", "more"])
def test_damage_is_told_and_the_rest_is_read(run, what):
    stage = run / "iteration_001" / "pair"
    file = next(stage.glob("*.parquet"))
    if what == "manifest":
        (stage / "artifact.json").write_text("{}")
    elif what == "size":
        file.write_bytes(file.read_bytes() + b"x")
    elif what == "missing":
        file.unlink()
    else:
        (stage / "more.parquet").write_bytes(b"")
    read = open_run(str(run))
    assert list(read.damaged) == ["iteration_001/pair"]
    assert str(stage) in read.damaged["iteration_001/pair"]
    assert read.rows[1].pairs is None and read.rows[1].win_rate is not None


def test_without_pi0_there_is_nothing_to_compare_with(run):
    shutil.rmtree(run / "iteration_000")
    assert open_run(str(run)).rows == []


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: folder.write_text(""), "is a file"),
        (lambda folder: folder.mkdir(), "is empty"),
        (lambda folder: (folder / "iteration_001").mkdir(parents=True), "but iteration_001"),
        (lambda folder: (folder / "notes").mkdir(parents=True), "no finished or unfinished stage"),
    ],
)
def test_no_run(tmp_path, make, said):
    make(tmp_path / "x")
    with pytest.raises(ConfigError, match=said) as error:
        open_run(str(tmp_path / "x"))
    assert str(error.value).startswith("run_dir=")


def test_a_part_of_a_run_and_a_folder_of_runs(run):
    with pytest.raises(ConfigError, match="is a part of the run"):
        open_run(str(run / "iteration_001"))
    with pytest.raises(ConfigError, match="is a part of the run"):
        open_run(str(run / "iteration_001" / "pair"))
    with pytest.raises(ConfigError, match=f"1 of them: {run.name}"):
        open_run(str(run.parent), "runs")


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "\x00", "a: ${b}\n"])
def test_settings_that_cannot_be_read_leave_the_figures(run, text):
    (run / "config.yaml").write_text(text)
    read = open_run(str(run))
    assert read.rows
    assert set(read.config) <= {"a"}


def test_iteration_of():
    assert iteration_of("iteration_002/held_out/score") == 2
    assert iteration_of("iteration_1234/dpo") == 1234
    assert iteration_of("world") is None


def test_what_cannot_be_looked_into_is_damaged_and_the_rest_is_read(run, monkeypatch):
    scandir = os.scandir

    def forbidden(path):
        if str(path).endswith("iteration_001"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    read = open_run(str(run))
    assert "Permission denied" in read.damaged["iteration_001"]
    assert read.rows[0].iteration == 0


@pytest.mark.parametrize("what", ["loop", "manifest loop", "nested", "pipe"])
def test_odd_files_do_not_stop_the_rest(run, what):
    pair = run / "iteration_001" / "pair"
    config = run / "config.yaml"
    if what == "loop":
        shutil.rmtree(pair)
        pair.symlink_to("pair")
    elif what == "manifest loop":
        (pair / "artifact.json").unlink()
        (pair / "artifact.json").symlink_to("artifact.json")
    else:
        config.unlink()
        if what == "pipe":
            os.mkfifo(config)
        else:
            config.write_text("a: " + "[" * 5000 + "]" * 5000)
    read = open_run(str(run))
    assert read.rows and ("iteration_001/pair" not in read.artifacts or "loop" not in what)
    assert ("iteration_001/pair" in read.damaged) is (what == "manifest loop")


def test_stages_that_are_gone_are_told_of(run):
    assert lacking(open_run(str(run))) == []
    shutil.rmtree(run / "iteration_001" / "pair")
    read = open_run(str(run))
    assert lacking(read) == ["iteration_001/pair"]
    standing = standing_of(read)
    assert not any("finished" in line for line in standing.lines)
    assert "✗ gone from the folder: iteration_001/pair" in standing.notes
