"""Training that is killed goes on and ends with the same bytes."""

from __future__ import annotations

import json
import logging
import time

import pytest
from transformers import TrainerControl, TrainerState

from rlhf.config.schema import ReferenceConfig
from rlhf.config.training import DpoConfig, LoraConfig, RewardModelConfig, SftConfig
from rlhf.errors import UserError
from rlhf.models.weight_files import num_parameters
from rlhf.run.commit import commit
from rlhf.training import checkpoints
from rlhf.training.checkpoints import find_checkpoint
from tests.stage_runner import make_job, run_here, run_ranks, start_ranks
from tests.tiny import random_pairs, tiny_llama, write_pairs

SLOW = """
import time, rlhf.training.dpo as d
step = d.DpoTrainer.training_step
d.DpoTrainer.training_step = lambda *a, **k: (time.sleep(0.3), step(*a, **k))[1]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    model, pairs = tiny_llama(folder / "policy"), write_pairs(folder / "pairs", random_pairs(14))
    run_here(
        make_job(
            "reference",
            ReferenceConfig(),
            {"model": model, "pairs": pairs},
            folder / "reference",
            max_length=99,
        )
    )
    return folder


FULL, ADAPTER = LoraConfig(), LoraConfig(rank=4, dropout=0.1)


def job(world, out, zero_stage, lora=FULL):
    section = DpoConfig(
        learning_rate=1e-3, batch_size=4, max_length=99, gradient_checkpointing=False, save_steps=2
    )
    section.lora = lora
    inputs = {name: world / name for name in ("policy", "pairs", "reference")}
    return make_job("dpo", section, inputs, out, compute={"zero_stage": zero_stage}, batch_tokens=300)


def files(out):
    made = [
        out / "metrics.jsonl",
        *(path for name in ("model", "adapter") for path in (out / name).glob("*")),
    ]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in made}


def kill_after(ranks, out, seal):
    deadline = time.monotonic() + 120
    while not (out / seal).exists():
        assert time.monotonic() < deadline, ranks.log()
        assert all(process.exitcode is None for process in ranks.processes), ranks.log()
        time.sleep(0.02)
    ranks.kill()
    assert not (out / "model").exists()


@pytest.mark.parametrize(
    ("num_ranks", "zero_stage", "lora"),
    [(1, 2, FULL), (2, 3, FULL), (2, 2, ADAPTER), (2, 3, ADAPTER)],
    ids=["full", "full_zero3", "lora", "lora_zero3"],
)
def test_sigkill_and_a_damaged_checkpoint_leave_no_trace(world, tmp_path, num_ranks, zero_stage, lora):
    run_ranks(job(world, tmp_path / "whole", zero_stage, lora), num_ranks)
    broken = job(world, tmp_path / "broken", zero_stage, lora)
    out = tmp_path / "broken"
    kill_after(start_ranks(broken, num_ranks, SLOW), out, "checkpoint-4/sealed.json")
    size = sum(path.stat().st_size for path in (out / "checkpoint-2").rglob("*optim_states.pt"))
    whole = (tmp_path / "whole" / "model" / "model.safetensors").stat().st_size
    assert size < whole if lora is ADAPTER else size > 3 * whole  # frozen weights have no optimizer states
    (out / "checkpoint-6").mkdir(exist_ok=True)  # as if killed while it was written
    (out / "checkpoint-6" / "sealed.json").unlink(missing_ok=True)
    weights = max((out / "checkpoint-4").rglob("*.pt"), key=lambda path: path.stat().st_size)
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    ranks = start_ranks(broken, num_ranks)
    ranks.wait()
    assert "checkpoint-6 was not finished" in ranks.log()
    assert f"checkpoint-4 is damaged ({weights.relative_to(out / 'checkpoint-4')})" in ranks.log()
    assert "going on from checkpoint-2" in ranks.log()
    assert files(out) == files(tmp_path / "whole")
    assert {"model/model.safetensors", "model/config.json"} <= files(out).keys()
    assert ("adapter/adapter_model.safetensors" in files(out)) == (lora is ADAPTER)
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == list(
        range(1, 9)
    )
    kept = sorted(path.name for path in out.glob("checkpoint-*"))
    assert kept == ["checkpoint-4", "checkpoint-6"], "they are of use until the stage is committed"


SLOW_TRL = """
import time, transformers
step = transformers.Trainer.training_step
transformers.Trainer.training_step = lambda *a, **k: (time.sleep(0.3), step(*a, **k))[1]
"""


@pytest.mark.parametrize(("stage", "section"), [("sft", SftConfig), ("reward_model", RewardModelConfig)])
def test_trls_trainers_leave_no_trace_of_a_kill_either(tmp_path, stage, section):
    asked = [[{"role": "user", "content": f"say {i}"}] for i in range(16)]
    answers = [[{"role": "assistant", "content": f"{word} {i}"}] for i in range(16) for word in ("A", "b")]
    rows = [
        {"messages": ask + answers[2 * i]}
        if stage == "sft"
        else {"chosen": ask + answers[2 * i], "rejected": ask + answers[2 * i + 1]}
        for i, ask in enumerate(asked)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs = {"model": tiny_llama(tmp_path / "base"), "data": tmp_path / "data.jsonl"}
    packs = {"max_length": 48, "num_epochs": 2, "held_out_share": 0.1} if stage == "sft" else {}
    settings = section(learning_rate=1e-3, batch_size=2, gradient_checkpointing=False, save_steps=2, **packs)
    whole, broken = (make_job(stage, settings, inputs, tmp_path / name) for name in ("whole", "broken"))
    run_ranks(whole)
    kill_after(start_ranks(broken, 1, SLOW_TRL), tmp_path / "broken", "checkpoint-4/sealed.json")
    ranks = start_ranks(broken, 1)
    ranks.wait()
    assert "going on from checkpoint-" in ranks.log()
    assert files(tmp_path / "broken") == files(tmp_path / "whole")
    # Optimizer states lie in checkpoints alone, and go with them when the stage is committed.
    states = [path for path in (tmp_path / "broken").rglob("*optim*") if path.is_file()]
    commit(tmp_path / "broken", tmp_path / "made", {"stage": stage}, broken, {}, {}, 0.0)
    assert states and all(
        path.relative_to(tmp_path / "broken").parts[0].startswith("checkpoint-") for path in states
    )
    assert not list((tmp_path / "made").rglob("*optim*")) and not list(
        (tmp_path / "made").glob("checkpoint-*")
    )


@pytest.mark.parametrize(
    ("dtype", "zero_stage", "bytes_each"),
    [("bfloat16", 2, 14), ("float32", 2, 16), ("bfloat16", 3, 12)],
)
def test_a_checkpoint_is_as_large_as_the_preflight_counts_it(tmp_path, dtype, zero_stage, bytes_each):
    """`tests/unit/preflight/test_look.py` has the same figures for the preflight."""
    model = tiny_llama(tmp_path / "policy", hidden_size=128)
    inputs = {"model": model, "pairs": write_pairs(tmp_path / "pairs", random_pairs(4))}
    reference = make_job("reference", ReferenceConfig(), inputs, tmp_path / "reference", max_length=99)
    run_here(reference)
    training = job(tmp_path, tmp_path / "out", zero_stage)
    training.config.dtype = dtype
    training.config.batch_size = 1
    run_ranks(training)
    checkpoint = find_checkpoint(tmp_path / "out")
    size = sum(path.stat().st_size for path in checkpoint.rglob("*.pt") if "rng" not in path.name)
    assert size == pytest.approx(bytes_each * num_parameters(model), rel=0.05)


def seal(out, step, **files_of):
    checkpoint = out / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    for name, text in files_of.items():
        (checkpoint / name).write_text(text)
    checkpoints._Sealer(out, 2)._seal(checkpoint, checkpoints._digests(checkpoint))
    return checkpoint


def room_for(out, step, num_checkpoints=2):
    """What the Trainer does after a step whose checkpoint is to be written."""
    control = TrainerControl(should_save=True)
    state = TrainerState(global_step=step, max_steps=100)
    checkpoints._Sealer(out, num_checkpoints).on_step_end(None, state, control)


def names(out):
    return sorted(path.name for path in out.iterdir())


def test_room_is_made_before_a_checkpoint_is_written_and_a_sealed_one_stays(tmp_path):
    for step in (2, 9):
        room_for(tmp_path, step)
        seal(tmp_path, step, weights=str(step))
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-9"]
    room_for(tmp_path, 10)
    assert names(tmp_path) == ["checkpoint-9"]
    (tmp_path / "checkpoint-10").mkdir()  # killed while it is written: the sealed one is gone on from
    assert find_checkpoint(tmp_path).name == "checkpoint-9"
    seal(tmp_path, 10, weights="10")
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-9"]
    assert find_checkpoint(tmp_path).name == "checkpoint-10"  # by number, not by name


@pytest.mark.parametrize("num_checkpoints", [2, 3, 5])
def test_so_many_checkpoints_are_kept_as_are_wanted(tmp_path, num_checkpoints):
    for step in range(1, 8):
        room_for(tmp_path, step, num_checkpoints)
        seal(tmp_path, step, weights=str(step))
        kept = range(max(1, step - num_checkpoints + 1), step + 1)
        assert names(tmp_path) == [f"checkpoint-{number}" for number in kept]


def test_no_room_is_made_for_a_checkpoint_that_is_not_written(tmp_path):
    for step in (2, 4):
        seal(tmp_path, step, weights=str(step))
    control = TrainerControl(should_save=True)
    checkpoints._Sealer(tmp_path, 2).on_step_end(None, TrainerState(global_step=6, max_steps=6), control)
    assert not control.should_save and names(tmp_path) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize("damage", ["missing", "added", "seal"])
def test_what_the_seal_does_not_cover_is_not_loaded(tmp_path, damage, caplog):
    seal(tmp_path, 2, weights="2")
    newest = seal(tmp_path, 4, weights="4", other="4")
    if damage == "missing":
        (newest / "other").unlink()
    elif damage == "added":
        (newest / "evil.pt").write_text("x")
    else:
        sealed = json.loads((newest / "sealed.json").read_text())
        (newest / "sealed.json").write_text(json.dumps(sealed | {"world_size": 2}))  # not what was sealed
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(tmp_path).name == "checkpoint-2"
    assert "checkpoint-4" in caplog.text
    assert not newest.exists()


def test_another_number_of_ranks_is_refused_with_the_ways_out(tmp_path, monkeypatch):
    checkpoint = seal(tmp_path, 2, weights="2")
    monkeypatch.setattr(checkpoints, "world_size", lambda: 4)
    with pytest.raises(
        UserError,
        match=r"written by 1 training ranks, and 4 .*num_training_ranks=1 \(where GPUs train, 1 of them.*or delete",
    ):
        find_checkpoint(tmp_path)
    assert checkpoint.exists()


def test_nothing_to_go_on_from(tmp_path):
    assert find_checkpoint(tmp_path) is None


def test_the_seal_covers_what_other_ranks_wrote_last(tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    monkeypatch.setattr(checkpoints, "barrier", lambda: (checkpoint / "of_rank_1").write_text("late"))
    checkpoints._Sealer(tmp_path, 2).on_save(None, TrainerState(global_step=2), None)
    assert checkpoints._read_seal(checkpoint)["files"].keys() == {"of_rank_1"}
