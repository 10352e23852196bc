"""Prompts: shapes, cleaning, order, split; and stage `prompts`."""

from __future__ import annotations

import ast
import inspect
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.stage_configs import PromptsStage
from rlhf.data.comparisons import SHAPES, Shape
from rlhf.data.preferences import Preference, read_preferences, to_preference
from rlhf.data.prompts import load_prompts, to_messages
from rlhf.data.records import dropped, prompt_id
from rlhf.data.rows import UnusableRow
from rlhf.data.shards import read_rows
from rlhf.errors import ConfigError, DataError
from rlhf.run.job import Job, Kind, Outcome
from rlhf.run.stage_table import STAGES
from rlhf.stages import split_prompts as stage

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"context_messages": [SYSTEM, USER, ANSWER, user("More")]}, [SYSTEM, USER, ANSWER, user("More")]),
        ({"messages": [USER, ANSWER]}, [USER]),
        ({"messages": [SYSTEM, USER]}, [SYSTEM, USER]),
        ({"messages": [USER, ANSWER, user("More"), ANSWER]}, [USER, ANSWER, user("More")]),
        ({"prompt": " Hi\n"}, [USER]),
        ({"prompt": [SYSTEM, USER]}, [SYSTEM, USER]),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, [user("Add\n\n1 2")]),
        ({"instruction": "Hi", "input": " "}, [USER]),
        ({"instruction": "Hi", "input": None}, [USER]),
        ({"question": "Hi", "answer": "42"}, [USER]),
        ({"context_messages": [USER], "prompt": "other"}, [USER]),
        ({"context_messages": None, "messages": None, "prompt": "Hi"}, [USER]),
        ({"messages": [{"role": "user", "content": "Hi", "name": "Ann"}]}, [USER]),
    ],
)
def test_shapes(row: dict[str, Any], messages: list[dict[str, str]]) -> None:
    assert to_messages(row) == messages


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": " \n"}, "empty"),
        ({"prompt": [{"role": "user", "content": None}]}, "empty"),
        ({"messages": []}, "empty"),
        ({"messages": [ANSWER]}, "empty"),
        ({"context_messages": [USER, ANSWER]}, "not_user_last"),
        ({"prompt": [USER, ANSWER]}, "not_user_last"),
        ({"messages": [USER, ANSWER, ANSWER]}, "not_user_last"),
        ({"messages": [SYSTEM]}, "not_user_last"),
        ({"messages": [{"role": "tool", "content": "x"}, USER]}, "tool_turn"),
        ({"messages": [{"role": "robot", "content": "x"}, USER]}, "unknown_role"),
        ({"messages": [{"role": "user", "name": "x"}]}, "not_messages"),
        ({"messages": "Hi"}, "not_messages"),
        ({"question": 7}, "not_text"),
        ({"prompt": "half \ud800"}, "invalid_unicode"),
    ],
)
def test_unusable_rows(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableRow) as caught:
        to_messages(row)
    assert caught.value.reason == reason


def test_unknown_shape_names_the_keys_and_the_shapes() -> None:
    with pytest.raises(
        DataError, match=r"\['conversations', 'id'\].*context_messages.*instruction.*question"
    ):
        to_messages({"id": 1, "conversations": []})


def test_load_counts_every_row(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a"},
        {"prompt": " a "},
        {"messages": [user("a"), ANSWER]},
        {"prompt": ""},
        {"prompt": [USER, ANSWER]},
        {"question": "b"},
    ]
    prompts, counts = load_prompts(write(tmp_path / "p.jsonl", rows))
    assert [prompt.messages[0]["content"] for prompt in prompts] == ["a", "b"]
    assert prompts[0].id == prompt_id([user("a")])
    assert +counts == Counter(
        {"rows": 6, "dropped/duplicate": 2, "dropped/empty": 1, "dropped/not_user_last": 1, "answers_cut": 1}
    )


