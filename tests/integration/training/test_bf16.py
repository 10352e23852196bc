"""Training in bf16 under DeepSpeed: gradients add up in fp32, and what is exported are the fp32 weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from rlhf.config.schema import ReferenceConfig
from rlhf.config.stage_configs import PreferenceModelStage
from rlhf.config.training import DpoConfig, LoraConfig, RewardModelConfig, SftConfig
from tests.families import tiny_policy
from tests.stage_runner import make_job, run_here, run_ranks
from tests.tiny import random_pairs, tiny_llama, write_pairs

NUM_PAIRS = 64
MAX_LENGTH = 50

SAVE_GRADIENTS = """
import deepspeed, torch
from deepspeed.utils import safe_get_full_grad
from rlhf.training.stage_trainer import StageTrainer

sums = {}
prepare, step = StageTrainer._prepare_for_training, deepspeed.DeepSpeedEngine.step

def add(name, parameter):
    # Before DeepSpeed's own hook, which takes the gradient away: that of one bin, in bf16.
    assert parameter.grad.dtype == parameter.dtype
    sums[name] = sums.get(name, 0) + parameter.grad.float()

def prepared(self, *rest):
    for name, parameter in self.model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: add(name, p))
    return prepare(self, *rest)

def saved(self, *rest, **named):
    # The Trainer's other steps are those between two bins, in which DeepSpeed does nothing.
    if self.is_gradient_accumulation_boundary():
        stepped = {n: safe_get_full_grad(p) for n, p in self.module.named_parameters() if p.requires_grad}
        torch.save((dict(sums), stepped), f"{job.out}/gradients.pt")
        sums.clear()
    return step(self, *rest, **named)

StageTrainer._prepare_for_training, deepspeed.DeepSpeedEngine.step = prepared, saved
"""
"""Saves the fp32 sum of all bins' gradients, and what DeepSpeed makes the step of, of the last step."""

