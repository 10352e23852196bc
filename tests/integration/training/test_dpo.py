"""DPO under DeepSpeed: the same curve however it is run, TRL's curve, fp32 hand-over."""

from __future__ import annotations

import itertools
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from rlhf.config.schema import ReferenceConfig
from rlhf.config.training import DpoConfig
from rlhf.data.schemas import LOGPROBS_SCHEMA
from rlhf.data.shards import read_all_rows, shard_name, write_shard
from rlhf.errors import ConfigError, DataError
from rlhf.training.arguments import build_arguments
from rlhf.training.pair_file import Anchor, PairSource, TrainingPairs, write_pair_file
from rlhf.training.response_batches import Batching
from rlhf.training.step_plan import StepShares, plan_steps
from rlhf.training.weights import resolve_dtype
from tests.stage_runner import make_job, run_here, run_ranks
from tests.tiny import random_pairs, tiny_llama, write_pairs

MAX_LENGTH = 50
LOSS_TOLERANCE = 2e-6
"""Of a loss near 0.7, fp32, ranks and bins summed in other orders."""
WEIGHT_TOLERANCE = 2e-5
"""Of a weight, after 10 steps of at most 1e-3 each."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    models = {"policy": tiny_llama(folder / "policy", 1), "anchor": tiny_llama(folder / "anchor", 1)}
    weights = load_file(models["policy"] / "model.safetensors")
    from safetensors.torch import save_file

    torch.manual_seed(2)
    moved = {name: value + 0.01 * torch.randn_like(value) for name, value in weights.items()}
    save_file(moved, models["policy"] / "model.safetensors", metadata={"format": "pt"})
    pairs = write_pairs(folder / "pairs", random_pairs(21), 13)
    for name, model in models.items():
        inputs = {"model": model, "pairs": pairs}
        run_here(
            make_job(
                "reference", ReferenceConfig(), inputs, folder / f"reference_{name}", max_length=MAX_LENGTH
            )
        )
    return folder


def dpo_job(world, out, reference="anchor", compute=None, **config):
    section = DpoConfig(
        learning_rate=1e-3, batch_size=8, max_length=MAX_LENGTH, gradient_checkpointing=False, save_steps=100
    )
    inputs = {
        "policy": world / "policy",
        "pairs": world / "pairs",
        "reference": world / f"reference_{reference}",
    }
    inputs["policy"] = config.pop("policy", inputs["policy"])
    return make_job("dpo", section, inputs, out, compute=compute, **config)


def load_pairs(pairs, anchor, folder, max_length=MAX_LENGTH):
    path = folder / "pairs.arrow"
    counts = write_pair_file(path, [PairSource("own", pairs, anchor)], max_length)
    return TrainingPairs(path), counts


def rows_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights_of(out):
    return load_file(out / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def one_rank(world):
    out = world / "one_rank"
    return run_ranks(dpo_job(world, out)), out


@pytest.mark.parametrize(
    ("ranks", "stage", "config"),
    [
        (2, 2, {}),
        (2, 3, {"batch_tokens": 300, "gradient_checkpointing": True}),
        (1, 2, {"batch_tokens": 250}),
    ],
    ids=["zero2", "zero3", "many_bins"],
)
def test_curve_does_not_depend_on_ranks_stage_or_bins(world, one_rank, ranks, stage, config, tmp_path):
    run_ranks(dpo_job(world, tmp_path, compute={"zero_stage": stage}, **config), ranks)
    for row, expected in zip(rows_of(tmp_path), rows_of(one_rank[1]), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], abs=LOSS_TOLERANCE)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        assert row["logps/rejected"] == pytest.approx(expected["logps/rejected"], abs=1e-3)
    expected = weights_of(one_rank[1])
    assert weights_of(tmp_path).keys() == expected.keys()
    for name, value in weights_of(tmp_path).items():
        assert torch.allclose(value, expected[name], atol=WEIGHT_TOLERANCE, rtol=0), name


def test_curve_is_plain_trl_s(world, one_rank, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    from tests.tiny import tiny_tokenizer

    class Plain(DPOTrainer):
        def _prepare_dataset(self, dataset, *args):  # rows are token ids already
            return dataset

        def _get_train_sampler(self, dataset=None):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    pairs, _ = load_pairs(world / "pairs", Anchor(world / "reference_anchor"), tmp_path)
    steps = plan_steps(len(pairs), 8, 2, seed=1)
    assert [len(step) for step in steps] == [8, 8, 5] * 2
    rows = [
        {
            "prompt_ids": pairs[i].prompt.tolist(),
            "chosen_ids": pairs[i].chosen.tolist(),
            "rejected_ids": pairs[i].rejected.tolist(),
        }
        for step in steps
        for i in step
    ]
    # TRL would weigh an epoch's smaller last step otherwise, so the first two steps are compared.
    args = DPOConfig(
        output_dir=str(tmp_path),
        beta=0.1,
        learning_rate=1e-3,
        per_device_train_batch_size=8,
        max_steps=2,
        lr_scheduler_type="cosine",
        warmup_steps=0,
        logging_steps=1,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        gradient_checkpointing=False,
        max_length=None,
        disable_tqdm=True,
    )
    models = [
        AutoModelForCausalLM.from_pretrained(world / name, dtype=torch.float32)
        for name in ("policy", "anchor")
    ]
    trainer = Plain(
        model=models[0],
        ref_model=models[1],
        args=args,
        train_dataset=Dataset.from_list(rows[:16]),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    losses = [row for row in trainer.state.log_history if "loss" in row]
    run_ranks(
        dpo_job(world, tmp_path / "short", warmup_ratio=0.0, num_epochs=1, trainer_args={"max_steps": 2})
    )
    for mine, theirs in zip(rows_of(tmp_path / "short"), losses, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=LOSS_TOLERANCE)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        for name in (
            "rewards/chosen",
            "rewards/rejected",
            "rewards/margins",
            "rewards/accuracies",
            "logps/chosen",
        ):
            assert mine[name] == pytest.approx(theirs[name], abs=1e-3), name
    for name, value in weights_of(tmp_path / "short").items():
        assert torch.allclose(value, models[0].state_dict()[name], atol=WEIGHT_TOLERANCE, rtol=0), name


def test_loss_starts_at_ln_2_only_when_the_reference_is_the_policy(world, one_rank, tmp_path):
    out = tmp_path / "same"
    run_ranks(dpo_job(world, out, reference="policy", num_epochs=1, label_smoothing=0.1, batch_tokens=300))
    assert abs(rows_of(out)[0]["loss"] - math.log(2)) <= 1e-6
    assert abs(rows_of(one_rank[1])[0]["loss"] - math.log(2)) > 1e-3


def test_ipo_starts_at_a_quarter_of_inverse_beta_squared(world, tmp_path):
    run_ranks(dpo_job(world, tmp_path, reference="policy", loss="ipo", num_epochs=1))
    assert rows_of(tmp_path)[0]["loss"] == pytest.approx(25.0, abs=1e-4)


def test_the_nll_term_does_not_depend_on_ranks_stage_or_bins(world, one_rank, tmp_path):
    config = {"num_epochs": 1, "rpo_alpha": 0.5}
    run_ranks(dpo_job(world, tmp_path / "one", **config))
    run_ranks(dpo_job(world, tmp_path / "two", compute={"zero_stage": 3}, batch_tokens=150, **config), 2)
    for row, expected in zip(rows_of(tmp_path / "two"), rows_of(tmp_path / "one"), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], abs=5e-6)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    pairs, _ = load_pairs(world / "pairs", Anchor(world / "reference_policy"), tmp_path)
    nll = (
        sum(-pairs[i].ref_chosen / len(pairs[i].chosen) for i in plan_steps(len(pairs), 8, 1, seed=1)[0]) / 8
    )
    assert rows_of(tmp_path / "one")[0]["loss"] == pytest.approx(
        rows_of(one_rank[1])[0]["loss"] + nll / 2, abs=1e-5
    )


def failed_steps(folder):
    return [json.loads(path.read_text()) for path in folder.glob("out.bad_step.rank*.json")]


def ids_of_step(pairs, number):
    return [pairs[i]["id"] for i in plan_steps(len(pairs), 8, 2, seed=1)[number - 1]]


def test_a_loss_that_is_no_number_stops_and_names_step_and_pairs(world, tmp_path):
    pairs = list(read_all_rows(world / "pairs"))
    rows = [{"id": pair["id"], "logprobs": [-1.0, -1.0]} for pair in pairs]
    rows[4]["logprobs"] = [math.nan, -1.0]
    for index, part in enumerate((rows[:13], rows[13:])):
        write_shard(tmp_path / shard_name(index), LOGPROBS_SCHEMA, part)
    job = dpo_job(world, tmp_path / "out", batch_tokens=1)
    job.inputs["reference"] = str(tmp_path)
    with pytest.raises(
        AssertionError, match=rf"UserError: the loss of step \d+, pairs {rows[4]['id']} is not a finite"
    ):
        run_ranks(job, 2)
    (failed,) = failed_steps(tmp_path)
    assert (
        failed["not_finite"] == "loss" and rows[4]["id"] in failed["pairs"] and len(failed["pairs"]) in (5, 8)
    )
    assert failed["pairs"] == ids_of_step(pairs, failed["step"])  # those of both ranks
    job.inputs["reference"] = str(world / "reference_anchor")
    run_ranks(job)
    assert failed_steps(tmp_path) == []


def test_a_gradient_that_is_no_number_stops_and_saves_the_pairs(world, tmp_path):
    from safetensors.torch import save_file

    shutil.copytree(world / "policy", tmp_path / "policy")
    weights = load_file(tmp_path / "policy" / "model.safetensors")
    weights["model.norm.weight"] *= 1e25  # log-probabilities are finite, the square of their gradient is not
    save_file(weights, tmp_path / "policy" / "model.safetensors", metadata={"format": "pt"})
    inputs = {"model": tmp_path / "policy", "pairs": world / "pairs"}
    run_here(make_job("reference", ReferenceConfig(), inputs, tmp_path / "reference", max_length=MAX_LENGTH))
    job = dpo_job(world, tmp_path / "out", policy=tmp_path / "policy", save_steps=1)
    job.inputs["reference"] = str(tmp_path / "reference")
    with pytest.raises(
        AssertionError, match=r"the grad_norm of step 1 is not a finite .*out\.bad_step\.rank0\.json"
    ):
        run_ranks(job)
    pairs = list(read_all_rows(world / "pairs"))
    assert failed_steps(tmp_path) == [{"not_finite": "grad_norm", "step": 1, "pairs": ids_of_step(pairs, 1)}]
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("config", "shares"),
    [
        # A share of 1 is one step to transformers, and one of one step is a training at rate 0.
        ({"warmup_ratio": 1.0}, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ({"warmup_ratio": 0.4, "lr_scheduler": "constant_with_warmup"}, [0, 1 / 3, 2 / 3, 1, 1, 1]),
        ({"trainer_args": {"max_steps": 1}}, [1]),
    ],
    ids=["all_warmup", "part", "one_step"],
)
def test_the_rate_rises_over_the_share_that_was_asked_for(world, tmp_path, config, shares):
    outcome = run_ranks(dpo_job(world, tmp_path, **config))
    rates = [row["learning_rate"] / 1e-3 for row in rows_of(tmp_path)]
    assert rates == pytest.approx(shares)
    assert outcome.counts["steps"] == len(shares), "those that were taken"
    assert outcome.counts["warmup_steps"] == shares.index(1)
    before = load_file(world / "policy" / "model.safetensors")
    assert any(not torch.equal(value, before[name]) for name, value in weights_of(tmp_path).items())
    said = (tmp_path / "rank0.log").read_text()
    assert "· dpo: 21 pairs / batch 8 × 2 epochs = " in said and "⚠ fewer than 10 steps" in said


def test_outcome_counts_and_export(world, one_rank):
    outcome, out = one_rank
    assert outcome.counts["pairs"] == outcome.counts["rows"] == 21
    assert outcome.counts["steps"] == len(rows_of(out)) == 6
    assert outcome.counts["cut_chosen"] + outcome.counts["cut_rejected"] > 0
    assert outcome.metrics["first_loss"] == rows_of(out)[0]["loss"]
    assert [row["epoch"] for row in rows_of(out)] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    names = {path.name for path in (out / "model").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert json.loads((out / "model" / "config.json").read_text())["dtype"] == "float32"
    assert not list(out.glob("checkpoint-*"))
    assert not list(out.glob("*.arrow")), "the file of the pairs is of no use to anyone else"


def test_bf16_hands_fp32_weights_from_iteration_to_iteration(world, tmp_path):
    """Steps far below bf16's spacing still add up, over two iterations, in the exported weights."""
    policies = [world / "policy"]
    for iteration in range(2):
        out = tmp_path / str(iteration)
        job = dpo_job(
            world,
            out,
            policy=policies[-1],
            dtype="bfloat16",
            learning_rate=1e-6,
            warmup_ratio=0.0,
            num_epochs=1,
            lr_scheduler="constant",
            compute={"zero_stage": 2 + iteration},
        )
        run_ranks(job)
        policies.append(out / "model")
    weights = [load_file(policy / "model.safetensors") for policy in policies]
    moved = [
        torch.cat([(new[n] - old[n]).flatten() for n in old]) for old, new in itertools.pairwise(weights)
    ]
    for change in moved:
        assert (
            0 < change.abs().max() < 1e-5
        )  # had a weight been rounded to bf16, it would be off by up to 1e-3
        assert (change != 0).float().mean() > 0.5
    name = "model.layers.0.mlp.down_proj.weight"
    assert (weights[0][name].bfloat16() == weights[2][name].bfloat16()).float().mean() > 0.9


