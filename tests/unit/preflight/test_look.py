"""What is found before a run begins: each check, how it is shown, and what becomes of it."""

import json
import os
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from omegaconf import OmegaConf

from rlhf.command.line import to_config
from rlhf.config.choices import Device, Dtype, Engine
from rlhf.config.limits import value_at
from rlhf.config.schema import Config
from rlhf.config.stage_configs import ScoreStage
from rlhf.data.schemas import CANDIDATES_SCHEMA
from rlhf.data.shards import shard_name, write_shard
from rlhf.errors import ConfigError, WorkerFailed
from rlhf.launch.machine import environments
from rlhf.preflight import hardware, hyperparameters, inputs
from rlhf.preflight import memory as memory_check
from rlhf.preflight.findings import Finding, Level, collect, refusal, table
from rlhf.preflight.look import look, require
from rlhf.preflight.tokenizers import _names
from rlhf.run.console import Console
from rlhf.run.job import Job, Outcome
from rlhf.scoring.judge import Scored
from rlhf.stages import score
from tests.stage_runner import FakeWorker

ROOT = Path(__file__).resolve().parents[3]
needs_torch = pytest.mark.skipif(
    find_spec("torch") is None, reason="without torch a look finds that it is missing"
)
OK, WARNING, ERROR = Level.ok, Level.warning, Level.error
EIGHT = {"model.path": 8e9, "reward_model.path": 8e9}


