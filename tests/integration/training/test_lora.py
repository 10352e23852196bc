"""DPO with adapters: the same curve however it is run, merged in fp32 into the policy it started from."""

from __future__ import annotations

import itertools
import json
import math
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import rlhf.training.lora
from rlhf.config.schema import ReferenceConfig
from rlhf.config.training import DpoConfig, LoraConfig
from rlhf.errors import ConfigError
from rlhf.training.lora import add_adapter, export_adapter
from rlhf.training.weights import load_model
from tests.stage_runner import make_job, run_here, run_ranks
from tests.tiny import random_pairs, tiny_llama, write_pairs

MAX_LENGTH = 50
IDS = torch.arange(10, 40)[None]
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["all-linear"]}
CHECK = """
import rlhf.training.fit as f
train = f.train_resumable
def checked(trainer, out, num_checkpoints):
    train(trainer, out, num_checkpoints)
    import torch.distributed as dist
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    names = {n.split(".lora_")[1][0] for n, p in trainer.model.named_parameters() if p.requires_grad}
    states = trainer.optimizer.optimizer.state.values()
    held = sum(v.numel() for state in states for v in state.values() if v.dim())
    size = sum(getattr(p, "ds_numel", p.numel()) for p in trained)
    # DeepSpeed allocates buckets whole: of all weights they would be 2 GB of an 8B model.
    assert trainer.model_wrapped.optimizer.reduce_bucket_size == size
    assert trainer.model_wrapped.zero_allgather_bucket_size() == size
    assert names == {"A", "B"} and 2 * size <= held * dist.get_world_size() <= 2 * size + 64, (names, held, size)
f.train_resumable = checked
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    policy, pairs = tiny_llama(folder / "policy", 1), write_pairs(folder / "pairs", random_pairs(21))
    for dtype in ("float32", "bfloat16"):
        inputs = {"model": policy, "pairs": pairs}
        out = folder / f"reference_{dtype}"
        run_here(make_job("reference", ReferenceConfig(), inputs, out, max_length=MAX_LENGTH, dtype=dtype))
    return folder


def dpo_job(world, out, zero_stage=2, policy=None, **config):
    section = DpoConfig(
        learning_rate=1e-2,
        batch_size=8,
        max_length=MAX_LENGTH,
        warmup_ratio=0.0,
        save_steps=100,
        lora=LoraConfig(**config.pop("lora", LORA)),
    )
    dtype = config.setdefault("dtype", "float32")
    inputs = {
        "policy": policy or world / "policy",
        "pairs": world / "pairs",
        "reference": world / f"reference_{dtype}",
    }
    return make_job("dpo", section, inputs, out, compute={"zero_stage": zero_stage}, **config)


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def one_rank(world):
    run_ranks(dpo_job(world, world / "one_rank"), hook=CHECK)
    return world / "one_rank"


def test_it_starts_at_ln_2_and_learns(one_rank):
    assert losses(one_rank)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(one_rank)[-1] < 0.6


@pytest.mark.parametrize(
    ("ranks", "stage", "config"),
    [(2, 2, {"gradient_checkpointing": False}), (2, 3, {"batch_tokens": 300}), (1, 3, {})],
    ids=["zero2", "zero3", "zero3_alone"],
)
def test_curve_and_weights_do_not_depend_on_ranks_stage_or_bins(
    world, one_rank, ranks, stage, config, tmp_path
):
    run_ranks(dpo_job(world, tmp_path, stage, **config), ranks, CHECK)
    assert losses(tmp_path) == pytest.approx(losses(one_rank), abs=2e-5)
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        expected = load_file(one_rank / name)
        for key, value in load_file(tmp_path / name).items():
            assert torch.allclose(value, expected[key], atol=2e-3, rtol=0), key


def test_the_merged_model_is_the_policy_with_its_adapter(world, one_rank):
    merged = loaded(one_rank / "model")
    adapted = PeftModel.from_pretrained(loaded(world / "policy"), one_rank / "adapter")
    assert torch.allclose(logits(merged), logits(adapted), atol=1e-5, rtol=0)
    assert (logits(merged) - logits(loaded(world / "policy"))).abs().max() > 0.1
    names = {path.name for path in (one_rank / "model").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    for path in (one_rank / "adapter").iterdir():
        assert str(world).encode() not in path.read_bytes()


def test_only_the_adapted_weights_change(world, one_rank):
    before, after = (load_file(path / "model.safetensors") for path in (world / "policy", one_rank / "model"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "proj" in name}


def test_bf16_merges_in_fp32_and_two_iterations_add_up(world, tmp_path):
    """Changes far below bf16's spacing are kept, over two iterations, and frozen weights keep every bit."""
    policies, states = [world / "policy"], []
    for iteration in range(2):
        out = tmp_path / str(iteration)
        job = dpo_job(
            world, out, 2 + iteration, policies[-1], dtype="bfloat16", learning_rate=1e-4, num_epochs=1
        )
        run_ranks(job)
        policies.append(out / "model")
        states.append(load_file(out / "adapter" / "adapter_model.safetensors"))
    assert losses(tmp_path / "0")[0] == pytest.approx(math.log(2), abs=1e-3)  # bf16 depends on padding
    weights = [load_file(policy / "model.safetensors") for policy in policies]
    for (old, new), state in zip(itertools.pairwise(weights), states, strict=True):
        for name, value in new.items():
            assert value.dtype == torch.float32
            key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
            if f"{key}A.weight" in state:
                update = 8 / 4 * (state[f"{key}B.weight"] @ state[f"{key}A.weight"])
                assert torch.equal(value, old[name] + update), name
                assert 0 < update.abs().max() < 2e-3
            else:
                assert torch.equal(value, old[name]), name
    name = "model.layers.0.mlp.down_proj.weight"
    assert (weights[0][name].bfloat16() == weights[2][name].bfloat16()).float().mean() > 0.3


