"""Command lines: what a message names, what is a sweep, and where a job's folder lies."""

from __future__ import annotations

import sys

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from rlhf.command import line, sweep
from rlhf.config.schema import Config
from rlhf.config.tools import PairTool
from rlhf.errors import ConfigError
from tests.unit.refusals import Case, prepare, run_here


@pytest.mark.parametrize(
    ("arguments", "is_sweep"),
    [(["-m", "a=1"], True), (["a=1", "--multirun"], True), (["a=1"], False), (["a=-m"], False)],
)
def test_what_asks_for_a_sweep(arguments, is_sweep):
    assert sweep.is_sweep(arguments) == is_sweep


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["seed=1,2"], {"seed"}),
        (["seed=range(3)", "dpo.beta=0.1"], {"seed"}),
        (["seed=[1,2]", "--config-name=a,b", "-m"], set()),
        (["dpo.beta=0.1,0.2", "seed=1,2"], {"dpo.beta", "seed"}),
    ],
)
def test_what_takes_several_values(arguments, keys):
    assert sweep.swept_keys(arguments) == keys


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["seed=1", "dpo.beta=0.1"], "seed=1"),
        (["seed=1", "a=b/c"], "a=b%2Fc,seed=1"),
        (["other=1"], "job"),
        ([], "job"),
    ],
)
def test_a_job_is_named_by_what_is_special_about_it(overrides, name):
    assert sweep.job_name(overrides, {"seed", "a"}) == name


def test_a_jobs_siblings_come_after_what_the_user_named(tmp_path):
    for name in ("b", "a", "mine", "empty"):
        (tmp_path / name).mkdir()
        if name != "empty":
            (tmp_path / name / "config.yaml").write_text("")
    cfg = Config(reuse=["given"])
    sweep.join_sweep(cfg, str(tmp_path), "mine")
    assert cfg.run_dir == str(tmp_path / "mine")
    assert cfg.reuse == ["given", str(tmp_path / "a"), str(tmp_path / "b")]


@pytest.mark.parametrize("is_swept", [True, False])
def test_flags_go_in_front_and_the_command_line_comes_back(monkeypatch, is_swept):
    original = ["program", "seed=1,2", *(["-m"] if is_swept else []), "--config-name=x", "a=b"]
    monkeypatch.setattr(sys, "argv", list(original))
    with sweep.no_traces():
        flags = (["-m"] if is_swept else []) + ["--config-name=x"]
        assert sys.argv[: len(flags) + 3] == ["program", *flags, "seed=1,2", "a=b"]
        assert len(sys.argv) == len(flags) + 3 + is_swept
        assert is_swept == sys.argv[-1].startswith("hydra.sweep.dir=")
    assert sys.argv == original


@pytest.fixture
def schema():
    """The store knows the schema of the loop."""
    ConfigStore.instance().store(name="schema", node=Config)


@pytest.mark.parametrize(
    ("config", "phrases"),
    [
        ("dpo: {betta: 1}", ["dpo.betta: no such setting; did you mean dpo.beta?", "docs/configuration.md"]),
        ("betta: 1", ["betta: no such setting"]),
        (
            "learning_rate: 1",
            ["did you mean sft.learning_rate or reward_model.learning_rate or dpo.learning_rate or "],
        ),
        ("zzz: 1", ["zzz: no such setting."]),
        ("dpo: {num_epochs: two}", ["dpo.num_epochs: ", "'two'"]),
    ],
)
def test_what_is_wrong_with_a_setting(schema, config, phrases):
    with pytest.raises(ConfigError) as error:
        line.to_config(OmegaConf.create(config))
    assert [phrase for phrase in phrases if phrase not in str(error.value)] == []


def test_what_is_missing_is_named():
    with pytest.raises(ConfigError, match=r"input=… is missing"):
        line.to_config(OmegaConf.structured(PairTool), PairTool)


def test_only_a_runs_config_is_held_against_the_limits():
    with pytest.raises(ConfigError, match=r"dpo\.beta=-1"):
        line.to_config(OmegaConf.create("dpo: {beta: -1}"))
    tool = line.to_config(
        OmegaConf.create({"input": "a", "output": "b", "pair": {"min_margin": -1}}), PairTool
    )
    assert tool.pair.min_margin == -1


OWN = "own/experiment/mine.yaml"


@pytest.mark.parametrize(
    ("command", "file", "said"),
    [
        ("iterate dpo.beta=[0.1]", None, "error: dpo.beta=[0.1]: "),
        ("iterate dpo.beta=[1", None, "error: dpo.beta=[1: "),
        ("iterate dpo.betta=0.1", None, "error: dpo.betta: no such setting; did you mean dpo.beta?"),
        ("iterate +dpo.betta=0.1", None, "error: dpo.betta: no such setting; did you mean dpo.beta?"),
        ("iterate dpo.beta=0", None, "error: dpo.beta=0.0: must be a positive number, from 1e-9 to 1e9: "),
        ("iterate experiment=misspelt", None, "error: In 'iterate': Could not find 'experiment/misspelt'"),
        (
            "iterate --config-dir=own experiment=mine",
            "dpo:\n  betta: 1\n",
            "error: In 'experiment/mine': dpo.betta: no such setting",
        ),
        ("iterate --config-dir=own experiment=mine", "a: [\n", "error: while parsing a flow node"),
        ("pair input=a.jsonl", None, "error: output=… is missing"),
        ("pair -m input=a,b output=o.jsonl", None, "error: these jobs of the sweep failed: input=a input=b"),
    ],
)
def test_one_message_says_where_and_what(tmp_path, monkeypatch, capsys, command, file, said):
    case = Case("", command, [], {OWN: f"# @package _global_\n{file}"} if file else {})
    prepare(case, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, command) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith(said), errors
