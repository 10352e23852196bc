"""A column that may belong to the question is read, mapped or counted, and never lost in silence."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.benchmarks import read_questions
from rlhf.data.columns import unread_columns, unread_text
from rlhf.data.conversations import read_conversations
from rlhf.data.preferences import read_preferences
from rlhf.data.prompts import load_prompts, read_prompts
from rlhf.data.records import dropped, what_became
from rlhf.data.responses import read_best_of_n, read_comparisons, read_responses
from rlhf.errors import DataError

Reader = Callable[..., Any]
READERS: list[tuple[Reader, dict[str, Any]]] = [
    (read_prompts, {}),
    (read_conversations, {"response": "a"}),
    (read_preferences, {"chosen": "a", "rejected": "b"}),
    (read_comparisons, {"chosen": "a", "rejected": "b"}),
    (read_responses, {"responses": ["a", "b"]}),
    (read_best_of_n, {"chosen": ["a"], "rejected": ["b"]}),
    (read_questions, {"uid": "u"}),
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def messages_of(kept: Any) -> list[dict[str, str]]:
    """The messages that a reader gives, whatever it wraps them in, without an answer."""
    if isinstance(kept, tuple):
        return kept[0]
    messages = kept["messages"] if isinstance(kept, dict) else getattr(kept, "messages", kept)
    return [message for message in messages if message["role"] != "assistant"]


@pytest.mark.parametrize(("reader", "more"), READERS)
def test_every_reader_counts_what_it_does_not_read(
    tmp_path: Path, reader: Reader, more: dict[str, Any]
) -> None:
    rows = [
        {"prompt": f"q{n}", "evidence": "e" * n, "id": n, "source": "s", "Score": 3} | more for n in range(3)
    ]
    counts = Counter[str]()
    kept = list(reader(write(tmp_path / "a.jsonl", rows), counts))
    assert len(kept) == 3
    assert unread_columns(counts) == {"evidence": 2}, "an empty one is nothing"
    assert dropped(counts) == {}
    said = "column `evidence` (2 of 3 rows) is not read; prompts.columns={context: evidence} maps it"
    assert unread_text(counts, "prompts") == said


@pytest.mark.parametrize(("reader", "more"), READERS)
def test_every_reader_takes_a_mapping(tmp_path: Path, reader: Reader, more: dict[str, Any]) -> None:
    row = {"title": "q", "evidence": "e", "hint": 7, "tone": "S", "talk": [["a", "b"]]} | more
    columns = {"question": "title", "context": ["hint", "evidence"], "system": "tone", "history": "talk"}
    counts = Counter[str]()
    (kept,) = reader(write(tmp_path / "a.jsonl", [row]), counts, columns=columns)
    asked = [{"role": "system", "content": "S"}, user("a"), user("q\n\n7\n\ne")]
    assert [message for message in messages_of(kept) if message["role"] != "assistant"] == asked
    assert unread_columns(counts) == {}
    with pytest.raises(
        DataError, match=r"context=evidense: no row has such a column; there are .*evidence, .*title"
    ):
        list(reader(tmp_path / "a.jsonl", Counter(), columns={"question": "title", "context": "evidense"}))
    with pytest.raises(DataError, match=r"'evidence' is no part .*known are question, context, system"):
        list(reader(tmp_path / "a.jsonl", Counter(), columns={"evidence": "context"}))
    with pytest.raises(DataError, match="context=7 must be the name of a column"):
        list(reader(tmp_path / "a.jsonl", Counter(), columns={"context": 7}))
    with pytest.raises(
        DataError, match=r"columns='evidence': must be a mapping such as \{context: evidence}"
    ):
        list(reader(tmp_path / "a.jsonl", Counter(), columns="evidence"))


def test_a_mapping_goes_before_the_table(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "q", "system": "x", "role_text": "S", "context": "c"}])
    counts = Counter[str]()
    (prompt,) = read_prompts(path, counts, columns={"system": "role_text", "question": ["prompt"]})
    assert list(prompt.messages) == [{"role": "system", "content": "S"}, user("q\n\nc")]
    assert unread_columns(counts) == {"system": 1}


def test_answers_are_mapped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "q", "good": "a", "poor": "b", "response": "x"}])
    (preference,) = read_preferences(path, Counter(), columns={"chosen": "good", "rejected": "poor"})
    assert preference == ([user("q")], "a", "b")
    (conversation,) = read_conversations(path, Counter(), columns={"answer": "good"})
    assert conversation[-1] == {"role": "assistant", "content": "a"}


def test_a_column_that_one_row_lacks_is_no_mistake(tmp_path: Path) -> None:
    rows = [{"title": "q"}, {"title": "r", "evidence": "e"}, {"evidence": "e"}]
    prompts, counts = load_prompts(
        write(tmp_path / "a.jsonl", rows), columns={"question": "title", "context": "evidence"}
    )
    assert [prompt.messages[-1]["content"] for prompt in prompts] == ["q", "r\n\ne"]
    assert dropped(counts) == {"empty": 1}


def test_columns_of_the_table_that_another_one_beats_are_counted_unless_they_say_the_same(
    tmp_path: Path,
) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "q", "question": "other"},
        {"prompt": "What is q?", "question": "q"},
        {"messages": [user("q")], "prompt": "q"},
        {"prompt": "q2", "conversations": [{"from": "human", "value": "q2"}, {"from": "gpt", "value": "x"}]},
        {"prompt": "q3", "history": "some text"},
        {"prompt": "q4", "choices": [{"message": "x"}]},
        {"instruction": "q5", "instances": [{"input": "a"}, {"input": "b"}]},
    ]
    counts = load_prompts(write(tmp_path / "a.jsonl", rows))[1]
    assert unread_columns(counts) == {"question": 1, "history": 1, "choices": 1}


def test_what_an_object_holds_beside_the_question_is_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": {"stem": "q", "hint": "h", "id": 3}},
        {"question": {"stem": "q", "context": "inner"}, "context": "outer"},
        {"prompt": user("r") | {"name": "Ann"}},
    ]
    counts = load_prompts(write(tmp_path / "a.jsonl", rows))[1]
    assert unread_columns(counts) == {"question.hint": 1, "question.context": 1, "prompt[].name": 1}
    assert "maps" not in str(unread_text(counts, "prompts"))


def test_other_keys_of_turns_are_counted_by_name(tmp_path: Path) -> None:
    turns = [
        user("q") | {"name": "Ann", "id": 3, "weight": None},
        {"role": "assistant", "content": "a", "weight": 0.5},
    ]
    counts = load_prompts(write(tmp_path / "a.jsonl", [{"messages": turns}, {"prompt": [user("r")]}]))[1]
    assert unread_columns(counts) == {"messages[].name": 1, "messages[].weight": 1}
    assert unread_text(counts, "prompts") == (
        "columns `messages[].name` (1 of 2 rows), `messages[].weight` (1 of 2 rows) are not read"
    )


def test_the_sentence_of_several_columns() -> None:
    counts = {
        "rows": 9,
        "unread/evidence": 2,
        "unread/my hint": 9,
        "unread/messages[].name": 1,
        "dropped/empty": 3,
    }
    assert unread_text(counts, "reward_model.columns") == (
        "columns `my hint` (9 of 9 rows), `evidence` (2 of 9 rows), `messages[].name` (1 of 9 "
        "rows) are not read; "
        "reward_model.columns={context: ['my hint', evidence]} maps them"
    )
    assert unread_text({"rows": 9}, "prompts") is None
    assert what_became(counts) == "9 rows, dropped: 3 empty"


def test_names_that_cannot_be_printed_and_names_without_end(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", f"\x1b[31m{n}": 1, f"k{n}" * 50: 1} for n in range(60)]
    counts = load_prompts(write(tmp_path / "a.jsonl", rows))[1]
    columns = unread_columns(counts)
    assert len(columns) <= 41
    assert sum(columns.values()) == 120
    assert all(name.isprintable() and len(name) <= 60 for name in columns)
    assert "other columns" in str(unread_text(counts, "prompts"))