@pytest.mark.parametrize(
    ("saved", "trained"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float32")]
)
def test_the_dtype_trained_in_is_the_saved_one_but_never_float16(tmp_path, saved, trained):
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(3, dtype=getattr(torch, saved))}, tmp_path / "model.safetensors")
    assert resolve_dtype("auto", tmp_path) == resolve_dtype(saved, tmp_path) == getattr(torch, trained)


def test_prompts_that_fill_max_length_are_dropped_and_none_left_is_an_error(world, tmp_path):
    pairs = random_pairs(3, prompt=(10, 10))
    pairs[0]["prompt_token_ids"] = list(range(10, 60))
    folder = write_pairs(tmp_path / "pairs", pairs)
    inputs = {"model": world / "policy", "pairs": folder}
    run_here(make_job("reference", ReferenceConfig(), inputs, tmp_path / "reference", max_length=MAX_LENGTH))
    loaded, counts = load_pairs(folder, Anchor(tmp_path / "reference"), tmp_path)
    assert (len(loaded), counts["dropped/long_prompt"]) == (2, 1)
    with pytest.raises(DataError, match=r"no pair to train on \(3 rows, 3 with prompts"):
        load_pairs(folder, Anchor(tmp_path / "reference"), tmp_path, 10)
    shutil.rmtree(tmp_path / "pairs")
    write_pairs(tmp_path / "pairs", pairs[::-1])
    with pytest.raises(DataError, match="stands where"):
        load_pairs(folder, Anchor(tmp_path / "reference"), tmp_path)


