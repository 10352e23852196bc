"""The judge: trained, measured on held-out pairs, loadable as people load it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from rlhf.config.training import RewardModelConfig
from rlhf.models.chat_template import render_conversation
from rlhf.training.held_out import split
from rlhf.training.reward_model import accuracies, ensure_pad
from rlhf.training.score_head import Fp32Linear
from tests.stage_runner import make_job, run_ranks
from tests.tiny import random_pairs, tiny_llama, tiny_reward_model, tiny_tokenizer, write_pairs


def preference(number):
    question = {"role": "user", "content": f"say {number}"}
    answers = ({"role": "assistant", "content": text} for text in (f"A {number}", f"b {number}"))
    chosen, rejected = ([question, answer] for answer in answers)
    return {"chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize(("num_ranks", "zero_stage"), [(1, 2), (2, 3)])
def test_learns_to_tell_good_from_bad(tmp_path, num_ranks, zero_stage):
    model = tiny_llama(tmp_path / "base")
    rows = [preference(i) | ({"source": "even"} if i % 2 == 0 else {}) for i in range(70)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    on_policy = random_pairs(10)
    for number, row in enumerate(on_policy):
        row |= {"chosen": f"A. {number}", "rejected": f"b. {number}"}
    inputs = {
        "model": model,
        "data": tmp_path / "data.jsonl",
        "on_policy": write_pairs(tmp_path / "on_policy", on_policy),
    }
    section = RewardModelConfig(
        learning_rate=5e-3,
        batch_size=8,
        micro_batch_size=4,
        gradient_checkpointing=False,
        held_out_share=0.2,
        num_epochs=2,
    )
    job = make_job("reward_model", section, inputs, tmp_path / "out", compute={"zero_stage": zero_stage})
    outcome = run_ranks(job, num_ranks)
    assert (outcome.counts["rows"], outcome.counts["pairs"], outcome.counts["held_out"]) == (80, 64, 16)
    assert outcome.metrics["held_out_accuracy"] > 0.9
    by_source = {name for name in outcome.metrics if name.startswith("held_out_accuracy/")}
    assert by_source == {f"held_out_accuracy/{name}" for name in ("data", "even", "on_policy")}
    assert outcome.metrics["last_loss"] < 0.4

    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    folder = tmp_path / "out" / "model"
    judge = AutoModelForSequenceClassification.from_pretrained(folder)
    assert judge.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == judge.config.pad_token_id != tokenizer.eos_token_id
    pipe = pipeline(
        "text-classification", model=judge, tokenizer=tokenizer, function_to_apply="none", batch_size=2
    )
    texts = [tokenizer.decode(render_conversation(tokenizer, talk)[1:]) for talk in preference(3).values()]
    good, bad = (result["score"] for result in pipe(texts))
    assert good > bad


def test_accuracy_is_told_by_source_and_a_tie_is_wrong():
    class Model:
        def eval(self):
            pass

        def __call__(self, input_ids, use_cache):
            return SimpleNamespace(logits=input_ids.float())

    def collate(rows):
        return {
            "input_ids": torch.tensor([row[side] for side in ("chosen_ids", "rejected_ids") for row in rows])
        }

    scores = [(2, 1, 0), (1, 2, 0), (3, 1, 2), (1, 1, 2), (2, 1, 2), (5, 4, 0), (1, 2, 0), (2, 1, 0)]
    dataset = Dataset.from_list(
        [{"chosen_ids": [c], "rejected_ids": [r], "source": [s]} for c, r, s in scores]
    )
    args = SimpleNamespace(world_size=1, process_index=0, device=torch.device("cpu"))
    trainer = SimpleNamespace(model_wrapped=Model(), args=args, data_collator=collate)
    metrics = accuracies(trainer, dataset, 4, ["a", "trained on only", "b", "too"])
    expected = {"held_out_accuracy": 5 / 8, "held_out_accuracy/a": 3 / 5, "held_out_accuracy/b": 2 / 3}
    assert metrics == pytest.approx(expected)
    assert accuracies(trainer, dataset.select([0, 1]), 4, ["a"]) == {"held_out_accuracy": 0.5}
    assert accuracies(trainer, dataset.select([]), 4, ["a", "b"]) == {"held_out_accuracy": None}


def test_pad_equal_to_end_of_turn_is_replaced(tmp_path):
    import copy

    from rlhf.training.weights import load_model

    model = load_model(tiny_reward_model(tmp_path / "m"), torch.float32, reward_model=True)
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.pad_token = tokenizer.eos_token
    ensure_pad(tokenizer, model)
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_held_out_pairs_are_a_seeded_sample():
    train, held_out = split(100, 0.1, seed=1)
    assert len(held_out) == 10
    assert sorted(train + held_out) == list(range(100))
    assert split(100, 0.1, seed=1)[1] == held_out != split(100, 0.1, seed=2)[1]
    assert [list(part) for part in split(3, 0.1, seed=1)] == [[0, 1, 2], []]
    sizes = [part.itemsize for part in split(100, 0.1, seed=1)]
    assert sizes == [4, 4], "lists would take nine times as much, as long as the training lasts"


def test_bf16_head_scores_in_fp32():
    head = torch.nn.Linear(16, 1, bias=False).bfloat16()
    head.__class__ = Fp32Linear
    hidden = torch.randn(3, 16).bfloat16()
    assert head(hidden).dtype == torch.float32
    assert torch.equal(head(hidden), hidden.float() @ head.weight.float().T)


def test_a_gradient_that_is_no_number_stops_and_saves_the_rows(tmp_path):
    model = tiny_reward_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] *= 1e25  # scores are finite, the square of their gradient is not
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    turns = [{"role": "user", "content": "which?"}]
    sides = [("good", "bad"), ("bad", "good")]  # for one of the two the judge is wrong, and has a gradient
    rows = [
        {"prompt": turns, "chosen": f"{one} {i}", "rejected": f"{two} {i}"}
        for i in range(4)
        for one, two in sides
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = RewardModelConfig(batch_size=4, micro_batch_size=2, gradient_checkpointing=False)
    inputs = {"model": model, "data": tmp_path / "data.jsonl"}
    with pytest.raises(
        AssertionError, match=r"the grad_norm of step 1 is not a finite .*out\.bad_step\.rank0\.json"
    ):
        run_ranks(make_job("reward_model", settings, inputs, tmp_path / "out"))
    found = json.loads((tmp_path / "out.bad_step.rank0.json").read_text())
    assert found["not_finite"] == "grad_norm" and found["step"] == 1
    assert len(found["rows"]) == 8, "four pairs, both answers, of both micro-batches"
    assert all(("good" in text) != ("bad" in text) and "which?" in text for text in found["rows"])
