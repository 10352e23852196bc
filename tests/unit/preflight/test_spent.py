"""After a run: planned and spent, said and written down."""

import json

import pytest

from rlhf.config.schema import Config
from rlhf.loop.figures import Row, write_summary
from rlhf.preflight import spent
from rlhf.preflight.devices import named_machine
from rlhf.preflight.spent import by_kind, tell_planned_and_spent

SECONDS = {
    "prompts": 1.0,
    "iteration_000/held_out/generate": 2.0,
    "iteration_001/generate": 30.0,
    "iteration_001/dpo": 600.0,
    "iteration_002/dpo": 300.5,
}


def told(tmp_path, monkeypatch, cfg):
    monkeypatch.setattr(spent, "machine_here", lambda compute: named_machine("8xH100"))
    write_summary(tmp_path, [Row(0, 1.0, None, None, None, None, 1.0, None, 0.0, None, {})], 0)
    before = json.loads((tmp_path / "summary.json").read_text())
    said = []
    tell_planned_and_spent(cfg, tmp_path, SECONDS, said.append)
    after = json.loads((tmp_path / "summary.json").read_text())
    assert {key: after[key] for key in before} == before, "what older readers know stays"
    return said, after


def test_kinds_of_stages_are_summed_over_iterations():
    assert by_kind(SECONDS) == {"prompts": 1.0, "held_out": 2.0, "generate": 30.0, "dpo": 900.5}


def test_both_are_said_and_written(tmp_path, monkeypatch):
    said, summary = told(tmp_path, monkeypatch, Config(num_iterations=2))
    assert said[0].startswith("time          about 2.1 h planned / 16 min spent on its stages: ")
    assert "dpo 65 min / 15 min" in said[0] and "generate 32 min / 30.0 s" in said[0]
    assert "pair" not in said[0], "what takes no twentieth of either is in the sums alone"
    assert "planned for 8 × H100 (each 989 TFLOP/s" in said[1]
    assert "200 tokens a prompt and 550 a response; python -m rlhf.plan run_dir=" in said[1]
    assert summary["spent_seconds"] == {"prompts": 1.0, "held_out": 2.0, "generate": 30.0, "dpo": 900.5}
    assert summary["planned_seconds"]["dpo"] == pytest.approx(65 * 60, rel=0.01)


def test_a_run_that_has_no_plan_says_why(tmp_path, monkeypatch):
    cfg = Config()
    cfg.model.path = "some/thing"
    said, summary = told(tmp_path, monkeypatch, cfg)
    assert len(said) == 1
    assert said[0].startswith(
        "time          16 min spent on its stages; not planned: model.path=some/thing: how"
    )
    assert summary["planned_seconds"] == {} and summary["spent_seconds"]["dpo"] == 900.5
