"""The table of stages: what a job is sharded by, and how the old spelling of a command is answered."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.config.schema import ComputeConfig, Config
from rlhf.config.stage_configs import (
    GenerateStage,
    MixStage,
    PairSettings,
    PromptsStage,
    ReadStage,
    ReferenceStage,
    RuleStage,
    ScoreStage,
)
from rlhf.run.artifact import Artifact
from rlhf.run.job import Job, Kind
from rlhf.run.plan import Run
from rlhf.run.stage_table import STAGES, kind_of, needs_engine, num_shards, sliced_rows, stage_function

ROOT = Path(__file__).resolve().parents[3]


def shards(folder, num):
    folder.mkdir()
    for index in range(num):
        pq.write_table(pa.table({"id": ["a"]}), folder / f"shard_{index:05d}.parquet")
    return str(folder)


def test_a_job_has_the_shards_of_its_input(tmp_path):
    three, two = shards(tmp_path / "three", 3), shards(tmp_path / "two", 2)

    def number(stage, config, **inputs):
        return num_shards(Job(stage, stage, config, inputs, "out", 1))

    assert number("pair", PairSettings(), candidates=three, scores=two) == 3
    assert number("mix", MixStage(), **{"initial.main": three, "scores.main": two}) == 2
    assert number("reference", ReferenceStage(), pairs=two, candidates=three) == 2
    assert number("reference", ReferenceStage(), candidates=three) == 3
    assert number("generate", GenerateStage(), prompts=three, policy="p") == 3
    assert number("prompts", PromptsStage(), prompts=three) == 0


@pytest.mark.parametrize(
    ("wanted", "rows", "num"),
    [(None, (0, 10), 3), ([0, 4], (0, 4), 1), ([4, 9], (4, 9), 2), ([8, 16], (8, 10), 1)],
)
def test_prompts_in_one_file_are_cut_by_slice_and_shard_size(tmp_path, wanted, rows, num):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"id": [str(i) for i in range(10)]}), path)
    assert sliced_rows(path, wanted) == rows
    job = Job("generate", "g", GenerateStage(slice=wanted, shard_size=4), {"prompts": str(path)}, "out", 1)
    assert num_shards(job) == num


@pytest.mark.parametrize("name", ["prompts", "pair", "mix", "export", "read", "score"])
def test_a_stage_is_found_by_its_name(name):
    assert callable(stage_function(name))


@pytest.mark.parametrize("name", ["dpo", "pair", "reference", "generate"])
def test_the_old_spelling_of_a_stage_answers_with_the_new_one(name):
    command = [sys.executable, "-m", f"rlhf.stages.{name}", "run_dir=x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert f"python -m rlhf.stage {name} run_dir=RUN" in done.stderr and "Traceback" not in done.stderr
    assert name in STAGES


def test_the_ranks_that_train_run_the_reference_where_they_share_the_weights() -> None:
    for name, row in STAGES.items():
        assert kind_of(name, ComputeConfig(zero_stage=2)) is row.kind
        under_zero3 = Kind.training if name == "reference" else row.kind
        assert kind_of(name, ComputeConfig(zero_stage=3)) is under_zero3


def test_only_stages_that_load_a_model_wait_for_the_imports_of_engines() -> None:
    waiting = {name for name in STAGES if needs_engine(name, {})}
    assert waiting == {"sft", "reward_model", "generate", "score", "reference", "dpo", "raft", "track"}
    # As a job is told, and as a record has it.
    assert not needs_engine("score", RuleStage(rule="rules:length"))
    assert not needs_engine("score", {"rule": "rules:length"})
    assert needs_engine("score", ScoreStage()) and needs_engine("score", {"rule": None})


def test_a_plan_knows_which_of_its_stages_need_an_engine(tmp_path: Path) -> None:
    file = Artifact(tmp_path / "in.jsonl", "d")
    plan = Run(tmp_path / "run", Config(), planning=True)
    read = plan.stage("read", "read", ReadStage("responses", 4), {"file": file})
    candidates = read.part("candidates")
    scores = plan.stage("score", "gold", RuleStage(rule="rules:length"), {"candidates": candidates})
    plan.stage("pair", "pair", PairSettings(), {"candidates": candidates, "scores": scores})
    assert plan.pending == ["read", "gold", "pair"] and plan.needing_engines == set()
    plan.stage("score", "score", ScoreStage(), {"candidates": candidates, "judge": file})
    assert plan.needing_engines == {"score"}