def model(folder, parameters=1000, dtype="F32"):
    """A model folder of that size, as far as its headers say."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    header = json.dumps({"w": {"dtype": dtype, "shape": [int(parameters)], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return folder


def rows(path, *numbers):
    path.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in numbers))
    return str(path)


def changed(**values):
    """The default config with some values, by dotted key."""
    cfg = Config()
    for key, value in values.items():
        section, _, name = key.replace("__", ".").rpartition(".")
        setattr(value_at(cfg, section) if section else cfg, name, value)
    return cfg


def said(found, text):
    """The level of the one finding that says so."""
    (one,) = [each for each in found if text in each.text]
    assert one.way_out or one.level is OK, "what is odd or wrong has a reason or a way out"
    return one.level


class Answering:
    """A launcher whose one worker finds this."""

    def __init__(self, *found):
        self.found, self.jobs = list(found), []

    def launch(self, job, kind, shards):
        self.jobs.append(job)
        if not self.found:
            raise WorkerFailed("the worker died")
        return Outcome(metrics={"findings": self.found})


@pytest.mark.parametrize(
    ("values", "sizes", "text", "level"),
    [
        ({"compute__num_training_ranks": 3}, {}, "dpo.batch_size=128 over 3", WARNING),
        ({"compute__num_training_ranks": 2}, {}, "dpo.batch_size=128 over 2", OK),
        ({"dpo__batch_size": 32}, EIGHT, "dpo.batch_size=32 at the recipe", WARNING),
        ({}, EIGHT, "dpo.batch_size=128 at the recipe", OK),
        ({"dpo__learning_rate": 6e-5}, EIGHT, "dpo.learning_rate=6e-05", WARNING),
        ({"dpo__learning_rate": 1e-9}, EIGHT, "dpo.learning_rate=1e-09", WARNING),
        ({"dpo__learning_rate": 6e-5}, {"model.path": 1e6}, "dpo.learning_rate=6e-05", OK),
        ({"dpo__lora__rank": 8}, {}, "dpo.learning_rate=5e-07 with LoRA", WARNING),
        ({"dpo__lora__rank": 8, "dpo__learning_rate": 2e-5}, EIGHT, "dpo.learning_rate=2e-05 with LoRA", OK),
        ({"sft__data": "d", "sft__learning_rate": 1e-3}, EIGHT, "sft.learning_rate=0.001", WARNING),
        ({"sft__data": "d", "sft__learning_rate": 2e-5}, EIGHT, "sft.learning_rate=2e-05", OK),
        (
            {"reward_model__data": "d", "reward_model__learning_rate": 1},
            EIGHT,
            "reward_model.learning_rate=1",
            WARNING,
        ),
        (
            {"reward_model__data": "d", "reward_model__learning_rate": 1},
            {},
            "reward_model.learning_rate=1",
            OK,
        ),
        ({"score__max_tokens": 3047}, {}, "score.max_tokens=3047", WARNING),
        ({"score__max_tokens": 3048}, {}, "score.max_tokens=3048", OK),
    ],
)
def test_training_settings(values, sizes, text, level):
    assert said(hyperparameters.hyperparameters(changed(**values), sizes), text) is level


def test_a_rate_that_yaml_takes_for_text_becomes_a_number_and_a_word_does_not():
    cfg = to_config(OmegaConf.create("dpo: {learning_rate: '5e-7'}"))
    assert cfg.dpo.learning_rate == 5e-7
    with pytest.raises(ConfigError, match="fast"):
        to_config(OmegaConf.create("dpo: {learning_rate: fast}"))


def test_models_are_found_made_here_or_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    broken = model(tmp_path / "broken")
    (broken / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    judges = {"missing": "./nowhere", "hub": "owner/a-7B", "broken": str(broken), "made": "@world/judge"}
    cfg = changed(model__path=str(model(tmp_path / "policy", 2e9, "BF16")), evaluate__judges=judges)
    cfg.reward_model.rule = "rlhf.world.tasks:gold"
    folders, sizes = {}, {}
    found = list(inputs.models(cfg, folders, sizes))
    assert said(found, "2000 M parameters, bfloat16") is OK and said(found, "– made by this run") is OK
    assert said(found, "no such folder") is ERROR and said(found, "the Hub cannot be reached") is ERROR
    assert said(found, "no safetensors file that can be read") is ERROR
    assert folders == {"model.path": tmp_path / "policy"} and sizes == {"model.path": 2e9}


def test_data_rules_and_servers(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cfg = changed(
        prompts__path=str(tmp_path / "set{iteration}.jsonl"), num_iterations=2, sft__data="owner/data:train"
    )
    rows(tmp_path / "set1.jsonl", 1)
    cfg.prompts.held_out_path, cfg.pair.data = "@world/held_out.jsonl", str(tmp_path)
    cfg.evaluate.gold, cfg.reward_model.rule = "rlhf.world.tasks:gold", "no.such:rule"
    cfg.reward_model.url = "http://127.0.0.1:9"
    (tmp_path / "finished" / "prompts").mkdir(parents=True)
    (tmp_path / "finished" / "prompts" / "artifact.json").write_text("{}")
    cfg.reuse = [str(tmp_path / "finished"), str(tmp_path / "misspelt")]
    files = {}
    found = list(inputs.data(cfg, files))
    assert said(found, "prompts.path.1=") is OK and files == {"prompts.path.1": tmp_path / "set1.jsonl"}
    assert said(found, "prompts.path.2=") is ERROR and said(found, "sft.data=") is ERROR
    assert said(found, "pair.data=") is ERROR and said(found, "prompts.held_out_path=") is OK
    assert said(found, "evaluate.gold=") is OK and said(found, "reward_model.rule=no.such:rule") is ERROR
    assert said(found, "reward_model.url=http://127.0.0.1:9: no answer") is WARNING
    assert (
        said(found, "finished: 1 finished stages") is OK
        and said(found, "misspelt: 0 finished stages") is WARNING
    )


def test_names_that_are_passed_on_to_the_trainers():
    cfg = changed(dpo__lr_scheduler="cosin", sft__trainer_args={"betta": 1})
    cfg.reward_model.trainer_args = {"adam_beta2": 0.95}
    launcher = Answering()
    look(cfg, launcher)
    (job,) = launcher.jobs
    assert job.stage == "preflight", "it is needed even where no model is from outside"
    found = list(_names(job.config.cfg))
    assert said(found, "dpo.lr_scheduler=cosin") is ERROR
    assert (
        said(found, "sft.trainer_args: betta") is ERROR
        and said(found, "reward_model.trainer_args: adam_beta2") is OK
    )
    assert [each.level for each in _names(Config())] == [OK]


def test_an_error_is_cut_behind_its_first_sentence():
    whole = "a.jsonl, row 1: No prompt found (Is it text. Or what?). Give one. Or more."
    assert refusal(whole) == Finding(
        ERROR, "a.jsonl, row 1: No prompt found (Is it text. Or what?).", "Give one. Or more."
    )
    assert refusal("Nothing to be done") == Finding(ERROR, "Nothing to be done")


@pytest.mark.parametrize(
    ("train", "held_out", "values", "text", "level"),
    [
        (range(22), None, {}, "22 prompts in 22 rows, dropped: none", OK),
        ([*range(22), 1, 2], None, {}, "22 prompts in 24 rows, dropped: 2 duplicate", OK),
        ([*range(22), *range(22)], None, {}, "22 prompts in 44 rows", WARNING),
        (range(21), None, {}, "needs 18 training prompts", ERROR),
        (range(22), [1], {}, "prompts.path: 1 of 22", WARNING),
        (range(22), [99], {}, "prompts.path: 0 of 22", OK),
        (range(4), None, {}, "no prompt is left", ERROR),
        (range(50), None, {}, "50 prompts in 50 rows", OK),
        (range(99), None, {"num_iterations": 9}, "51 prompts in the first 51 rows", OK),
    ],
)
def test_prompts(tmp_path, monkeypatch, train, held_out, values, text, level):
    monkeypatch.setattr(inputs, "MAX_ROWS", 50)
    cfg = changed(prompts__num_per_iteration=6, prompts__num_held_out=4, **values)
    files, sample = {}, []
    if held_out is not None:
        cfg.prompts.held_out_path = "given"
        files["prompts.held_out_path"] = Path(rows(tmp_path / "held_out.jsonl", *held_out))
    files["prompts.path"] = Path(rows(tmp_path / "train.jsonl", *train))
    found = collect("prompts", inputs.prompts(cfg, files, sample))
    assert said(found, text) is level
    assert sample[0] == [{"role": "user", "content": "question 0"}] and len(sample) == min(
        51, len(set(train))
    )
    assert len([each for each in found if each.level is ERROR]) == (level is ERROR)


@pytest.mark.parametrize("has_file", [True, False])
def test_given_pairs_ask_for_no_training_prompts(tmp_path, has_file):
    """As the run itself: 3 prompts are fewer than num_held_out, and far fewer than an iteration's."""
    cfg = changed(pair__data=str(tmp_path / "pairs.jsonl"), num_iterations=1, run_dir=str(tmp_path / "run"))
    path = rows(tmp_path / "few.jsonl", 1, 2, 3)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    if has_file:
        cfg.prompts.held_out_path = path
    else:
        cfg.prompts.path = path
    files = {}
    found = collect("data", inputs.data(cfg, files)) + collect("prompts", inputs.prompts(cfg, files, []))
    assert {each.level for each in found} == {OK}, found
    assert set(files) == {"pair.data", "prompts.held_out_path" if has_file else "prompts.path"}
    assert said(hardware.disk(cfg, {"model.path": 1e9}, {"model.path": tmp_path}), "36 GB of") in Level, (
        "no response is sampled to train on"
    )