def test_every_rank_does_as_many_bins_and_weights_add_up(world, tmp_path):
    pairs, _ = load_pairs(world / "pairs", Anchor(world / "reference_anchor"), tmp_path)
    steps = plan_steps(len(pairs), 8, 1, seed=0)
    for batch_tokens, packed in itertools.product((100, 400, 10**6), (False, True)):
        batching = Batching(packed, batch_tokens)
        shares = [StepShares(pairs, [*steps, [0]], batching, rank, 3) for rank in range(3)]
        for k in range(len(shares[0])):
            bins = [share[k] for share in shares]
            assert len({len(b) for b in bins}) == 1
            trained = [i for b in bins for one in b if one.weight for i in one.ids]
            assert sorted(trained) == sorted(pairs[i].id for i in [*steps, [0]][k])
            assert sum(one.weight * len(one.ids) for b in bins for one in b) == pytest.approx(1)


def test_steps_depend_on_seed_and_epoch_alone():
    steps = plan_steps(10, 4, 2, seed=3)
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    for epoch in (steps[:3], steps[3:]):
        assert sorted(i for step in epoch for i in step) == list(range(10))
    assert steps[:3] != steps[3:]
    assert steps == plan_steps(10, 4, 2, seed=3) != plan_steps(10, 4, 2, seed=4)