def test_merging_equals_peft_s_own_forward_for_sharded_bf16_weights(tmp_path, monkeypatch):
    policy = tiny_llama(tmp_path / "policy", 3, tie_word_embeddings=False)
    loaded(policy).bfloat16().save_pretrained(policy, max_shard_size="50KB")
    (policy / "model.safetensors").unlink()
    shutil.copyfile(next(policy.glob("model-*.safetensors")), policy / "consolidated.safetensors")
    lora = LoraConfig(**LORA | {"target_modules": ["q_proj", "down_proj", "lm_head"]})
    model = add_adapter(load_model(policy, torch.float32), policy, lora, seed=0)
    before = logits(model)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".lora_" in name)
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    export_adapter(model, policy, tmp_path / "whole")
    assert [path.name for path in (tmp_path / "whole" / "model").glob("*.safetensors*")] == [
        "model.safetensors"
    ]
    monkeypatch.setattr(rlhf.training.lora, "SHARD_BYTES", 60_000)
    export_adapter(model, policy, tmp_path / "out")
    for out in ("whole", "out"):
        assert torch.allclose(logits(loaded(tmp_path / out / "model")), logits(model), atol=1e-5, rtol=0)
    assert (logits(model) - before).abs().max() > 0.1
    files = sorted((tmp_path / "out" / "model").glob("*.safetensors"))
    assert len(files) > 2 and "consolidated.safetensors" not in {path.name for path in files}
    index = json.loads((tmp_path / "out" / "model" / "model.safetensors.index.json").read_text())
    tensors = [value for path in files for value in load_file(path).values()]
    assert index["metadata"]["total_size"] == sum(value.numel() * 4 for value in tensors)
    assert {value.dtype for value in tensors} == {torch.float32}
    assert (
        len(tensors) == len(index["weight_map"]) == len(load_file(tmp_path / "whole/model/model.safetensors"))
    )
    for path in files:
        assert path.stat().st_size < 62_000 or len(load_file(path)) == 1


def test_the_seed_decides_the_adapter(tmp_path):
    policy = tiny_llama(tmp_path / "policy")
    (first, again, other) = (
        add_adapter(load_model(policy, torch.float32), policy, LoraConfig(**LORA), seed).state_dict()
        for seed in (1, 1, 2)
    )
    names = [name for name in first if ".lora_A." in name]
    assert all(torch.equal(first[name], again[name]) for name in names)
    assert not any(torch.equal(first[name], other[name]) for name in names)


@pytest.mark.parametrize(
    ("targets", "said"),
    [(["nothing"], "down_proj"), (["embed_tokens"], "embed_tokens"), (["lm_head"], "lm_head")],
)
def test_layers_that_cannot_be_merged_are_refused_before_training(tmp_path, targets, said):
    policy = tiny_llama(tmp_path / "policy")  # lm_head is tied to embed_tokens
    weights = load_file(policy / "model.safetensors")
    save_file(
        weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()},
        policy / "model.safetensors",
    )
    lora = LoraConfig(**LORA | {"target_modules": targets})
    with pytest.raises(ConfigError, match=rf"target_modules=.*{said}"):
        add_adapter(load_model(policy, torch.float32), policy, lora, seed=0)
