"""What there is to tell of a run, as points on axes."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from rlhf.errors import RunChanged
from rlhf.run.artifact import Artifact
from rlhf.view.history import history, settings
from rlhf.view.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    """A run of two iterations whose trainings have 3 and 2 steps, after an SFT of one."""
    artifacts = {}
    stages = {"sft": 1, "iteration_000/held_out/score": 0, "iteration_001/dpo": 3, "iteration_002/dpo": 2}
    for number, (name, steps) in enumerate(stages.items()):
        path = tmp_path / name
        path.mkdir(parents=True)
        rows = [{"epoch": 1.0, "loss": 0.5 / step, "step": step} for step in range(1, steps + 1)]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        artifacts[name] = Artifact(path, f"d{number}", {"seconds": number + 1.5})
    config = {"run_dir": "/somewhere", "reward_model": {"url": "http://me:secret@host/\u202e"}, "seed": 42}
    return RunFolder(tmp_path, config, artifacts)


def summary(folder, *iterations, gates=()):
    (folder.path / "summary.json").write_text(
        json.dumps({"iterations": list(iterations), "gates": list(gates)})
    )


def units(folder):
    return {unit.name: unit for unit in history(folder)}


def test_training_steps_go_on_from_iteration_to_iteration(folder):
    found = units(folder)
    assert [place for place, _ in found["sft"].points] == [1]
    assert [place for place, _ in found["iteration_001/dpo"].points] == [1, 2, 3]
    assert [place for place, _ in found["iteration_002/dpo"].points] == [4, 5]
    assert found["iteration_002/dpo"].points[0][1] == {"dpo/loss": 0.5, "dpo/iteration": 2}


def test_an_iteration_that_trained_on_best_responses_has_an_axis_of_its_own(folder):
    artifacts = {name: artifact for name, artifact in folder.artifacts.items() if not name.endswith("/dpo")}
    for number in (1, 2):
        path = folder.artifacts[f"iteration_00{number}/dpo"].path
        artifact = folder.artifacts[f"iteration_00{number}/dpo"]
        artifacts[f"iteration_00{number}/raft"] = replace(artifact, path=path.rename(path.with_name("raft")))
    found = units(replace(folder, artifacts=artifacts))
    assert [place for place, _ in found["iteration_002/raft"].points] == [4, 5]
    assert found["iteration_002/raft"].axis == "raft"
    assert found["iteration_002/raft"].points[0][1] == {"raft/loss": 0.5, "raft/iteration": 2}


def test_behind_an_iteration_that_is_missing_no_step_has_a_place(folder):
    del folder.artifacts["iteration_001/dpo"]
    assert "iteration_002/dpo" not in units(folder)


def test_figures_that_are_no_number_are_no_point(folder):
    row = {
        "iteration": 1,
        "mean_score": 0.25,
        "gold_accuracy": None,
        "kl": math.nan,
        "pairs": 0,
        "truncated": 0.0,
    }
    row |= {"dropped": {"all_tied": 3}, "judges": {"second": {"mean_score": 1.0, "win_rate": None}}}
    summary(folder, row)
    [(place, values)] = units(folder)["iteration_001/figures"].points
    assert place == 1
    assert values == {
        "iteration/score": 0.25,
        "iteration/pairs": 0,
        "iteration/cut_share": 0.0,
        "iteration/dropped/all_tied": 3,
        "iteration/judges/second/score": 1.0,
        "iteration/seconds/dpo": 3.5,
    }


def test_seconds_before_the_loop_count_to_pi0_and_are_no_change(folder):
    row = {"iteration": 0, "mean_score": 0.1}
    summary(folder, row)
    before = units(folder)["iteration_000/figures"]
    assert before.points[0][1]["iteration/seconds/sft"] == 1.5
    assert before.points[0][1]["iteration/seconds/held_out/score"] == 2.5
    folder.artifacts["sft"].record["seconds"] = 9.0
    assert units(folder)["iteration_000/figures"].digest == before.digest
    summary(folder, row | {"mean_score": 0.2})
    assert units(folder)["iteration_000/figures"].digest != before.digest


def test_gates_are_told_also_of_an_iteration_that_did_not_train(folder):
    gate = {"gate": "truncated", "text": "cut\u202e", "where": "iteration_003/generate"}
    summary(
        folder,
        gates=[gate | {"iteration": 3}, gate | {"iteration": 3, "text": "more"}, gate | {"iteration": 0}],
    )
    told = [unit for unit in history(folder) if "/gate " in unit.name]
    assert sorted(unit.points[0][0] for unit in told) == [0, 3, 3]
    assert len({unit.name for unit in told}) == 3
    assert told[0].points[0][1] == {"gates/truncated": "cut\\u202e (iteration_003/generate)"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"iterations": [{}], "gates": []}', '{"iterations": 3}'])
def test_a_summary_that_is_none_leaves_the_curves(folder, text):
    (folder.path / "summary.json").write_text(text)
    assert [unit.axis for unit in history(folder)] == ["config", "sft", "dpo", "dpo"]


def test_damaged_steps_are_said(folder):
    (folder.path / "iteration_001" / "dpo" / "metrics.jsonl").write_text("{")
    with pytest.raises(RunChanged, match=r"iteration_001/dpo/metrics\.jsonl is damaged"):
        history(folder)


def test_settings_hold_no_password_and_other_settings_are_another_unit(folder):
    assert settings(folder) == {"reward_model": {"url": "http://***@host/\\u202e"}, "seed": 42}
    [first] = [unit for unit in history(folder) if unit.axis == "config"]
    folder.config["seed"] = 43
    [second] = [unit for unit in history(folder) if unit.axis == "config"]
    assert first.name != second.name
