"""Supervised fine-tuning: where the loss is taken, and that it trains."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from rlhf.config.training import SftConfig
from rlhf.errors import ConfigError, ModelError
from rlhf.models.chat_template import end_of_turn_id, load_tokenizer
from rlhf.training.arguments import gradient_accumulation
from rlhf.training.held_out import split
from rlhf.training.sft import tokenize
from rlhf.training.tokens import IGNORED, pack
from rlhf.world.tokenizer import CHAT_TEMPLATE, END_OF_TEXT, EOS
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
    assert all(
        label in (IGNORED, token) for token, label in zip(row["input_ids"], row["labels"], strict=True)
    )
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
        "warmup_steps": 1,
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


def write_talks(path, num):
    rows = [talk(f"say {i}", "A " * (1 + i % 7), f"then {i % 3}", f"B {i}") for i in range(num)]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("num_ranks", "zero_stage"), [(1, 2), (2, 3)])
def test_packs_train_as_their_conversations_do(tmp_path, num_ranks, zero_stage):
    model, data = tiny_llama(tmp_path / "base"), write_talks(tmp_path / "data.jsonl", 30)
    weights, outcomes = [], []
    for packing in (False, True):
        section = SftConfig(
            learning_rate=1e-2,
            batch_size=32,
            micro_batch_size=2,
            max_length=300,
            num_epochs=3,
            warmup_ratio=0.0,
            packing=packing,
            held_out_share=0.2,
        )
        out = tmp_path / str(packing)
        job = make_job(
            "sft", section, {"model": model, "data": data}, out, compute={"zero_stage": zero_stage}
        )
        outcomes.append(run_ranks(job, num_ranks))
        weights.append(load_file(out / "model" / "model.safetensors"))
    plain, packed = outcomes
    assert (
        packed.counts["packs"] == 4 and packed.counts["conversations"] == plain.counts["conversations"] == 24
    )
    assert plain.counts["steps"] == packed.counts["steps"] == 3
    for name in ("first_loss", "last_loss", "held_out_loss"):
        assert packed.metrics[name] == pytest.approx(plain.metrics[name], abs=1e-5)
    assert packed.metrics["last_loss"] < packed.metrics["first_loss"] - 0.1
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=0, atol=1e-4)
    assert not (tmp_path / "True" / "packs.arrow").exists()


def test_held_out_loss_is_the_mean_over_the_tokens_trained_on(tmp_path):
    model, data = tiny_llama(tmp_path / "base"), write_talks(tmp_path / "data.jsonl", 10)
    section = SftConfig(
        learning_rate=1e-9, batch_size=5, micro_batch_size=1, packing=False, held_out_share=0.5
    )
    outcome = run_ranks(make_job("sft", section, {"model": model, "data": data}, tmp_path / "out"))
    from transformers import AutoModelForCausalLM

    tokenizer, loaded = tiny_tokenizer(), AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    talks = [json.loads(line)["messages"] for line in data.read_text().splitlines()]
    total, tokens = 0.0, 0
    for index in split(10, 0.5, 1)[1]:
        row = tokenize(tokenizer, talks[index], end_of_turn_id(tokenizer))
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        number = int((labels != IGNORED).sum())
        total += loaded(input_ids=ids, labels=labels).loss.item() * number
        tokens += number
    assert outcome.metrics["held_out_loss"] == pytest.approx(total / tokens, abs=1e-5)


def test_a_model_that_would_see_the_conversation_before_is_refused(tmp_path):
    from transformers import BloomConfig, BloomForCausalLM

    tokenizer = tiny_tokenizer()
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=1, n_head=4, pad_token_id=2)
    BloomForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    data = write_talks(tmp_path / "data.jsonl", 4)
    section = SftConfig(batch_size=1, max_length=128, gradient_checkpointing=False)
    job = make_job("sft", section, {"model": tmp_path / "base", "data": data}, tmp_path / "out")
    with pytest.raises(AssertionError, match=r"BloomForCausalLM a conversation sees .*sft\.packing=false"):
        run_ranks(job)


def test_a_base_model_gets_a_chat_template_and_stops_at_its_end_of_turn(tmp_path):
    import copy

    model, data = tiny_llama(tmp_path / "base"), write_talks(tmp_path / "data.jsonl", 4)
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template, tokenizer.eos_token = None, END_OF_TEXT
    (model / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(model)
    section = SftConfig(
        batch_size=1, max_length=128, gradient_checkpointing=False, chat_template=CHAT_TEMPLATE
    )
    run_ranks(make_job("sft", section, {"model": model, "data": data}, tmp_path / "out"))
    made = load_tokenizer(tmp_path / "out" / "model")
    assert (made.chat_template, made.eos_token) == (CHAT_TEMPLATE, EOS)
    generation = json.loads((tmp_path / "out" / "model" / "generation_config.json").read_text())
    assert end_of_turn_id(made) in generation["eos_token_id"]
    with pytest.raises(ModelError, match=r"sft\.chat_template"):
        load_tokenizer(model)


def test_packs_hold_every_row_once_and_no_more_than_fits():
    lengths = [5, 3, 9, 2, 2, 7, 12, 1]
    packs = pack(lengths, 10)
    assert sorted(index for members in packs for index in members) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in members) <= 10 or len(members) == 1 for members in packs)
    assert len(packs) == 4  # 12; 9 + 1; 7 + 3; 5 + 2 + 2
