"""Packed pairs of a judge, a common beginning once, against the padded rows that TRL computes."""

from __future__ import annotations

import json
import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from rlhf.config.stage_configs import PreferenceModelStage
from rlhf.config.training import RewardModelConfig
from rlhf.training import shared_attention
from rlhf.training.packed_conversations import common_prefix, pack_conversations, unpacked
from rlhf.training.preference_model import _logits_one_by_one, _packed_logits, pack_rows
from rlhf.training.score_head import pack_pairs, packed_scores, use_fp32_head
from rlhf.training.segment_attention import PromptGroup
from rlhf.training.shared_attention import share_prompts
from tests.integration.training.test_packed import (
    OF_FAMILY,
    SMALL,
    assert_equal,
    of_family,
    tokens,
    values_and_gradients,
)
from tests.stage_runner import make_job, run_ranks
from tests.tiny import tiny_llama

CLASSIFIERS = sorted(shared_attention._TRIED & set(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES))
IN_FP32 = ("gemma2", "mixtral", "qwen2_moe", "qwen3_moe")
"""Routed experts have no float64 kernel; Gemma 2's attention takes the softmax in fp32, where the mask of
padding in float64 is too large a number."""
PADDED = """
from rlhf.training import preference_model, reward_model
reward_model.share_prompts = preference_model.share_prompts = lambda model: "the test says so"
"""


@pytest.fixture(scope="module")
def pairs():
    rng = random.Random(0)
    rows = []
    # Shared beginning, then what follows of chosen and rejected.
    for shared, chosen, rejected in [(5, 6, 9), (12, 20, 3), (0, 7, 4), (9, 1, 1), (0, 1, 1), (4, 1, 8)]:
        beginning = tokens(rng, shared)
        # Different first tokens, so that no more is shared than that.
        rows.append(
            {
                "chosen_ids": [*beginning, 50, *tokens(rng, chosen - 1)],
                "rejected_ids": [*beginning, 60, *tokens(rng, rejected - 1)],
            }
        )
    # One that goes on where the other ends: its last token is its own.
    rows.append({"chosen_ids": [1, 50, 9], "rejected_ids": [1, 50, 9, 9, 9]})
    # The token that pads stands at the end, and within; a model must not look for it.
    rows.append({"chosen_ids": [1, 8, 9, 0], "rejected_ids": [1, 8, 0, 7]})
    return rows


def classifier(model_type, dtype=torch.float64):
    torch.manual_seed(0)
    changes = SMALL | OF_FAMILY.get(model_type, {}) | {"num_labels": 1}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, **changes))
    model.config.get_text_config().pad_token_id = 96
    model.set_attn_implementation("eager" if model_type == "gemma2" else "sdpa")
    return model.eval().to(dtype)


def padded_scores(model, pairs):
    batch = DataCollatorForPreference(pad_token_id=96)(pairs)
    return model(**batch, use_cache=False).logits[:, 0]


def scores_of_packed(model, pairs):
    return packed_scores(model, **pack_pairs(pairs)).logits[:, 0]


def test_most_families_have_a_score_head():
    assert len(CLASSIFIERS) >= 17
    assert {"llama", "qwen2", "qwen3", "mistral", "gemma2", "gpt2", "gpt_neox", "phi3"} <= set(CLASSIFIERS)


