"""The real command on tiny models: vLLM samples, DeepSpeed trains, kills are survived."""

import contextlib
import json
import math
import os
import shutil
import signal

import pytest

from rlhf.data.shards import read_all_rows
from tests.commands import called, copy_of, digests, loop, quick_loop, wait_for
from tests.faults.processes import descendants, group, workers_of, working_in
from tests.tiny import tiny_llama, tiny_reward_model

NUM_PROMPTS, NUM_HELD_OUT = 30, 6


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A policy, a judge, prompts, and what a run of them is told."""
    folder = tmp_path_factory.mktemp("loop")
    shape = {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }  # heads of 32, as vLLM wants on CPU
    tiny_llama(folder / "policy", seed=1, **shape)
    tiny_reward_model(folder / "judge", seed=2)
    rows = [
        {"instruction": f"Say {i} in words", "input": "" if i % 2 else f"context {i}"}
        for i in range(NUM_PROMPTS)
    ]
    (folder / "prompts.json").write_text(json.dumps([*rows, rows[0]]))
    return folder, [
        f"model.path={folder / 'policy'}",
        f"reward_model.path={folder / 'judge'}",
        f"prompts.path={folder / 'prompts.json'}",
        "prompts.num_per_iteration=12",
        f"prompts.num_held_out={NUM_HELD_OUT}",
        "num_iterations=1",
        "generate.n=4",
        "generate.max_new_tokens=12",
        "generate.shard_size=5",
        "score.max_tokens=1000",
        "pair.truncated=allow",
        "dpo.batch_size=4",
        "dpo.save_steps=1",
        "dpo.learning_rate=1e-3",
        "dpo.gradient_checkpointing=false",
        "evaluate.n=2",
    ]


@pytest.fixture(scope="module")
def finished(world):
    """An undisturbed run of one iteration, and what it printed."""
    folder, overrides = world
    code, said = loop(folder / "run", *overrides)
    assert code == 0, said
    return folder / "run", said


def test_the_run_says_what_came_out_and_where_it_lies(finished):
    run, said = finished
    for part in (
        "✓ iteration_001/dpo",
        "win rate vs π0",
        "KL to π0",
        "π1",
        "best policy",
        str(run / "summary.json"),
    ):
        assert part in said
    assert "⚠ score.max_tokens=1000" in said.split("✓")[0], "what is odd is said before the first stage, once"
    assert said.count("score.max_tokens=1000") == 1
    summary = json.loads((run / "summary.json").read_text())
    assert "planned / " in said and "spent on its stages: " in said
    assert summary["spent_seconds"]["dpo"] > 0 and summary["planned_seconds"]["dpo"] > 0
    iterations = summary["iterations"]
    assert [row["iteration"] for row in iterations] == [0, 1]
    assert iterations[0]["win_rate"] is None and iterations[0]["kl"] == 0.0
    assert (
        0 <= iterations[1]["win_rate_low"] <= iterations[1]["win_rate"] <= iterations[1]["win_rate_high"] <= 1
    )
    assert iterations[1]["kl"] is not None and iterations[1]["gold_accuracy"] is None


def test_every_prompt_is_accounted_for(finished):
    run, _ = finished
    manifest = {
        name: json.loads((run / name / "artifact.json").read_text())["counts"] for name in digests(run)
    }
    assert manifest["prompts"]["rows"] == NUM_PROMPTS + 1
    assert manifest["prompts"]["dropped/duplicate"] == 1
    assert manifest["prompts"]["train"] == NUM_PROMPTS - NUM_HELD_OUT
    assert manifest["iteration_001/generate"]["prompts"] == 12
    assert manifest["iteration_001/generate"]["responses"] == 48
    pair = manifest["iteration_001/pair"]
    assert pair["prompts"] == pair["prompts_with_pairs"] + sum(
        n for key, n in pair.items() if key.startswith("dropped/")
    )
    sampled = [row["id"] for row in read_all_rows(run / "iteration_001" / "generate", ["id"])]
    held_out = {row["id"] for row in read_all_rows(run / "iteration_001" / "held_out" / "generate", ["id"])}
    assert len(set(sampled)) == 12 and not held_out & set(sampled)


def test_training_starts_at_ln_2(finished):
    run, _ = finished
    first = json.loads((run / "iteration_001" / "dpo" / "metrics.jsonl").read_text().split("\n")[0])
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_the_best_policy_is_a_relative_link_that_loads(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, _ = finished
    target = os.readlink(run / "best")
    if json.loads((run / "summary.json").read_text())["best_iteration"] == 1:
        assert target == "iteration_001/export/model"
        weights = [
            run / "iteration_001" / stage / "model" / "model.safetensors" for stage in ("dpo", "export")
        ]
        assert os.path.samefile(*weights)
        card = (run / "best" / "README.md").read_text()
        assert "base model | policy (π0)" in card and "π1" in card and str(run.parent) not in card
    moved = copy_of(run, "moved")
    assert AutoModelForCausalLM.from_pretrained(moved / "best").num_parameters() > 0
    assert AutoTokenizer.from_pretrained(moved / "best").chat_template


def test_the_same_command_again_redoes_nothing(world, finished):
    run, _ = finished
    before = digests(run)
    code, said = loop(run, *world[1])
    assert code == 0 and "✓" not in said and "0 to do" in said
    assert digests(run) == before


def test_a_changed_setting_is_refused_before_anything_runs(world, finished):
    run, _ = finished
    before = digests(run)
    code, said = loop(run, *world[1], "dpo.beta=0.2")
    assert code == 2
    assert "config.beta: 0.1 there, 0.2 now" in said and "rm -r" in said and "Traceback" not in said
    assert digests(run) == before


def test_a_gate_stops_and_the_same_command_goes_on_where_it_only_warns(world, finished):
    run = copy_of(finished[0], "gated")
    for name in ("dpo", "held_out"):
        shutil.rmtree(run / "iteration_001" / name)
    limit = "gates.max_truncated=0.01"
    code, said = loop(run, *world[1], limit, "gates.truncated=stop")
    assert (
        code == 2
        and "gates.truncated=stop stopped the run in iteration 1" in said
        and "Traceback" not in said
    )
    assert "gates.truncated=warn" in said and not (run / "iteration_001" / "dpo").exists()
    body = json.loads((run / "summary.json").read_text())
    assert len(body["iterations"]) == 1 and [found["gate"] for found in body["gates"]] == ["truncated"]
    code, said = quick_loop(run, *world[1], limit, "gates.truncated=warn")
    assert code == 0, said
    assert (
        "! gates.truncated: " in said
        and "✓ iteration_001/dpo" in said
        and "✓ iteration_001/generate" not in said
    )
    (found,) = [
        each
        for each in json.loads((run / "summary.json").read_text())["gates"]
        if each["gate"] == "truncated"
    ]
    counts = json.loads((run / "iteration_001" / "generate" / "artifact.json").read_text())["counts"]
    assert found["value"] == counts["truncated"] / counts["responses"] > found["threshold"] == 0.01
    assert (found["iteration"], found["action"], found["where"]) == (1, "warn", "iteration_001/generate")
    assert digests(run) == digests(finished[0])
    code, said = loop(run, *world[1], limit, "gates.truncated=stop")  # also where all is finished
    assert code == 2 and "0 to do" in said and digests(run) == digests(finished[0])


def test_more_iterations_run_only_the_new_ones(world, finished):
    run = copy_of(finished[0], "more")
    before = digests(run)
    ranks = ["compute.num_inference_workers=2", "compute.num_training_ranks=2", "compute.zero_stage=3"]
    code, said = quick_loop(run, *world[1], "num_iterations=2", *ranks)
    assert code == 0, said
    assert "✓ iteration_001" not in said and "✓ iteration_002/dpo" in said
    assert digests(run).items() >= before.items()


def test_one_stage_alone(world, finished):
    run = copy_of(finished[0], "alone")
    expected = digests(run)["iteration_001/pair"]
    shutil.rmtree(run / "iteration_001" / "pair")
    code, said = loop(run, "pair", "iteration=1", module="rlhf.stage")
    assert code == 0, said
    assert digests(run)["iteration_001/pair"] == expected
    code, said = loop(run, "pair", "iteration=7", module="rlhf.stage")
    assert code == 2 and "no such stage" in said
    code, said = loop(run, "pear", "iteration=1", module="rlhf.stage")
    assert code == 2 and "pear: no such stage. Did you mean pair?" in said


@pytest.mark.parametrize("victim", ["driver", "worker", "everything"])
def test_a_killed_run_ends_as_an_undisturbed_one(world, finished, victim):
    run = copy_of(finished[0], f"killed-{victim}")
    for name in ("generate", "score", "pair", "reference", "dpo", "held_out"):
        shutil.rmtree(run / "iteration_001" / name)
    process = loop(run, *world[1], wait=False)
    stage = "dpo" if victim == "everything" else "generate"
    partial = run / "iteration_001" / f".{stage}.partial"
    wait_for(lambda: partial.exists() and workers_of(process.pid), seconds=120)
    everyone = [process.pid, *descendants(process.pid)]
    workers = workers_of(process.pid)
    for pid in {"driver": [process.pid], "worker": workers[:1], "everything": everyone}[victim]:
        with contextlib.suppress(ProcessLookupError):  # it has followed its parent
            os.kill(pid, signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    if victim == "worker":
        assert process.returncode == 1 and "killed by signal 9" in said
    code, said = quick_loop(run, *world[1])
    assert code == 0, said
    assert digests(run) == digests(finished[0])
    wait_for(lambda: not [pid for pid in everyone if group(pid) is not None], seconds=120)


def test_a_killed_engine_process_ends_the_stage_and_costs_one_shard(world, finished):
    run = copy_of(finished[0], "engineless")
    for name in ("iteration_000", "iteration_001"):
        shutil.rmtree(run / name)
    told = [*world[1], "+generate.vllm_args.distributed_executor_backend=mp"]  # as tensor parallelism has it
    dies_at = "after replace:held_out/.generate.partial/shard_00000.parquet"
    code, said = loop(run, *told, dies_at=dies_at, dies="engine")
    assert code == 1 and "held_out/generate failed" in said and "held_out.generate.rank0.log" in said, said
    assert "a process of vLLM's engine died" in said and "the same command goes on" in said, said
    first = run / "iteration_000" / "held_out" / ".generate.partial" / "shard_00000.parquet"
    assert [path.name for path in first.parent.glob("shard_*")] == [first.name]
    wait_for(lambda: not working_in(run.parent), seconds=120)
    before = first.stat().st_mtime_ns
    code, said = loop(run, *told)
    assert code == 0, said
    after = run / "iteration_000" / "held_out" / "generate" / first.name
    assert after.stat().st_mtime_ns == before, "what was finished is not made again"
    assert digests(run) == digests(finished[0])


@pytest.mark.parametrize(
    "boundary",
    ["before fsync:.dpo.partial/model/model.safetensors", "after rename:iteration_001/dpo"],
    ids=["weights_written", "committed"],
)
def test_a_training_that_dies_between_its_last_step_and_its_end(world, finished, boundary):
    run = copy_of(finished[0], "trained")
    shutil.rmtree(run / "iteration_001" / "dpo")
    code, said = loop(run, "dpo", "iteration=1", module="rlhf.stage", dies_at=boundary)
    assert code == -signal.SIGKILL, said
    unfinished = boundary.startswith("before")
    left = run / "iteration_001" / (".dpo.partial" if unfinished else "dpo")
    steps = len((left / "metrics.jsonl").read_text().splitlines())
    kept = {path.name for path in left.glob("checkpoint-*")}
    assert kept == {f"checkpoint-{steps - 2}", f"checkpoint-{steps - 1}"}, (
        "until the commit they may be needed"
    )
    code, said = called(run.parent, "rlhf.stage", f"run_dir={run}", "dpo", "iteration=1")
    assert code == 0, said
    assert digests(run) == digests(finished[0])
    log = (run / "logs" / "iteration_001.dpo.rank0.log").read_text()
    assert (f"going on from checkpoint-{steps - 1}" in log) == unfinished, "more than one step was done again"
    assert not list((run / "iteration_001").rglob("checkpoint-*"))


def test_a_second_driver_is_refused(world, finished):
    run = copy_of(finished[0], "busy")
    shutil.rmtree(run / "iteration_001" / "generate")
    first = loop(run, *world[1], wait=False)
    wait_for(lambda: (run / "iteration_001" / ".generate.partial").exists(), seconds=120)
    code, said = loop(run, *world[1])
    first.send_signal(signal.SIGINT)
    stopped, _ = first.communicate(timeout=30)
    assert code == 2 and f"process {first.pid} " in said
    assert first.returncode == 130 and "goes on from here" in stopped


def test_an_iteration_without_a_pair_says_why(world, finished):
    run = copy_of(finished[0], "pairless")
    for name in ("pair", "reference", "dpo", "held_out"):
        shutil.rmtree(run / "iteration_001" / name)
    code, said = loop(run, *world[1], "pair.min_margin=1000")
    assert code == 2, said
    assert "below_margin" in said and "Traceback" not in said
    code, said = quick_loop(run, *world[1])  # the setting can be put right at once
    assert code == 0, said
