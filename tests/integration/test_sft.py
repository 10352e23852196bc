"""Supervised fine-tuning: where the loss is taken, and that it trains."""

from __future__ import annotations

import json

import pytest
import torch

from rlhf.chat import end_of_turn_id
from rlhf.config import SftConfig
from rlhf.errors import ConfigError, ModelError
from rlhf.training.sft import IGNORED, gradient_accumulation, tokenize
from tests.stage_runner import make_job, run_ranks
from tests.tiny import tiny_llama, tiny_tokenizer


def talk(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def trained_text(row):
    return tiny_tokenizer().decode([label for label in row["labels"] if label != IGNORED])


def test_loss_is_taken_on_every_assistant_turn_with_its_terminator_and_on_nothing_else():
    tokenizer = tiny_tokenizer()
    row = tokenize(tokenizer, talk("a b", "A B", "c d", "C D", "trailing"), end_of_turn_id(tokenizer))
    assert trained_text(row) == "A B<|eot_id|>C D<|eot_id|>"
    assert tokenizer.decode(row["input_ids"]).endswith("C D<|eot_id|>")
    assert row["input_ids"].count(tokenizer.bos_token_id) == 1
    assert all(label in (IGNORED, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))
    assert tokenize(tokenizer, talk("a"), end_of_turn_id(tokenizer)) is None


def test_a_template_that_rewrites_earlier_turns_is_refused():
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(ModelError, match="before answer"):
        tokenize(tokenizer, talk("a", "A"), end_of_turn_id(tiny_tokenizer()))


def test_uneven_batches_are_refused():
    assert gradient_accumulation("sft", 32, 4, 2) == 4
    with pytest.raises(ConfigError, match="batch_size=30"):
        gradient_accumulation("sft", 30, 4, 2)


def test_training_learns_and_exports(tmp_path):
    model = tiny_llama(tmp_path / "base")
    rows = [talk(f"say {word}", word) for word in "abcdefgh"] * 6 + [
        talk("no answer"),
        talk("say a " * 200, "a"),
        talk("", "a"),
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    section = SftConfig(
        learning_rate=1e-2,
        batch_size=8,
        micro_batch_size=4,
        max_length=64,
        gradient_checkpointing=False,
        num_epochs=4,
        packing=False,
        held_out_share=0.1,
    )
    inputs = {"model": model, "data": tmp_path / "data.jsonl"}
    outcome = run_ranks(make_job("sft", section, inputs, tmp_path / "out"))
    assert outcome.counts == {
        "rows": 51,
        "cut": 0,
        "dropped/no_answer": 1,
        "dropped/long_prompt": 1,
        "dropped/empty": 1,
        "conversations": 44,
        "held_out": 4,
        "steps": 24,
    }
    assert outcome.metrics["last_loss"] < 0.5 * outcome.metrics["first_loss"]
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model", dtype="auto")
    assert loaded.dtype == torch.float32
    assert loaded.config.use_cache
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if "test" not in path.name) == [
        "metrics.jsonl",
        "model",
        "rank0.log",
    ]