@pytest.mark.parametrize("model_type", CLASSIFIERS)
def test_scores_and_gradients_equal_those_of_padded_rows(pairs, model_type):
    dtype, tolerance = (torch.float32, 1e-5) if model_type in IN_FP32 else (torch.float64, 1e-9)
    model = classifier(model_type, dtype)
    assert use_fp32_head(model) == ""
    pairs = [pair for pair in pairs if 96 not in pair["chosen_ids"] + pair["rejected_ids"]]
    want = values_and_gradients(model, lambda: padded_scores(model, pairs))
    assert share_prompts(model) == ""
    got = values_and_gradients(model, lambda: scores_of_packed(model, pairs))
    assert_equal(got, want, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_narrower_types(pairs, dtype):
    model = classifier("llama", dtype)
    use_fp32_head(model)
    want = values_and_gradients(model, lambda: padded_scores(model, pairs))
    share_prompts(model)
    got = values_and_gradients(model, lambda: scores_of_packed(model, pairs))
    assert got[0].dtype == torch.float32
    assert_equal(got, want, 1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("is_reentrant", [False, True])
def test_gradient_checkpointing(pairs, is_reentrant):
    model = classifier("llama")
    use_fp32_head(model)
    want = values_and_gradients(model, lambda: padded_scores(model, pairs))
    share_prompts(model)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": is_reentrant})
    model.enable_input_require_grads()
    got = values_and_gradients(model, lambda: scores_of_packed(model, pairs))
    assert_equal(got, want, 1e-9)


def test_the_pad_token_decides_nothing(pairs):
    model = classifier("llama")
    use_fp32_head(model)
    share_prompts(model)
    before = scores_of_packed(model, pairs)
    for pad in (0, 9, None):
        model.config.pad_token_id = pad
        assert torch.equal(scores_of_packed(model, pairs), before)


def test_another_head_is_left_alone():
    model = classifier("llama")
    model.score = torch.nn.Sequential(model.score)
    assert "score" in use_fp32_head(model)
    assert type(model.score) is torch.nn.Sequential


def test_a_beginning_in_common_leaves_a_token_of_each():
    assert common_prefix([[5, 6, 1], [5, 6, 2, 3]]) == 2
    assert common_prefix([[5, 6], [5, 6, 7]]) == 1
    assert common_prefix([[1], [1, 2]]) == common_prefix([[1, 2], [2, 2]]) == common_prefix([[1, 2]]) == 0


def test_packing_loses_nothing(pairs):
    groups = [[pair["chosen_ids"], pair["rejected_ids"]] for pair in pairs] + [[[4, 5]]]
    batch, ends = pack_conversations(groups)
    ids = batch["input_ids"][0]
    whole = [conversation.tolist() for conversation in unpacked(ids, batch["prompt_groups"])]
    assert whole == [conversation for group in groups for conversation in group]
    assert ids[ends].tolist() == [conversation[-1] for conversation in whole]
    positions = batch["position_ids"][0]
    assert positions[ends].tolist() == [len(conversation) - 1 for conversation in whole]
    assert batch["prompt_groups"][2] == PromptGroup(0, (7, 4))
    # TRL's count of tokens stays what it was.
    assert pack_pairs(pairs)["attention_mask"].sum() == sum(len(conversation) for conversation in whole[:-1])


@pytest.mark.parametrize("model_type", sorted(shared_attention._TRIED))
def test_comparisons_equal_padded_ones(model_type):
    dtype, tolerance = (torch.float32, 1e-5) if model_type in IN_FP32 else (torch.float64, 1e-9)
    model = of_family(model_type, **OF_FAMILY.get(model_type, {})).to(dtype)
    model.set_attn_implementation("eager" if model_type == "gemma2" else "sdpa")
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    rng = random.Random(4)
    rows = []
    for length in (9, 20, 1, 13):
        rows.append(
            {"input_ids": [*tokens(rng, length), 30], "labels": [-100] * length + [30]},
        )

    def logprobs(collate):
        output = model(**collate(rows), fused_lm_head=True)
        return output.log_probs[output.label_mask]

    want = values_and_gradients(model, lambda: logprobs(DataCollatorForLanguageModeling(pad_token_id=0)))
    assert share_prompts(model) == ""
    got = values_and_gradients(model, lambda: logprobs(pack_rows))
    assert len(got[0]) == len(rows)
    assert_equal(got, want, tolerance)


def test_a_row_without_a_prompt_is_no_answer_to_the_row_before_it():
    rows = [{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7], "labels": [7]}]
    assert pack_rows(rows)["labels"].tolist() == [[-100, 6, -100]]


def test_both_orders_of_a_comparison():
    model = of_family("qwen3", head_dim=8).double()
    rng = random.Random(5)
    context = tokens(rng, 11)
    orders = [
        [[*context, 5, 6, 7, 8], [*context, 7, 8, 5, 6]],
        [[*context, 9, 3, 4], [*context, 3, 4, 9, 5]],
        [[3, 4], [5, 6, 7]],  # cut on the left
    ]
    want = _logits_one_by_one(model, orders, torch.device("cpu"))
    share_prompts(model)
    assert torch.allclose(_packed_logits(model, orders, torch.device("cpu")), want, atol=1e-9)


def preference(rng, number):
    question = {"role": "user", "content": f"say {number} " + "word " * rng.randrange(12)}
    rows = []
    for text in ("A yes", "b no"):
        answer = f"{text} {number} " + "and so on " * rng.randrange(6)
        rows.append([question, {"role": "assistant", "content": answer.strip()}])
    return {"chosen": rows[0], "rejected": rows[1]}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    rng = random.Random(1)
    rows = [preference(rng, number) for number in range(70)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"model": tiny_llama(folder / "base"), "data": folder / "data.jsonl"}


def job_of(stage, inputs, out, zero_stage=2, **settings):
    settings = {
        "learning_rate": 1e-3,
        "batch_size": 8,
        "micro_batch_size": 4,
        "held_out_share": 0.1,
    } | settings
    section = RewardModelConfig(num_epochs=2, max_length=60, **settings)
    cls = PreferenceModelStage if stage == "preference_model" else None
    return make_job("reward_model", section, inputs, out, compute={"zero_stage": zero_stage}, cls=cls)


def log_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", ["reward_model", "preference_model"])
@pytest.mark.parametrize(
    ("num_ranks", "zero_stage", "checkpointing"), [(1, 2, False), (2, 3, True), (2, 2, True)]
)
def test_a_training_is_that_of_padded_rows(tmp_path, inputs, stage, num_ranks, zero_stage, checkpointing):
    settings = {"gradient_checkpointing": checkpointing, "zero_stage": zero_stage}
    if stage == "reward_model":
        settings["trainer_args"] = {"center_rewards_coefficient": 0.01}
    packed = run_ranks(job_of(stage, inputs, tmp_path / "packed", **settings), num_ranks)
    padded = run_ranks(job_of(stage, inputs, tmp_path / "padded", **settings), num_ranks, PADDED)
    assert "warning" not in packed.metrics
    assert "every prompt twice and padding: the test says so" in padded.metrics["warning"]
    assert packed.counts == padded.counts and packed.counts["cut_left"] > 0
    assert packed.metrics["held_out_accuracy"] == padded.metrics["held_out_accuracy"]
    ours, theirs = log_of(tmp_path / "packed"), log_of(tmp_path / "padded")
    assert len(ours) == len(theirs) == packed.counts["steps"] >= 14
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            assert one[name] == pytest.approx(value, rel=2e-3, abs=2e-4), (name, one["step"])
    assert ours[-1]["loss"] < ours[0]["loss"]


def test_noise_by_the_length_of_a_row_is_padded(tmp_path, inputs):
    settings = {"gradient_checkpointing": False, "trainer_args": {"neftune_noise_alpha": 5, "max_steps": 1}}
    outcome = run_ranks(job_of("preference_model", inputs, tmp_path, **settings))
    assert "neftune_noise_alpha" in outcome.metrics["warning"]


@pytest.mark.parametrize("stage", ["reward_model", "preference_model"])
def test_a_resume_gives_the_same_bytes(tmp_path, inputs, stage):
    settings = {"gradient_checkpointing": False, "save_steps": 5}
    whole = job_of(stage, inputs, tmp_path / "whole", **settings)
    run_ranks(whole)
    stopped = job_of(stage, inputs, tmp_path / "stopped", **settings)
    stop = """
from rlhf.training import stage_trainer
on_log = stage_trainer.Watch.on_log
def stop(self, args, state, control, **named):
    on_log(self, args, state, control, **named)
    if state.global_step == 8:
        raise SystemExit(1)
stage_trainer.Watch.on_log = stop
"""
    with pytest.raises(AssertionError, match="exit codes"):
        run_ranks(stopped, 1, stop)
    run_ranks(stopped)
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()
