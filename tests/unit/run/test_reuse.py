"""What is taken from another run: finished stages, while that run is at work, deleted, or on another disk."""

import errno
import os
import shutil

import pytest

from rlhf.config.schema import Config
from rlhf.data.shards import read_rows
from rlhf.errors import RunChanged
from rlhf.run import plan as plan_module
from rlhf.run.plan import Run
from rlhf.run.reuse import finished_stages
from tests.unit.run.test_plan import InProcess, make, prompts_file

__all__ = ["prompts_file"]


class Said:
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    def begin(self, *said):
        pass

    end = begin
    done = begin


@pytest.fixture
def other(tmp_path, prompts_file):
    """Another run with a finished stage."""
    make(Run(tmp_path / "other", Config(), InProcess()), prompts_file)
    return tmp_path / "other"


@pytest.fixture
def run(tmp_path, other):
    return Run(tmp_path / "run", Config(reuse=[str(other)]), InProcess(), console=Said())


def planned(run, prompts_file):
    plan = Run(run.folder, run.cfg, planning=True)
    make(plan, prompts_file)
    return plan.pending


def test_a_finished_stage_is_taken(run, other, prompts_file):
    assert planned(run, prompts_file) == []
    made = make(run, prompts_file)
    assert run.launcher.ran == [] and os.path.samefile(
        made.path / "train.parquet", other / "prompts" / "train.parquet"
    )


@pytest.mark.parametrize("name", [".prompts.partial", ".prompts.gone", ".prompts.taken"])
def test_unfinished_and_half_deleted_work_is_not_seen(run, other, prompts_file, name):
    (other / "prompts").rename(other / name)
    assert list(finished_stages(other)) == []
    assert planned(run, prompts_file) == ["prompts"]
    make(run, prompts_file)
    assert len(run.launcher.ran) == 1


@pytest.mark.parametrize("gone", ["train.parquet", "held_out.parquet"])
def test_a_stage_that_is_being_deleted_is_left_out_and_said(run, other, prompts_file, gone):
    (other / "prompts" / gone).unlink()
    assert planned(run, prompts_file) == ["prompts"]
    make(run, prompts_file)
    assert len(run.launcher.ran) == 1
    (line,) = run.console.lines
    assert str(other / "prompts") in line and f"{gone} is missing" in line


def test_a_manifest_that_cannot_be_read_is_left_out_and_said(run, other, prompts_file):
    (other / "prompts" / "artifact.json").write_text("[]")
    make(run, prompts_file)
    assert len(run.launcher.ran) == 1 and "artifact.json is damaged" in run.console.lines[0]


@pytest.mark.parametrize("when", ["before it is opened", "while it is taken"])
def test_a_stage_that_vanishes_after_it_was_found_is_made_here(run, other, prompts_file, monkeypatch, when):
    function = "open_artifact" if when.startswith("before") else "take"
    original = getattr(plan_module, function)

    def deleted_first(source, *rest):
        if source == other / "prompts":
            (source / "train.parquet").unlink()
        return original(source, *rest)

    monkeypatch.setattr(plan_module, function, deleted_first)
    made = make(run, prompts_file)
    assert len(run.launcher.ran) == 1 and made.counts["train"] == 36
    assert any("was deleted or made again" in line for line in run.console.lines)
    assert not (run.folder / ".prompts.taken").exists()


def test_a_stage_that_is_made_anew_meanwhile_with_other_settings_is_not_taken(
    run, other, prompts_file, monkeypatch
):
    original = plan_module.take

    def redone_first(source, record, final):
        shutil.rmtree(source)
        make(Run(other, Config(), InProcess()), prompts_file, num_held_out=9)
        original(source, record, final)

    monkeypatch.setattr(plan_module, "take", redone_first)
    assert make(run, prompts_file).counts["held_out"] == 4


def test_damage_is_no_deletion(run, other, prompts_file):
    path = other / "prompts" / "train.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    with pytest.raises(RunChanged, match=str(path)):
        make(run, prompts_file)


def test_a_shard_that_the_manifest_does_not_name_is_refused_here_too(run, other, prompts_file):
    (other / "prompts" / "shard_00000.parquet").write_text("x")
    with pytest.raises(RunChanged, match=r"shard_00000\.parquet: no part of this finished stage"):
        planned(run, prompts_file)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_where_hard_links_fail_the_files_are_copied(run, other, prompts_file, monkeypatch, number):
    def refuse(source, target):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    made = make(run, prompts_file)
    assert run.launcher.ran == []
    assert not os.path.samefile(made.path / "train.parquet", other / "prompts" / "train.parquet")


def test_files_that_are_links_themselves_are_taken_for_what_they_lead_to(run, other, prompts_file, tmp_path):
    (tmp_path / "store").mkdir()
    for path in sorted((other / "prompts").iterdir()):
        path.rename(tmp_path / "store" / path.name)
        path.symlink_to(os.path.relpath(tmp_path / "store" / path.name, path.parent))
    made = make(run, prompts_file)
    assert run.launcher.ran == [] and not (made.path / "train.parquet").is_symlink()
    assert len(list(read_rows(made.path / "train.parquet"))) == 36


def test_folders_that_vanish_while_a_run_is_looked_through_are_no_error(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "artifact.json").write_text("{}")
    original = os.scandir

    def vanishing(path):
        if str(path).endswith("b"):
            shutil.rmtree(path)
        return original(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert [folder.name for folder in finished_stages(tmp_path)] == ["a", "c"]