SAVE_WEIGHTS = """
import torch
import rlhf.training.dpo as dpo

export = dpo.export_model

def saved(model, *rest, **named):
    computed_with = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.save(computed_with, f"{job.out}/computed_with{rank}.pt")
    export(model, *rest, **named)

dpo.export_model = saved
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    inputs = {
        "model": tiny_llama(folder / "policy", 1),
        "pairs": write_pairs(folder / "pairs", random_pairs(NUM_PAIRS)),
    }
    run_here(make_job("reference", ReferenceConfig(), inputs, folder / "reference", max_length=MAX_LENGTH))
    asked = [[{"role": "user", "content": f"say {i}"}] for i in range(NUM_PAIRS)]
    answers = [[{"role": "assistant", "content": f"{word} {i}"}] for i in range(NUM_PAIRS) for word in "ab"]
    conversations, preferences = [], []
    for i, ask in enumerate(asked):
        conversations.append({"messages": ask + answers[2 * i]})
        preferences.append({"chosen": ask + answers[2 * i], "rejected": ask + answers[2 * i + 1]})
    for name, rows in (("sft", conversations), ("reward_model", preferences)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def dpo_job(world, out, compute=None, **config):
    section = DpoConfig(
        learning_rate=1e-3, batch_size=NUM_PAIRS, max_length=MAX_LENGTH, num_epochs=1, save_steps=100
    )
    inputs = {name: world / name for name in ("policy", "pairs", "reference")}
    settings = {"gradient_checkpointing": False, "dtype": "bfloat16"} | config
    return make_job("dpo", section, inputs, out, compute=compute, **settings)


def gradients(out):
    """Two vectors over all weights: the fp32 sum of what the bins gave, and what the step was made of."""
    vectors = []
    for gradient_by_name in torch.load(out / "gradients.pt", map_location="cpu"):
        values = [gradient_by_name[name].float().flatten() for name in sorted(gradient_by_name)]
        vectors.append(torch.cat(values))
    return vectors


def off_by(value, expected):
    """The relative distance of two vectors."""
    return float((value - expected).norm() / expected.norm())


CASES = {
    "zero2": {},
    "zero3": {"compute": {"zero_stage": 3}},
    "offloaded": {"compute": {"offload_optimizer": True}},
    "offloaded zero3": {"compute": {"offload_optimizer": True, "zero_stage": 3}},
    "checkpointed": {"gradient_checkpointing": True},
    "lora": {"lora": LoraConfig(rank=4)},
}


@pytest.mark.parametrize("case", CASES)
def test_a_dpo_step_is_the_fp32_sum_of_its_bins(world, tmp_path, case):
    # One pair in each of 64 bins: in bf16 their sum would be off by 1e-2.
    run_ranks(dpo_job(world, tmp_path, batch_tokens=1, **CASES[case]), hook=SAVE_GRADIENTS)
    of_bins, of_step = gradients(tmp_path)
    assert of_step.norm() > 0
    assert off_by(of_step, of_bins) < 1e-6


@pytest.mark.parametrize(
    ("stage", "section", "more"),
    [
        ("sft", SftConfig, {"packing": False}),
        ("reward_model", RewardModelConfig, {}),
        ("reward_model", RewardModelConfig, {"cls": PreferenceModelStage, "kind": "pairwise"}),
    ],
    ids=["sft", "reward_model", "preference_model"],
)
def test_a_step_of_trls_trainers_is_the_fp32_sum_of_its_micro_batches(world, tmp_path, stage, section, more):
    settings = section(learning_rate=1e-3, batch_size=NUM_PAIRS, gradient_checkpointing=False, num_epochs=1)
    inputs = {"model": world / "policy", "data": world / f"{stage}.jsonl"}
    small = {"dtype": "bfloat16", "micro_batch_size": 1, "held_out_share": 0.0}
    run_ranks(make_job(stage, settings, inputs, tmp_path, **small, **more), hook=SAVE_GRADIENTS)
    of_bins, of_step = gradients(tmp_path)
    assert of_step.norm() > 0
    assert off_by(of_step, of_bins) < 1e-6


def test_a_step_does_not_depend_on_the_number_of_bins(world, tmp_path):
    """What is left of the difference is bf16 within the bins, the same in 2, 16 and 64 of them."""
    run_ranks(dpo_job(world, tmp_path / "fp32", dtype="float32"), hook=SAVE_GRADIENTS)
    _, exact = gradients(tmp_path / "fp32")
    errors = []
    for batch_tokens in (3300, 400, 1):
        out = tmp_path / str(batch_tokens)
        run_ranks(dpo_job(world, out, batch_tokens=batch_tokens), hook=SAVE_GRADIENTS)
        errors.append(off_by(gradients(out)[1], exact))
    # Added up in bf16, the last would be 1.3 times the first.
    assert max(errors) == pytest.approx(min(errors), rel=0.05)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_fp32_weights_are_exported_and_the_model_computes_with_them_rounded(world, tmp_path, ranks):
    job = dpo_job(world, tmp_path, batch_size=16, warmup_ratio=0.0)
    run_ranks(job, ranks, SAVE_WEIGHTS)
    exported = load_file(tmp_path / "model" / "model.safetensors")
    before = load_file(world / "policy" / "model.safetensors")
    for rank in range(ranks):
        computed_with = torch.load(tmp_path / f"computed_with{rank}.pt")
        assert computed_with.keys() == exported.keys()
        for name, value in exported.items():
            assert computed_with[name].dtype == torch.bfloat16
            assert torch.equal(value.bfloat16(), computed_with[name]), name
            assert not torch.equal(value, before[name]), name
            assert not torch.equal(value, value.bfloat16().float()), name


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_step_of_nothing_keeps_every_bit_of_fp32_weights(world, tmp_path, zero_stage):
    run_ranks(dpo_job(world, tmp_path, {"zero_stage": zero_stage}, learning_rate=1e-50))
    exported = load_file(tmp_path / "model" / "model.safetensors")
    for name, value in load_file(world / "policy" / "model.safetensors").items():
        assert torch.equal(exported[name], value), name


@pytest.mark.parametrize(("num_ranks", "zero_stage"), [(1, 2), (2, 2), (1, 3), (2, 3)])
def test_a_judge_whose_vocabulary_grows_keeps_every_bit_too(tmp_path, num_ranks, zero_stage):
    """Where the tokenizer has no token to pad with, the embedding gets a row that no file has."""
    policy = tiny_policy(tmp_path / "policy", "mistral")
    pairs = [{"prompt": f"say {i}", "chosen": f"A {i}", "rejected": f"b {i}"} for i in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    section = RewardModelConfig(
        learning_rate=1e-50, batch_size=4, held_out_share=0.0, gradient_checkpointing=False, num_epochs=1
    )
    inputs = {"model": policy, "data": tmp_path / "pairs.jsonl"}
    job = make_job(
        "reward_model",
        section,
        inputs,
        tmp_path / "out",
        dtype="bfloat16",
        compute={"zero_stage": zero_stage},
    )
    run_ranks(job, num_ranks)
    exported = load_file(tmp_path / "out" / "model" / "model.safetensors")
    name = "model.embed_tokens.weight"
    before = load_file(policy / "model.safetensors")
    assert len(exported[name]) == len(before[name]) + 1
    for name in exported.keys() & before.keys():
        kept = exported[name][: len(before[name])]
        assert torch.equal(kept, before[name]), name
        assert not torch.equal(kept, kept.bfloat16().float()) or "norm" in name, name