def test_load_refuses_a_file_without_a_prompt(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 2 rows is a prompt; row 1: prompt is empty"):
        load_prompts(write(tmp_path / "p.jsonl", [{"prompt": ""}, {"prompt": 3}]))


def test_load_names_the_row_of_an_unknown_shape(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"p\.jsonl, row 2: No prompt found"):
        load_prompts(write(tmp_path / "p.jsonl", [{"prompt": "a"}, {"text": "b"}]))


class OneWorker:
    rank, world_size, num_threads = 0, 1, 1

    def shards(self) -> Any:
        return iter(())

    def progress(self, done: float, total: float, note: str = "") -> None:
        pass


def run(
    tmp: Path, inputs: dict[str, Path], num_held_out: int, seed: int = 1
) -> tuple[Outcome, list[str], list[str]]:
    (tmp / "out").mkdir(exist_ok=True)
    paths = {k: str(v) for k, v in inputs.items()}
    job = Job("prompts", "prompts", PromptsStage(num_held_out), paths, str(tmp / "out"), seed)
    outcome = stage.run(job, OneWorker())
    parts = [
        [row["messages"][0]["content"] for row in read_rows(tmp / "out" / f"{name}.parquet")]
        for name in ("train", "held_out")
    ]
    return outcome, parts[0], parts[1]


def rows(start: int, stop: int) -> list[dict[str, Any]]:
    return [{"prompt": f"prompt {i}"} for i in range(start, stop)]


def names(start: int, stop: int) -> set[str]:
    return {f"prompt {i}" for i in range(start, stop)}


def test_stage_cuts_the_held_out_prompts_off_first(tmp_path: Path) -> None:
    assert STAGES["prompts"].kind is Kind.single
    outcome, train, held_out = run(tmp_path, {"prompts": write(tmp_path / "p.jsonl", rows(0, 20))}, 5)
    assert (len(train), len(held_out)) == (15, 5)
    assert set(train) | set(held_out) == names(0, 20)
    assert outcome.counts == {"rows": 20, "train": 15, "held_out": 5, "answers_cut": 0}
    assert train != sorted(train, key=lambda name: int(name.split()[1])), "shuffled"


def test_order_depends_on_seed_and_prompts_not_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    _, train, held_out = run(tmp_path, {"prompts": write(path, rows(0, 30))}, 5)
    first = (tmp_path / "out" / "train.parquet").read_bytes()
    mixed = random.Random(0).sample(rows(0, 30), 30)
    assert run(tmp_path, {"prompts": write(path, mixed)}, 5)[1:] == (train, held_out)
    assert (tmp_path / "out" / "train.parquet").read_bytes() == first
    assert run(tmp_path, {"prompts": path}, 5, seed=2)[1] != train
    fewer = [row for row in rows(0, 30) if row["prompt"] != train[3]]
    assert run(tmp_path, {"prompts": write(path, fewer)}, 5)[1] == train[:3] + train[4:]


def test_a_held_out_file_is_never_trained_on(tmp_path: Path) -> None:
    """In the reference scripts the evaluation file is the training file."""
    inputs = {
        "prompts": write(tmp_path / "p.jsonl", [*rows(0, 20), {"prompt": ""}]),
        "held_out": write(tmp_path / "h.jsonl", [*rows(15, 25), {"prompt": "prompt 15 "}]),
    }
    outcome, train, held_out = run(tmp_path, inputs, 4)
    assert set(train) == names(0, 15)
    assert len(held_out) == 4 and set(held_out) < names(15, 25)
    assert outcome.counts == {
        "rows": 32,
        "train": 15,
        "held_out": 4,
        "answers_cut": 0,
        "dropped/duplicate": 1,
        "dropped/empty": 1,
        "dropped/in_held_out": 5,
        "dropped/over_num_held_out": 6,
    }


def test_no_held_out_prompts_can_be_asked_for(tmp_path: Path) -> None:
    _, train, held_out = run(tmp_path, {"prompts": write(tmp_path / "p.jsonl", rows(0, 3))}, 0)
    assert (len(train), held_out) == (3, [])


def test_nothing_left_to_train_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_held_out is 3, .* has 3 distinct prompts.*held_out_path"):
        run(tmp_path, {"prompts": write(tmp_path / "p.jsonl", rows(0, 3))}, 3)
    inputs = {"prompts": tmp_path / "p.jsonl", "held_out": write(tmp_path / "h.jsonl", rows(0, 9))}
    with pytest.raises(DataError, match="Every prompt"):
        run(tmp_path, inputs, 3)


def answered(*texts: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def test_preferences_of_every_shape(tmp_path: Path) -> None:
    shapes = [
        {"chosen": answered("q", "good"), "rejected": answered("q", " bad ")},
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": answered("q"), "chosen": "good", "rejected": "bad"},
        {"prompt": "q", "chosen": answered("q", "good"), "rejected": answered("q", "bad")},
        {"prompt": answered("q"), "chosen": answered("", "good")[1:], "rejected": answered("", "bad")[1:]},
    ]
    counts = Counter[str]()
    found = list(read_preferences(write(tmp_path / "a.jsonl", shapes), counts))
    assert found == [([user("q")], "good", "bad")] * 5
    assert counts == {"rows": 5, "comparisons": 5, "pairs": 5}


def preferences(path: Path, counts: Counter[str]) -> list[Preference]:
    """Those of a file; one without any is refused, with every reason."""
    found: list[Preference] = []
    try:
        found.extend(read_preferences(path, counts))
    except DataError as error:
        said = str(error)
        assert "no preference pair" in said
        assert not found
        assert all(f"{number} {reason}" in said for reason, number in dropped(counts).items())
    return found


def hh(*texts: str) -> str:
    return "".join(f"\n\n{'Assistant' if i % 2 else 'Human'}: {text}" for i, text in enumerate(texts))


WILD: list[tuple[dict[str, Any], list[tuple[str, str]], list[str]]] = [
    ({"chosen": hh("a", "b", "q", "good"), "rejected": hh("a", "b", "q", "bad")}, [("good", "bad")], []),
    ({"chosen": hh("q", "good", "more"), "rejected": hh("q", "bad", "more")}, [], ["ends_on_user"]),
    ({"chosen": hh("q", "good"), "rejected": hh("q", "")}, [], ["empty"]),
    ({"chosen": hh("q", "good"), "rejected": hh("p", "bad")}, [], ["context_differs"]),
    ({"chosen": "Human: q\n\nAssistant: good", "rejected": hh("q", "bad")}, [("good", "bad")], []),
    ({"text": [hh("q", "bad"), hh("q", "good")], "score": [0.5, 1.5]}, [("good", "bad")], []),
    ({"text": ["## Human:\nq\n\n## Assistant:\na", hh("q", "b")], "score": [1, 1]}, [], ["tie"]),
    ({"text": [hh("q", "a"), "nothing"], "score": [1, 2]}, [], ["not_turns"]),
    ({"text": [hh("q", "a"), hh("q", "b")], "score": [1]}, [], ["not_scored"]),
    (
        {"text": [hh("q", "a"), hh("q", "b"), hh("q", "c")], "score": [1, 3, 1]},
        [("b", "a"), ("b", "c")],
        ["tie"],
    ),
    (
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        [("good", "bad")],
        [],
    ),
    (
        {
            "instruction": "q",
            "completions": [{"response": "b", "overall_score": 2.0}, {"response": "a", "overall_score": 5}],
        },
        [("a", "b")],
        [],
    ),
    ({"instruction": "q", "completions": [{"response": "b", "overall_score": 2.0}]}, [], ["not_scored"]),
    ({"instruction": "q", "output_1": "a", "output_2": "b", "preference": 2}, [("b", "a")], []),
    ({"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1.0}, [("a", "b")], []),
    ({"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1.5}, [], ["tie"]),
    ({"instruction": "q", "output_1": "a", "output_2": "b", "preference": None}, [], ["tie"]),
    ({"instruction": "q", "output_1": "a", "output_2": "b", "preference": 7}, [], ["unknown_label"]),
    (
        {
            "question": "q",
            "prediction 1": "a",
            "prediction 2": "b",
            "prediction 3": "c",
            "preference": [1, 0, 2],
        },
        [("a", "b"), ("c", "b")],
        ["tie"],
    ),
    (
        {"question": "q", "prediction 1": "a", "prediction 2": "b", "preference": [1, 2]},
        [],
        ["unknown_label"],
    ),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 3, "score_rejected": 3}, [], ["tie"]),
    (
        {"prompt": "q", "chosen": "a", "rejected": "b", "metadata": {"score_chosen": 3, "score_rejected": 3}},
        [],
        ["tie"],
    ),
    (
        {
            "chosen": answered("q", "a"),
            "rejected": answered("q", "b"),
            "chosen_score": -1.0,
            "rejected_score": -1.0,
        },
        [("a", "b")],
        [],
    ),
]


@pytest.mark.parametrize(("row", "pairs", "dropped"), WILD)
def test_shapes_found_in_the_wild(
    tmp_path: Path, row: dict[str, Any], pairs: list[tuple[str, str]], dropped: list[str]
) -> None:
    counts = Counter[str]()
    found = preferences(write(tmp_path / "a.jsonl", [row]), counts)
    assert [(chosen, rejected) for _, chosen, rejected in found] == pairs
    assert all(messages[-1] == user("q") for messages, *_ in found)
    assert counts == Counter(rows=1, comparisons=len(pairs) + len(dropped), pairs=len(pairs)) + Counter(
        f"dropped/{reason}" for reason in dropped
    )


def test_preferences_dropped_by_reason(tmp_path: Path) -> None:
    bad = [
        {"chosen": answered("q", "same"), "rejected": answered("q", "same ")},
        {"chosen": answered("q", "good"), "rejected": answered("q", "")},
        {"chosen": answered("q", "x", "r", "good"), "rejected": answered("q", "y", "r", "bad")},
        {"chosen": answered("q", "good", "and?"), "rejected": answered("q", "bad", "so?")},
        {"chosen": answered("q", "good")[1:], "rejected": answered("q", "bad")[1:]},
        {"prompt": answered("q", "r"), "chosen": "good", "rejected": "bad"},
    ]
    counts = Counter[str]()
    assert preferences(write(tmp_path / "a.jsonl", bad), counts) == []
    assert counts == {
        "rows": 6,
        "comparisons": 6,
        "dropped/equal": 1,
        "dropped/empty": 1,
        "dropped/context_differs": 1,
        "dropped/ends_on_user": 1,
        "dropped/no_user_turn": 2,
    }


@pytest.mark.parametrize("row", [{"chosen": "a"}, {"chosen": "a", "rejected": "b"}, {"text": ["a", "b"]}, {}])
def test_preferences_of_unknown_shape_are_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl, row 1: .*known"):
        list(read_preferences(write(tmp_path / "a.jsonl", [row]), Counter()))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.looks)
def test_every_shape_shows_a_row_that_it_reads(shape: Shape) -> None:
    example = (inspect.getdoc(shape.read) or "").split("Example:")[1]
    row = ast.literal_eval(example.strip())
    assert [shape.fits(row) for shape in SHAPES].index(True) == SHAPES.index(shape)
    messages, chosen, rejected = to_preference(shape.read(row)[0])
    assert messages[-1]["role"] == "user"
    assert chosen != rejected