@pytest.mark.parametrize("extra", [{"no_such_thing": 1}, {"learning_rate": 1.0}])
def test_trainer_args_that_are_unknown_or_ours_are_refused(extra):
    from trl import DPOConfig

    with pytest.raises(ConfigError, match=next(iter(extra))):
        build_arguments(DPOConfig, "dpo", {"learning_rate": 0.1}, extra)


def test_pairs_that_differ_behind_the_cut_alone_are_counted(tmp_path):
    rows = random_pairs(3, seed=5, prompt=(3, 3), response=(4, 4))
    for row, (chosen, rejected) in zip(
        rows,
        [([5, 6, 7, 8], [5, 6, 7, 9]), ([5, 6, 7], [5, 6, 7, 9]), ([5, 6, 8, 8], [5, 6, 7, 8])],
        strict=True,
    ):
        row["chosen_token_ids"], row["rejected_token_ids"] = chosen, rejected
    pairs = write_pairs(tmp_path / "pairs", rows)
    (tmp_path / "reference").mkdir()
    logprobs = [{"id": row["id"], "logprobs": [-1.0, -1.0]} for row in rows]
    write_shard(tmp_path / "reference" / shard_name(0), LOGPROBS_SCHEMA, logprobs)
    loaded, counts = load_pairs(pairs, Anchor(tmp_path / "reference"), tmp_path, max_length=6)
    # The third differs before the cut; all are kept.
    assert len(loaded) == 3 and counts["equal_after_cut"] == 2
    assert (counts["cut_chosen"], counts["cut_rejected"]) == (2, 3)
    _, counts = load_pairs(pairs, Anchor(tmp_path / "reference"), tmp_path, max_length=7)
    assert counts["equal_after_cut"] == 0
