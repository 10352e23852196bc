"""Sweeps: names of jobs, siblings, and what is reused across runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from rlhf.command import sweep
from rlhf.config.schema import Config
from rlhf.errors import RunChanged
from rlhf.run.artifact import open_artifact
from rlhf.run.commit import take
from rlhf.run.plan import Run
from tests.unit.run.test_plan import InProcess, make

LINE = ["-m", "experiment=quickstart", "dpo.beta=0.05,0.1", "seed=1", "model.path=/a/b,/c"]


def test_only_what_is_swept_names_a_job() -> None:
    keys = sweep.swept_keys(LINE)
    assert keys == {"dpo.beta", "model.path"}
    assert sweep.job_name(["experiment=quickstart", "seed=1", "model.path=/a/b", "dpo.beta=0.1"], keys) == (
        "dpo.beta=0.1,model.path=%2Fa%2Fb"
    )
    assert sweep.is_sweep(LINE) and not sweep.is_sweep(LINE[1:])


def test_a_job_gets_its_folder_and_its_siblings(tmp_path: Path) -> None:
    (tmp_path / "dpo.beta=0.05").mkdir()
    (tmp_path / "dpo.beta=0.05" / "config.yaml").write_text("")
    (tmp_path / "other").mkdir()
    config = Config(reuse=["/elsewhere"])
    sweep.join_sweep(config, str(tmp_path), "dpo.beta=0.1")
    assert config.run_dir == str(tmp_path / "dpo.beta=0.1")
    assert config.reuse == ["/elsewhere", str(tmp_path / "dpo.beta=0.05")]


def test_hydra_leaves_no_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", *LINE])
    with sweep.no_traces():
        folder = sys.argv[-1].removeprefix("hydra.sweep.dir=")
        assert Path(folder).is_dir()
    assert not Path(folder).exists() and sys.argv == ["x", *LINE]


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(40)))
    return path


def test_a_stage_of_another_run_is_taken_and_shares_its_files(tmp_path: Path, prompts_file: Path) -> None:
    first = make(Run(tmp_path / "a", Config(), InProcess()), prompts_file)
    launcher = InProcess()
    cfg = Config(reuse=[str(tmp_path / "nothing"), str(tmp_path / "a")])
    plan = Run(tmp_path / "b", cfg, planning=True)
    assert make(plan, prompts_file).digest == first.digest
    assert plan.pending == [] and not (tmp_path / "b").exists()
    taken = make(Run(tmp_path / "b", cfg, launcher), prompts_file)
    assert launcher.ran == [] and taken.digest == first.digest and taken.path == tmp_path / "b" / "prompts"
    assert os.path.samefile(first.path / "train.parquet", taken.path / "train.parquet")
    assert make(Run(tmp_path / "b", Config(), InProcess()), prompts_file).counts == first.counts


def test_other_settings_are_not_taken(tmp_path: Path, prompts_file: Path) -> None:
    make(Run(tmp_path / "a", Config(), InProcess()), prompts_file)
    launcher = InProcess()
    make(Run(tmp_path / "b", Config(reuse=[str(tmp_path / "a")]), launcher), prompts_file, num_held_out=5)
    assert [name for name, _ in launcher.ran] == ["prompts"]


def test_a_copy_that_was_killed_is_made_anew(tmp_path: Path, prompts_file: Path) -> None:
    first = make(Run(tmp_path / "a", Config(), InProcess()), prompts_file)
    (tmp_path / "b" / ".prompts.taken").mkdir(parents=True)
    (tmp_path / "b" / ".prompts.taken" / "train.parquet").write_text("half")
    take(first.path, first.record, tmp_path / "b" / "prompts")
    assert open_artifact(tmp_path / "b" / "prompts").digest == first.digest


def test_a_damaged_artifact_is_never_taken(tmp_path: Path, prompts_file: Path) -> None:
    first = make(Run(tmp_path / "a", Config(), InProcess()), prompts_file)
    (first.path / "train.parquet").write_bytes(b"")
    with pytest.raises(RunChanged, match="damaged"):
        make(Run(tmp_path / "b", Config(reuse=[str(tmp_path / "a")]), InProcess()), prompts_file)
