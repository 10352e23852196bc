"""The synthetic world's tokenizer, base model and judge, and the stage that writes them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf.config.schema import WorldConfig
from rlhf.models import chat_template
from rlhf.run.job import Job
from rlhf.stages import world
from rlhf.world import build, tasks
from rlhf.world.tokenizer import SPECIAL_TOKENS, build_tokenizer

SMALL = {
    "num_base_examples": 200,
    "num_sft_examples": 30,
    "num_preferences": 30,
    "num_judge_prompts": 20,
    "num_prompts": 40,
    "num_held_out": 10,
    "base_steps": 12,
    "save_steps": 4,
}
ANSWERED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Reverse: a d c\n"},
    {"role": "assistant", "content": "c d a. Let me know."},
]


class OneWorker:
    """The only process of a stage."""

    rank, world_size, num_threads = 0, 1, 1

    def shards(self) -> Any:
        """The stage has none."""
        return iter(())

    def progress(self, done: float, total: float, note: str = "") -> None:
        """Nobody listens."""


def make(out: Path, seed: int = 1, **changes: Any) -> Path:
    out.mkdir(exist_ok=True)
    config = WorldConfig(**(SMALL | changes))
    world.run(Job("world", "world", config, {}, str(out), seed), OneWorker())
    return out


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "checkpoint-" not in str(path)
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("world") / "out")


def test_tokenizer_is_the_same_each_time_and_has_llama_3_s_specials(tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_tokenizer().save_pretrained(tmp_path / name)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    tokenizer = chat_template.load_tokenizer(tmp_path / "one")
    assert set(SPECIAL_TOKENS) <= set(tokenizer.get_vocab())
    assert 350 <= len(tokenizer) <= 460
    assert tokenizer.bos_token == "<|begin_of_text|>"
    assert tokenizer.eos_token == "<|eot_id|>"
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert chat_template.end_of_turn_id(tokenizer) == tokenizer.eos_token_id
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def test_chat_format_is_llama_3_s() -> None:
    tokenizer = build_tokenizer()
    text = (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nReverse: a d c<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert tokenizer.apply_chat_template(ANSWERED[:-1], tokenize=False, add_generation_prompt=True) == text
    assert tokenizer.apply_chat_template(ANSWERED, tokenize=False) == text + "c d a. Let me know.<|eot_id|>"


def test_a_prompt_is_a_token_prefix_of_its_conversation_whatever_the_answer() -> None:
    tokenizer = build_tokenizer()
    answers = ["c d a.", "0123.", " A", "\n", "\n\nx", ".", "é", "I cannot help."]
    for puzzle, answer in zip(tasks.draw_puzzles(1, "sft", 200, unique=False), answers * 25, strict=True):
        prompt = chat_template.render_prompt(tokenizer, puzzle.messages)
        whole = chat_template.render_conversation(tokenizer, tasks.conversation(puzzle, answer))
        assert whole[: len(prompt)] == prompt
        assert len(prompt) < 30


@pytest.mark.parametrize("text", ["Reverse: a d c", "0123.", "é ß 漢字 🙂", "two  spaces\n\n\tand tabs "])
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_encoding_many_equals_rendering_each() -> None:
    tokenizer = build_tokenizer()
    conversations = [row["messages"] for row in tasks.base_rows(1, 50)]
    for (ids, num_prompt), messages in zip(
        build.encode(tokenizer, conversations), conversations, strict=True
    ):
        assert ids == chat_template.render_conversation(tokenizer, messages)
        assert ids[:num_prompt] == chat_template.render_prompt(tokenizer, messages[:-1])


def test_every_file_is_there_with_as_many_rows_as_asked_for(made: Path) -> None:
    for name, number in (
        ("sft", 30),
        ("preferences", 30),
        ("judge_prompts", 20),
        ("prompts", 40),
        ("held_out", 10),
    ):
        rows = [json.loads(line) for line in (made / f"{name}.jsonl").read_text().splitlines()]
        assert len(rows) == number
        expected = {"chosen", "rejected"} if name == "preferences" else {"messages"}
        assert all(row.keys() == expected for row in rows)


def test_the_policy_loads_and_knows_where_to_stop(made: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(made / "model")
    tokenizer = chat_template.load_tokenizer(made / "model")
    assert model.dtype == torch.float32
    assert 700_000 < model.num_parameters() < 1_000_000
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|end_of_text|>", "<|eot_id|>")]
    assert chat_template.stop_token_ids(tokenizer, made / "model") == sorted(ends)


def test_the_judge_starts_as_the_base_with_two_layers_that_pass_on_what_they_get(made: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(made / "model")
    judge = AutoModelForSequenceClassification.from_pretrained(made / "judge")
    ids = torch.tensor(
        [chat_template.render_conversation(chat_template.load_tokenizer(made / "judge"), ANSWERED)]
    )
    assert judge.config.num_hidden_layers == base.config.num_hidden_layers + 2
    assert judge.config.pad_token_id != judge.config.eos_token_id
    with torch.no_grad():
        assert judge(ids).logits.tolist() == [[0.0]]
        torch.testing.assert_close(judge.model(ids).last_hidden_state, base.model(ids).last_hidden_state)
    gradient = torch.autograd.grad(judge(ids).logits.sum(), judge.score.weight)[0]
    assert gradient.abs().max() > 0


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_ones(made: Path, tmp_path: Path) -> None:
    again, other = digests(make(tmp_path / "again")), digests(make(tmp_path / "other", seed=2))
    assert again == digests(made)
    same = {name for name in again if other[name] == again[name]}
    assert not {name for name in same if name.endswith((".jsonl", ".safetensors"))}
    assert {"model/tokenizer.json", "model/config.json"} <= same


def test_killed_in_pre_training_and_run_again_it_gives_the_same_bytes(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0

    def dies_at_the_tenth(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        nonlocal seen
        seen += 1
        if seen == 10:
            raise KeyboardInterrupt
        return items[0]

    out = tmp_path / "out"
    monkeypatch.setattr(build, "_single_item", dies_at_the_tenth)
    with pytest.raises(KeyboardInterrupt):
        make(out)
    assert (out / "checkpoint-8").is_dir()
    assert not (out / "model").exists()
    counted: list[int] = []
    monkeypatch.setattr(build, "_single_item", lambda items: counted.append(1) or items[0])
    assert digests(make(out)) == digests(made)
    assert len(counted) < 12, "it began again instead of going on"


def test_the_base_learns(tmp_path: Path) -> None:
    """Answer loss of the last batches against that of an untrained model."""
    tokenizer = build_tokenizer()
    rows = list(tasks.base_rows(1, 1600))
    settings = WorldConfig(base_steps=60, save_steps=1000)
    model = build.pretrain(tokenizer, rows, settings, 1, tmp_path, num_checkpoints=2).eval()
    batch = build.make_batches(
        build.encode(tokenizer, [row["messages"] for row in rows]), 1, 0, build.Random(1)
    )[0]
    with torch.no_grad():
        assert model(**batch).loss < 2.2 < torch.log(torch.tensor(float(len(tokenizer)))) - 2
