"""Readers against real files; skipped where `../shared/data` beside the repository is missing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from rlhf.config.schema import PairConfig
from rlhf.data.files import read_records
from rlhf.data.pairing import Drop, Terminators, make_pairs
from rlhf.data.preferences import read_preferences
from rlhf.data.prompts import load_prompts
from rlhf.data.records import Candidate, ScoredPrompt, prompt_id

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
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
    ],
)
def test_every_preference_is_accounted_for(name: str, rows: int, pairs: int, dropped: dict[str, int]) -> None:
    counts = Counter[str]()
    found = list(read_preferences(DATA / "preferences" / name, counts))
    assert (counts["rows"], len(found), counts["pairs"]) == (rows, pairs, pairs)
    assert {key.removeprefix("dropped/"): n for key, n in counts.items() if key.startswith("dropped/")} == dropped
    assert counts["comparisons"] == pairs + sum(dropped.values())


def test_pairs_of_real_candidates_and_judgements() -> None:
    """8 samples of one policy with a real judge's scores: every prompt makes a pair or has a reason."""
    files = [list(read_records(path)) for path in sorted((DATA / "bon_alpacaeval_tulu2dpo13b").glob("*.json"))]
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
