"""The synthetic world's tasks: right answers, disjoint sets, noise at its rate."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from random import Random

import pytest

from rlhf.errors import ConfigError, DataError
from rlhf.world import tasks


def ask(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Upper case: a b c", "A B C"),
        ("Make capital: j j a b c", "J J A B C"),
        ("Last and first: a b c d", "d a"),
        ("Give last, then first: g f e d c b a", "a g"),
        ("Every second: a b c d e", "b d"),
        ("Skip each other letter: a b c d", "b d"),
        ("Reverse: a d c", "c d a"),
        ("Write backwards: a a b c", "c b a a"),
        ("Sort: 3101", "0113"),
        ("From low to high: 987", "789"),
    ],
)
def test_gold_knows_the_answer_to_every_phrasing(prompt: str, answer: str) -> None:
    assert tasks.gold(ask(prompt), f"{answer}.") == 1.0
    assert tasks.gold(ask(prompt), f"{answer}. Let me know.") == 1.0
    assert tasks.gold(ask(prompt), f"x{answer}.") == 0.0


@pytest.mark.parametrize(
    "response", ["", ".", "c d.", "c d a a.", "C D A.", "c  d a.", "I hope this helps. c d a."]
)
def test_gold_refuses_anything_but_an_exact_match_before_the_first_full_stop(response: str) -> None:
    assert tasks.gold(ask("Reverse: a d c"), response) == 0.0


def test_gold_reads_the_last_user_message_only() -> None:
    messages = [*ask("Reverse: a b c"), {"role": "assistant", "content": "c b a."}, *ask("Sort: 321")]
    assert tasks.gold(messages, "123.") == 1.0
    assert tasks.gold(messages, "c b a.") == 0.0


@pytest.mark.parametrize(
    "prompt", ["What is love?", "Reverse: a b", "Reverse: a b z", "Sort: 1 2", "Reverse: a  b c"]
)
def test_gold_says_so_when_a_prompt_is_not_of_this_world(prompt: str) -> None:
    with pytest.raises(DataError, match="not a prompt of the synthetic world"):
        tasks.gold(ask(prompt), "a.")


def test_every_drawn_prompt_parses_back_and_every_task_and_phrasing_occurs() -> None:
    puzzles = list(tasks.draw_puzzles(3, "prompts", 400))
    assert [tasks.parse_prompt(p.prompt) for p in puzzles] == puzzles
    assert len({(p.task.name, p.phrasing) for p in puzzles}) == sum(
        len(task.phrasings) for task in tasks.TASKS
    )
    assert {(p.task.name, len(p.operand)) for p in puzzles} == {
        (t.name, n) for t in tasks.TASKS for n in t.lengths
    }


def test_no_operand_is_in_two_sets() -> None:
    sizes = {
        "base": 4000,
        "sft": 3200,
        "preferences": 4500,
        "judge_prompts": 800,
        "prompts": 1920,
        "held_out": 400,
    }
    assert sizes.keys() == tasks.SPLITS.keys()
    operands = {
        split: {(p.task.name, p.operand) for p in tasks.draw_puzzles(5, split, number, unique=False)}
        for split, number in sizes.items()
    }
    for one, other in combinations(operands, 2):
        assert not operands[one] & operands[other], (one, other)


def test_prompts_are_unique_within_a_set_and_a_longer_set_begins_with_the_shorter() -> None:
    short = [row["messages"][0]["content"] for row in tasks.prompt_rows(5, "prompts", 960)]
    long = [row["messages"][0]["content"] for row in tasks.prompt_rows(5, "prompts", 1920)]
    assert len(set(long)) == 1920
    assert long[:960] == short


def test_asking_for_more_prompts_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tasks.Task("tiny", ("Tiny: ",), (1,), "abc", " ", 1, str.upper)
    monkeypatch.setattr(tasks, "TASKS", (tiny,))
    monkeypatch.setattr(tasks, "SPLITS", {"prompts": 1.0})
    assert len(list(tasks.draw_puzzles(1, "prompts", 3))) == 3
    with pytest.raises(ConfigError, match=r"world\.num_prompts"):
        list(tasks.draw_puzzles(1, "prompts", 4))


@pytest.mark.parametrize("make", [tasks.base_rows, tasks.sft_rows, tasks.preference_rows])
def test_rows_depend_on_the_seed_alone(make) -> None:  # type: ignore[no-untyped-def]
    assert list(make(1, 50)) == list(make(1, 50))
    assert list(make(1, 50)) != list(make(2, 50))


def test_rows_are_the_same_in_another_process_with_another_hash_seed() -> None:
    code = "from rlhf.world.tasks import sft_rows; print(list(sft_rows(1, 20)))"
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1] == f"{list(tasks.sft_rows(1, 20))}\n"


def test_the_base_sees_right_answers_only_and_sft_wrong_ones_at_its_rate() -> None:
    def rate(rows: list[dict[str, list[dict[str, str]]]]) -> float:
        return sum(tasks.gold(row["messages"][:1], row["messages"][1]["content"]) for row in rows) / len(rows)

    assert rate(list(tasks.base_rows(2, 500))) == 1.0
    assert rate(list(tasks.sft_rows(2, 3000))) == pytest.approx(1 - tasks.BAD_ANSWER_SHARE, abs=0.03)


def test_preferences_are_right_against_wrong_but_for_the_flipped_share() -> None:
    wins = 0
    for row in tasks.preference_rows(2, 3000):
        assert row["chosen"][:1] == row["rejected"][:1]
        labels = [tasks.gold(row[side][:1], row[side][1]["content"]) for side in ("chosen", "rejected")]
        assert sorted(labels) == [0.0, 1.0]
        wins += labels[0] > labels[1]
    assert wins / 3000 == pytest.approx(1 - tasks.FLIPPED_SHARE, abs=0.015)


def test_bad_answers_and_near_misses_are_never_right() -> None:
    rng = Random(1)
    for puzzle in tasks.draw_puzzles(1, "sft", 1000, unique=False):
        assert tasks.gold(puzzle.messages, tasks.bad_answer(rng, puzzle)) == 0.0
        assert tasks.gold(puzzle.messages, tasks.near_miss(rng, puzzle)) == 0.0


def test_the_tasks_load_no_torch() -> None:
    code = (
        "import sys, rlhf.world.tasks, rlhf.stages.world; assert not {'torch', 'transformers'} "
        "& set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
