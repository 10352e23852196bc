"""`python -m rlhf.plan`: what it prints, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.command import line
from rlhf.command.line import CONFIGS
from rlhf.command.saved import write_saved
from rlhf.config.schema import Config
from tests.unit.refusals import Case, cases, jsonl, refuse, run_here

EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
LARGE = "plan hardware=8xH100 model.path=a/b-8B reward_model.path=a/b-8B "


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_a_plan(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, f"plan experiment={name} hardware=8xA100 price=2") == 0
    said = capsys.readouterr()
    assert f"runs/{name} on 8 × A100-80" in said.out and "= the whole run" in said.out and not said.err
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"
    assert run_here(monkeypatch, f"plan experiment={name} hardware=2xcpu") == 0, (
        "also where it would take weeks"
    )


@pytest.mark.parametrize(("until", "last"), [("world", "world"), ("dpo", "iteration_001/dpo")])
def test_a_plan_ends_where_the_run_is_to_end(until, last, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, f"plan experiment=quickstart hardware=2xcpu until={until}") == 0
    said = capsys.readouterr().out
    assert f"= up to {last} " in said and "whole run" not in said and "iteration 3" not in said
    assert ("= iteration 1" in said) == (until == "dpo")
    assert run_here(monkeypatch, "plan experiment=quickstart hardware=2xcpu until=dopo") == 2
    assert "until=dopo" in capsys.readouterr().err


@cases(
    Case("unknown hardware", "plan hardware=8xFOO", ["hardware=8xFOO: no such hardware", "H100, H200"]),
    Case("no gpus", "plan hardware=0xH100", ["hardware=0xH100: at least one", "1xH100"]),
    Case("negative price", "plan price=-1", ["price=-1.0: must", "not be negative"]),
    Case("price is no number", "plan price=cheap", ["price", "cheap"]),
    Case("infinite price", "plan price=inf", ["price=inf: must", "finite"]),
    Case("no tokens", "plan response_tokens=0", ["response_tokens=0.0: must", "positive"]),
    Case("unknown model", "plan model.path=a/b", ["model.path=a/b: how large", "model.path=my-8B"]),
    Case(
        "unknown judge",
        "plan reward_model.path=a/b model.path=x/y-8B",
        ["reward_model.path=a/b: how large", "reward_model.path=my-8B"],
    ),
    Case("unknown key", "plan hardwear=8xH100", ["hardwear", "did you mean hardware?"]),
    Case("impossible config", f"{LARGE}generate.n=3", ["generate.n=3: cannot", "Use a multiple of 2"]),
    Case(
        "too few gpus",
        f"{LARGE}generate.tensor_parallel_size=16",
        ["generate.tensor_parallel_size=16", "8 × H100", "hardware"],
    ),
)
def test_refused(case, tmp_path, monkeypatch, capsys):
    refuse(case, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("content", [None, b"", b"no json\n", b'{"prompt": "cut'])
def test_bad_prompts_are_told_and_planned_all_the_same(content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "p.jsonl").write_bytes(content)
    assert run_here(monkeypatch, f"{LARGE}prompts.path=p.jsonl") == 0
    assert "assumed: 200 tokens a prompt (prompt_tokens=…): p.jsonl not measured" in capsys.readouterr().out


def test_good_prompts_are_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_bytes(jsonl([{"prompt": "q" * 340}]))
    assert run_here(monkeypatch, f"{LARGE}prompts.path=p.jsonl") == 0
    assert "measured: 100 tokens a prompt, of the first 1 of prompts.path" in capsys.readouterr().out


def test_gpus_of_a_named_machine_are_not_held_against_those_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = "compute={num_gpus:4,num_training_ranks:4,num_inference_workers:4}"
    fit = []
    monkeypatch.setattr(line, "lower_to_gpus", lambda *asked: fit.append(asked) or [])
    assert run_here(monkeypatch, f"{LARGE}{settings}") == 0
    said = capsys.readouterr()
    assert "on 4 of 8 × H100" in said.out and said.err == "" and fit == []


def test_what_a_run_folder_holds_counts_as_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cfg = Config(run_dir="run", num_iterations=2)
    (tmp_path / "run" / "prompts").mkdir(parents=True)
    write_saved(tmp_path / "run", cfg, None)
    (tmp_path / "run" / "prompts" / "artifact.json").write_text(json.dumps({"seconds": 12.5}))
    assert run_here(monkeypatch, "plan run_dir=run hardware=4xcpu price=1") == 0
    said = capsys.readouterr()
    assert "goes on with the run's own settings" in said.err
    assert "= iteration 2" in said.out and "spent" not in said.out, "of another machine"
    assert run_here(monkeypatch, "plan run_dir=run compute.device=cpu") == 0
    assert "12.5 s spent" in capsys.readouterr().out


def test_a_plan_takes_no_torch_and_no_network(tmp_path):
    code = (
        "import sys, socket; socket.socket.connect = None; sys.argv = ['plan', 'experiment=rlhf_workflow', "
        "'hardware=8xH100']\n"
        "import runpy, atexit\n"
        "atexit.register(lambda: print(sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))))\n"
        "runpy.run_module('rlhf.plan', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]"), done.stdout
