"""Readers against real files; skipped where `../shared/data` beside the repository is missing."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.schema import PairConfig
from rlhf.data.columns import unread_columns
from rlhf.data.conversations import read_conversations
from rlhf.data.files import read_records
from rlhf.data.pairing import Drop, Terminators, make_pairs
from rlhf.data.preferences import read_preferences
from rlhf.data.prompts import load_prompts, read_prompts
from rlhf.data.records import Candidate, ScoredPrompt, prompt_id
from rlhf.data.responses import read_best_of_n

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) is not on this machine")


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("alpaca_random_2000.json", 1994),
        ("dolly_1500.json", 1500),
        ("gsm8k_train_1000.jsonl", 1000),
        ("self_instruct_seed_tasks.jsonl", 175),
    ],
)
def test_every_prompt_is_accounted_for(name: str, rows: int) -> None:
    prompts, counts = load_prompts(DATA / "prompts" / name)
    assert counts["rows"] == rows
    assert rows == len(prompts) + sum(n for key, n in counts.items() if key.startswith("dropped/"))
    assert len(prompts) > 0.98 * rows
    assert all(prompt.messages[-1]["content"] == prompt.messages[-1]["content"].strip() for prompt in prompts)


def test_alpaca_prompts_are_instruction_and_input_as_they_stand() -> None:
    path = DATA / "prompts" / "alpaca_random_2000.json"
    ids = {prompt.id for prompt in load_prompts(path)[0]}
    row = next(row for row in read_records(path) if row["input"].strip())
    text = f"{row['instruction'].strip()}\n\n{row['input'].strip()}"
    assert prompt_id([{"role": "user", "content": text}]) in ids


@pytest.mark.parametrize(
    ("name", "rows", "pairs", "dropped"),
    [
        ("hh_harmless_base_test.jsonl", 1718, 1711, {"empty": 2, "context_differs": 5}),
        ("hh_helpful_base_test.json", 1746, 1736, {"empty": 3, "context_differs": 7}),
        ("webgpt_comparisons_test.json", 898, 653, {"tie": 245}),
        ("ultrafeedback_train_1000.jsonl", 999, 883, {"tie": 110, "equal": 4, "empty": 2}),
        ("ultrafeedback_eval_200.jsonl", 200, 175, {"tie": 24, "equal": 1}),
        ("llamafactory_dpo_en_demo.json", 300, 300, {}),
        ("qa_feedback_4way.json", 255, 1326, {"tie": 204}),
        ("alpacaeval_gpt4_judge/text_davinci_001.json", 392, 386, {"tie": 1, "equal": 5}),
        ("alpacaeval_gpt4_judge/alpaca-7b.json", 392, 387, {"equal": 5}),
        ("../bon_alpacaeval_tulu2dpo13b/candidate_10.json", 196, 194, {"tie": 2}),
    ],
)
def test_every_preference_is_accounted_for(name: str, rows: int, pairs: int, dropped: dict[str, int]) -> None:
    counts = Counter[str]()
    found = list(read_preferences(DATA / "preferences" / name, counts))
    assert (counts["rows"], len(found), counts["pairs"]) == (rows, pairs, pairs)
    assert {
        key.removeprefix("dropped/"): n for key, n in counts.items() if key.startswith("dropped/")
    } == dropped
    assert counts["comparisons"] == pairs + sum(dropped.values())


def bare_candidates(path: Path, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    for row in read_best_of_n(path, counts):
        yield row | {"candidates": [candidate["text"] for candidate in row["candidates"]]}


def prompts_of(path: Path, counts: Counter[str]) -> list[Any]:
    return [(prompt.id, prompt.messages) for prompt in read_prompts(path, counts)]


READERS: dict[str, Callable[[Path, Counter[str]], Iterable[Any]]] = {
    "prompts": prompts_of,
    "sft": read_conversations,
    "pref": read_preferences,
    "bon": bare_candidates,
}


@pytest.mark.parametrize(
    ("kind", "name", "number", "digest"),
    [
        ("prompts", "bon_alpacaeval_tulu2dpo13b/candidate_00.json", 196, "85894aef8f7ea371"),
        ("prompts", "preferences/alpacaeval_gpt4_judge/alpaca-7b.json", 392, "001b367cb330cb96"),
        ("pref", "preferences/alpacaeval_gpt4_judge/alpaca-7b.json", 387, "f8e34ccb6794e86f"),
        ("prompts", "preferences/alpacaeval_gpt4_judge/falcon-7b-instruct.json", 392, "001b367cb330cb96"),
        ("pref", "preferences/alpacaeval_gpt4_judge/falcon-7b-instruct.json", 389, "1dce5545a38f9873"),
        ("prompts", "preferences/alpacaeval_gpt4_judge/gpt-3.5-turbo-0301.json", 392, "001b367cb330cb96"),
        ("pref", "preferences/alpacaeval_gpt4_judge/gpt-3.5-turbo-0301.json", 389, "350576b1a1f602ee"),
        ("prompts", "preferences/alpacaeval_gpt4_judge/llama-2-7b-chat-hf.json", 392, "001b367cb330cb96"),
        ("pref", "preferences/alpacaeval_gpt4_judge/llama-2-7b-chat-hf.json", 392, "08fd6b709bf67c26"),
        ("prompts", "preferences/alpacaeval_gpt4_judge/phi-2-sft.json", 392, "001b367cb330cb96"),
        ("pref", "preferences/alpacaeval_gpt4_judge/phi-2-sft.json", 392, "4f51684d27fbe1fe"),
        ("prompts", "preferences/alpacaeval_gpt4_judge/text_davinci_001.json", 392, "001b367cb330cb96"),
        ("pref", "preferences/alpacaeval_gpt4_judge/text_davinci_001.json", 386, "41f4ad8ec1274e58"),
        ("prompts", "preferences/alpacaeval_gpt4_judge/tulu-2-dpo-7b.json", 392, "001b367cb330cb96"),
        ("pref", "preferences/alpacaeval_gpt4_judge/tulu-2-dpo-7b.json", 392, "787df162c77cbc1e"),
        ("pref", "preferences/hh_harmless_base_test.jsonl", 1711, "28a2a1efb79e1e87"),
        ("pref", "preferences/hh_helpful_base_test.json", 1736, "6ce3dfa24f09ae5d"),
        ("sft", "preferences/llamafactory_dpo_en_demo.json", 300, "d24d1256b02611db"),
        ("pref", "preferences/llamafactory_dpo_en_demo.json", 300, "ecb8801c6456324e"),
        ("pref", "preferences/qa_feedback_4way.json", 1326, "cc18122c7189080c"),
        ("prompts", "preferences/ultrafeedback_eval_200.jsonl", 200, "a2754f9b72cdd2fc"),
        ("pref", "preferences/ultrafeedback_eval_200.jsonl", 175, "761b26cc5d552a54"),
        ("prompts", "preferences/ultrafeedback_train_1000.jsonl", 999, "b9d34f8aae7a8f12"),
        ("pref", "preferences/ultrafeedback_train_1000.jsonl", 883, "4536aba71e68a02a"),
        ("pref", "preferences/webgpt_comparisons_test.json", 653, "8367e4ddc60001b2"),
        ("prompts", "prompts/alpaca_random_2000.json", 1994, "6bf55e9cfb4852f9"),
        ("sft", "prompts/alpaca_random_2000.json", 1992, "444abdcc1231a860"),
        ("prompts", "prompts/dolly_1500.json", 1496, "b396e9798ad0c90f"),
        ("sft", "prompts/dolly_1500.json", 1500, "f4ec0c0ca99166b6"),
        ("prompts", "prompts/gsm8k_train_1000.jsonl", 1000, "fa01bf0d02391a3a"),
        ("sft", "prompts/gsm8k_train_1000.jsonl", 1000, "d0b43c5144570a68"),
        ("prompts", "rm_bench/humanevalpack_js.jsonl", 164, "0b4f6761dfa87afa"),
        ("pref", "rm_bench/humanevalpack_js.jsonl", 164, "99524ce3274fa028"),
        ("pref", "rm_bench/llmbar_casestudy/Base_10.json", 54, "3ad4c8ce04aeac93"),
        ("pref", "rm_bench/llmbar_casestudy/Base_9.json", 54, "84ca41b327a5f30e"),
        ("pref", "rm_bench/llmbar_casestudy/Constraint.json", 89, "5315ffaad069ee08"),
        ("pref", "rm_bench/llmbar_casestudy/Negation.json", 59, "8caeef9352ad1bcc"),
        ("pref", "rm_bench/llmbar_casestudy/Normal.json", 58, "5465dc571576ebb9"),
        ("prompts", "rm_bench/rmbench_chat_subset.json", 86, "d78bf0b0b7053d27"),
        ("pref", "rm_bench/rmbench_chat_subset.json", 774, "d438edbc0f39ecd7"),
        ("bon", "rm_bench/rmbench_chat_subset.json", 86, "7ccb2c7b15ec6e2a"),
    ],
)
def test_rows_are_read_as_by_the_runs_of_before(kind: str, name: str, number: int, digest: str) -> None:
    """Artifacts of older runs are reused only where ids and texts are what they were, to the byte."""
    rows = list(READERS[kind](DATA / name, Counter()))
    text = json.dumps(rows, ensure_ascii=False, sort_keys=True)
    assert (len(rows), hashlib.sha256(text.encode()).hexdigest()[:16]) == (number, digest)


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("prompts/alpaca_random_2000.json", read_prompts),
        ("prompts/dolly_1500.json", read_conversations),
        ("prompts/gsm8k_train_1000.jsonl", read_prompts),
        ("prompts/self_instruct_seed_tasks.jsonl", read_prompts),
        ("preferences/hh_harmless_base_test.jsonl", read_preferences),
        ("preferences/ultrafeedback_eval_200.jsonl", read_preferences),
        ("preferences/qa_feedback_4way.json", read_preferences),
        ("preferences/alpacaeval_gpt4_judge/alpaca-7b.json", read_preferences),
        ("rm_bench/llmbar_casestudy/Normal.json", read_preferences),
    ],
)
def test_no_column_of_a_known_file_is_called_unread(name: str, reader: Callable[..., Iterable[Any]]) -> None:
    counts = Counter[str]()
    list(reader(DATA / name, counts))
    assert unread_columns(counts) == {}


def test_inputs_of_self_instruct_are_read() -> None:
    path = DATA / "prompts" / "self_instruct_seed_tasks.jsonl"
    texts = {prompt.messages[-1]["content"] for prompt in load_prompts(path)[0]}
    for row in read_records(path):
        given = row["instances"][0]["input"].strip()
        assert any(text.startswith(row["instruction"].strip()) and text.endswith(given) for text in texts)


def test_pairs_of_real_candidates_and_judgements() -> None:
    """8 samples of one policy with a real judge's scores: every prompt makes a pair or has a reason."""
    files = [
        list(read_records(path)) for path in sorted((DATA / "bon_alpacaeval_tulu2dpo13b").glob("*.json"))
    ]
    results: Counter[str] = Counter()
    shorter = {0.0: 0, 0.001: 0}
    for rows in zip(*files, strict=True):
        assert len({row["instruction"] for row in rows}) == 1
        candidates = tuple(Candidate([5, 2], row["output_2"], "stop", 0.0, 0, 1.0) for row in rows)
        messages = ({"role": "user", "content": rows[0]["instruction"]},)
        scores = tuple(float("nan") if row["preference"] is None else row["preference"] - 1 for row in rows)
        prompt = ScoredPrompt(prompt_id(messages), messages, [1], candidates, scores)
        for penalty in shorter:
            made = make_pairs(prompt, PairConfig(length_penalty=penalty), Terminators(3, frozenset({2})), 0)
            results[made.value if isinstance(made, Drop) else "paired"] += 1
            if not isinstance(made, Drop):
                shorter[penalty] += made[0].chosen_chars < made[0].rejected_chars
                assert made[0].margin > 0
    assert sum(results.values()) == 2 * len(files[0])
    assert results["paired"] > 0.9 * sum(results.values())
    assert shorter[0.001] > shorter[0.0]