def test_a_prompt_of_an_earlier_iterations_set_is_noticed(tmp_path):
    cfg = changed(prompts__path="set{iteration}", prompts__num_held_out=2)
    files = {
        f"prompts.path.{t}": Path(rows(tmp_path / f"{t}.jsonl", *ids))
        for t, ids in ((1, range(5)), (2, [4, 5]))
    }
    found = collect("prompts", inputs.prompts(cfg, files, []))
    assert said(found, "prompts.path.2: 1 of 2") is WARNING and said(found, "prompts.path.1: 0 of 5") is OK


@pytest.mark.parametrize(("free", "level"), [(350e9, ERROR), (370e9, WARNING), (900e9, OK)])
def test_disk(tmp_path, monkeypatch, free, level):
    cfg = changed(run_dir=str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(
        hardware.shutil, "disk_usage", lambda path: SimpleNamespace(free=free if path.is_dir() else 0)
    )
    folders = {key: model(tmp_path / key, 8e9, "BF16") for key in EIGHT}
    # three iterations and an export of 32 GB, two checkpoints of 112 GB, 4 GB of responses
    assert said(hardware.disk(cfg, EIGHT, folders), "356 GB of") is level


@pytest.mark.parametrize(
    ("values", "dtype", "bytes_each"),
    [
        ({}, "BF16", 14),
        ({}, "F32", 16),
        ({"model__dtype": Dtype.bfloat16}, "F32", 14),
        ({"compute__zero_stage": 3}, "BF16", 12),
        ({"compute__zero_stage": 3}, "F32", 12),
        ({"dpo__lora__rank": 8}, "BF16", 0),
        ({"dpo__lora__rank": 8, "sft__data": "d"}, "BF16", 14),
        ({"dpo__lora__rank": 8, "reward_model__data": "d"}, "BF16", 14),
    ],
)
def test_two_checkpoints_hold_so_many_bytes_a_parameter(tmp_path, values, dtype, bytes_each):
    """As measured of DeepSpeed's files (tests/integration/training/test_checkpoints.py)."""
    folders = {key: model(tmp_path / key, 8e9, dtype) for key in EIGHT}
    cfg = changed(**values)
    weights = memory_check.bytes_of_weights(cfg, EIGHT, folders)
    assert hardware._bytes_of_checkpoints(cfg, EIGHT, weights) == 2 * bytes_each * 8e9


def test_finished_iterations_need_no_more_disk(tmp_path):
    cfg = changed(run_dir=str(tmp_path), dpo__lora__rank=8)
    for t in (1, 2):
        (tmp_path / f"iteration_00{t}" / "dpo").mkdir(parents=True)
    folders = {"model.path": model(tmp_path / "policy")}
    # the responses of one iteration
    assert said(hardware.disk(cfg, {"model.path": 1e3}, folders), "1.31 GB of") in Level
    cfg.prompts.num_per_iteration = 0
    assert said(hardware.disk(cfg, {"model.path": 1e9}, folders), "8 GB of") in Level


@pytest.mark.parametrize(
    ("values", "gpus", "stage", "text", "level"),
    [
        ({}, 1, "dpo", "144 GB of 80 GB", ERROR),
        ({}, 2, "dpo", "80 GB of 80 GB", WARNING),
        ({}, 8, "dpo", "32 GB of 80 GB", OK),
        ({"compute__zero_stage": 3}, 8, "dpo", "18 GB of 80 GB", OK),
        ({"compute__offload_optimizer": True}, 1, "dpo", "16 GB of 80 GB", OK),
        ({"dpo__lora__rank": 8}, 1, "dpo", "16 GB of 80 GB", OK),
        ({"generate__gpu_memory_utilization": 0.5}, 1, "generate", "16 GB of 40 GB", OK),
        ({"generate__gpu_memory_utilization": 0.15}, 1, "generate", "16 GB of 12 GB", ERROR),
        ({"compute__num_inference_workers": 4}, 0, "score", "64 GB of 80 GB", OK),
        ({"compute__num_training_ranks": 2}, 0, "dpo", "160 GB of 80 GB", ERROR),
        ({}, 8, "reference", "16 GB of 80 GB", OK),
        ({"compute__zero_stage": 3}, 8, "reference", "2 GB of 80 GB", OK),
        ({"compute__num_inference_workers": 4}, 0, "reference", "64 GB of 80 GB", OK),
        (
            {"compute__num_inference_workers": 4, "compute__num_training_ranks": 2, "compute__zero_stage": 3},
            0,
            "reference",
            "16 GB of 80 GB",
            OK,
        ),
    ],
)
def test_memory(tmp_path, monkeypatch, values, gpus, stage, text, level):
    monkeypatch.setattr(memory_check, "check_capacity", lambda cfg: None)
    monkeypatch.setattr(memory_check, "memory", lambda devices: 80e9)
    monkeypatch.setattr(memory_check, "gpus_of_run", lambda compute: ["0"] * gpus)
    monkeypatch.setattr(memory_check, "num_gpus_of_run", lambda compute: gpus)
    folders = {key: model(tmp_path / key, 8e9, "BF16") for key in EIGHT}
    found = list(memory_check.memory_of_stages(changed(**values), EIGHT, folders))
    assert said(found, f"memory for {stage}, without activations: {text}") is level


def test_gpus_of_unknown_size_are_no_reason_to_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_check, "gpus_of_run", lambda compute: ["0"])
    monkeypatch.setattr(memory_check, "num_gpus_of_run", lambda compute: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = list(memory_check.memory_of_stages(Config(), {"model.path": 8e9}, {"model.path": tmp_path}))
    assert said(found, "1 GPUs") is WARNING and ERROR not in {each.level for each in found}
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 81559\necho 40960\n")
    tool.chmod(0o755)
    found = list(memory_check.memory_of_stages(Config(), {"model.path": 8e9}, {"model.path": tmp_path}))
    assert said(found, "memory for dpo, without activations: 144 GB of 42.9 GB") is ERROR


def test_a_machine_that_cannot_is_refused_in_the_words_of_check_capacity(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (
        said(
            collect("machine", memory_check.memory_of_stages(Config(), {}, {})), "This machine cannot run it"
        )
        is ERROR
    )


def test_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "VERSIONS", ("pyarrow", "numpy", "no-such-package"))
    monkeypatch.setattr(hardware, "_PYPROJECT", tmp_path / "pyproject.toml")
    hardware._PYPROJECT.write_text('dependencies = [\n    "pyarrow>=9999",\n    "numpy>=1.2.3",\n]')
    found = list(hardware.versions(changed(generate__engine=Engine.transformers)))
    assert [each.level for each in found] == [WARNING, OK, ERROR]
    assert said(found, "no-such-package is not installed") is ERROR
    assert hardware._numbers("2.13.0+cpu") == [2, 13, 0] >= hardware._numbers("2.13")


def test_an_error_message_becomes_what_is_wrong_and_the_way_out():
    found = refusal("model.path=./a.B: no such folder (looked in /x. y). Ways out:\n  give one\n  make one")
    assert found == Finding(
        ERROR, "model.path=./a.B: no such folder (looked in /x. y).", "Ways out:\n  give one\n  make one"
    )
    shown = table([*collect("a", [found]), Finding(OK, "fine", "", "b")])
    assert shown.splitlines()[::2] == ["a", "      Ways out:", "        make one", "  ✓ fine"]


def quickstart():
    cfg = changed(
        model__path="@world/model", reward_model__path="@world/judge", prompts__path="@world/p.jsonl"
    )
    cfg.world.enabled = True
    return cfg


@needs_torch
def test_without_a_model_from_outside_no_process_is_started(tmp_path):
    launcher = Answering()
    found = look(quickstart(), launcher)
    assert launcher.jobs == [] and ERROR not in {each.level for each in found}


def test_wrong_values_are_all_that_is_looked_at():
    found = look(changed(generate__n=3, dpo__beta=0.0), Answering())
    assert {each.subject for each in found} == {"config"} and len(found) == 2


@needs_torch
def test_a_run_is_refused_for_what_is_wrong_and_told_what_is_odd(tmp_path, monkeypatch):
    cfg, lines = quickstart(), []
    cfg.model.path, cfg.run_dir = str(model(tmp_path / "policy")), str(tmp_path / "run")
    odd, wrong = (Finding(level, f"a {level.name}", "why", "policy") for level in (WARNING, ERROR))
    require(cfg, Answering(odd), lines.append)
    assert "⚠ a warning" in lines[0] and "✓" not in lines[0]
    with pytest.raises(ConfigError, match=r"nothing was run\.\n(.|\n)*✗ a error"):
        require(cfg, Answering(odd, wrong), lines.append)
    require(cfg, Answering(), lines.append)
    assert "could not be looked at" in lines[1] and "the worker died" in lines[1]
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cfg.compute.device = Device.cuda
    with pytest.raises(ConfigError, match=r"✗ compute\.device=cuda, but no GPU"):
        require(
            cfg,
            SimpleNamespace(launch=lambda job, kind, _: environments(kind, job.compute, 1, 0)),
            lines.append,
        )


def checked(tmp_path, *arguments):
    environment = dict(os.environ, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
    command = [sys.executable, "-m", "rlhf.check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)


@needs_torch
def test_the_quickstart_is_fine_and_nothing_is_written(tmp_path):
    done = checked(tmp_path, "experiment=quickstart")
    assert done.returncode == 0 and "✗" not in done.stdout, done.stdout + done.stderr
    assert "✓ model.path=@world/model: – made by this run" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_as_json_there_is_one_document(tmp_path):
    done = checked(tmp_path, "json=true", "generate.n=3")
    document = json.loads(done.stdout)
    assert done.returncode == 2 and document["ok"] is False
    (only,) = document["findings"]
    assert only["level"] == "error" and "generate.n=3" in only["text"] and only["way_out"]


class Preferring:
    """A judge that gives the absurd answer so many points."""

    def __init__(self, absurd):
        self.absurd = absurd

    def score(self, items):
        return Scored([self.absurd if "banana" in text else 1.0 for _, text in items])


def golden(tmp_path, absurd, name="iteration_000/held_out/score", judge="/elsewhere/judge"):
    inputs = {"judge": judge} if judge else {}
    out = tmp_path / Path(name).parent / ".score.partial"
    return score._golden_pair(Job("score", name, ScoreStage(), inputs, str(out), 1), Preferring(absurd))


def test_the_golden_pair_is_asked_once_of_a_judge(tmp_path):
    assert golden(tmp_path, 0.5) == {}
    assert "scores 'Purple bananas" in golden(tmp_path, 1.0)["warning"]
    assert golden(tmp_path, float("nan"))["warning"]
    assert golden(tmp_path, 2.0, name="iteration_000/held_out/score_other")["warning"]
    assert golden(tmp_path, 2.0, name="iteration_001/score") == golden(tmp_path, 2.0, judge=None) == {}
    trained = str(tmp_path / "reward_model" / "model")
    assert golden(tmp_path, 0.5, judge=trained) == {}
    warning = golden(tmp_path, 2.0, judge=trained)["warning"]
    assert "for 'What is the capital of France?'" in warning and "trained in this run" in warning
    (tmp_path / "world").mkdir()
    assert "for 'Reverse: a d c'" in golden(tmp_path, 2.0, judge=trained)["warning"]
    assert "capital of France" in golden(tmp_path, 2.0)["warning"], "one from outside is asked as ever"


def test_the_golden_pairs_warning_is_said_and_changes_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rlhf.scoring.choose_judge.load_judge", lambda *told: Preferring(2.0))
    made, candidates, console = {}, tmp_path / "candidates", Console(tmp_path)
    candidates.mkdir()
    answer = {
        "text": "a",
        "token_ids": [1],
        "finish_reason": "stop",
        "logprob": 0.0,
        "seed": 0,
        "temperature": 1.0,
    }
    row = {
        "id": "p",
        "messages": [{"role": "user", "content": "q"}],
        "prompt_token_ids": [1],
        "candidates": [answer],
    }
    write_shard(candidates / shard_name(0), CANDIDATES_SCHEMA, [row])
    for name in ("iteration_000/held_out/score", "iteration_001/held_out/score"):
        out = tmp_path / name
        out.mkdir(parents=True)
        inputs = {"candidates": str(candidates), "judge": "/elsewhere/judge"}
        outcome = score.run(
            Job("score", name, ScoreStage(), inputs, str(out), 1), FakeWorker(out=str(out), num_shards=1)
        )
        console.end(name, 1.0, outcome.metrics)
        made[name] = (out / shard_name(0)).read_bytes()
    console._log.close()
    assert len(set(made.values())) == 1
    assert capsys.readouterr().out.count("⚠ judge /elsewhere/judge") == 1


@pytest.mark.parametrize("has_gpu", [True, False])
def test_what_vllm_cannot_do_on_this_machine(monkeypatch, has_gpu):
    monkeypatch.setattr(hardware, "gpus_of_run", lambda compute: ["0"] * has_gpu)
    cfg = changed(generate__vllm_args={"enable_chunked_prefill": True})
    found = collect("machine", hardware.engine_arguments(cfg))
    assert said(found, "enable_chunked_prefill") is (OK if has_gpu else ERROR)
    assert collect("machine", hardware.engine_arguments(changed())) == []
    cfg.generate.engine = Engine.transformers
    assert collect("machine", hardware.engine_arguments(cfg)) == []
