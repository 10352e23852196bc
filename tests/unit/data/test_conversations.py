"""Every shape of SFT data as messages, and every row accounted for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.conversations import read_conversations, to_conversation
from rlhf.data.rows import UnusableRow
from rlhf.errors import DataError

ASKED, ANSWERED = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, ANSWERED], "prompt": "something else"},
        {"conversations": [{"from": "human", "value": " a "}, {"from": "gpt", "value": "b"}]},
        {"conversations": [ASKED, ANSWERED], "messages": None},
        {"prompt": "a", "response": "b\n"},
        {"prompt": "a", "response": None, "completion": "b"},
        {"prompt": [ASKED], "completion": [ANSWERED]},
        {"prompt": [ASKED], "completion": "b", "system": ""},
        {"instruction": "a", "output": "b", "input": ""},
        {"instruction": "a", "response": "b", "context": None},
        {"question": "a", "answer": "b"},
    ],
)
def test_shapes(row: dict[str, Any]) -> None:
    assert to_conversation(row) == [ASKED, ANSWERED]


def test_input_context_and_system_are_kept() -> None:
    for key in ("input", "context"):
        asked = to_conversation({"instruction": "sum", key: "1 2", "output": "3"})[0]
        assert asked == {"role": "user", "content": "sum\n\n1 2"}
    system = {"role": "system", "content": "be brief"}
    assert to_conversation({"prompt": "a", "response": "b", "system": "be brief"}) == [
        system,
        ASKED,
        ANSWERED,
    ]
    assert to_conversation({"messages": [system, ASKED], "system": " be brief"}) == [system, ASKED]
    with pytest.raises(UnusableRow) as caught:
        to_conversation({"messages": [system, ASKED], "system": "be long"})
    assert caught.value.reason == "two_systems"


def test_every_row_is_kept_or_counted_by_reason(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [ASKED, ANSWERED]},
        {"messages": []},
        {"messages": [ASKED, {"role": "tool", "content": "b"}]},
        {"conversations": [{"from": "robot", "value": "a"}]},
        {"prompt": "a", "response": None},
        {"instruction": 3, "output": "b"},
        {"prompt": "a", "completion": "b"},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = Counter[str]()
    assert list(read_conversations(path, counts)) == [[ASKED, ANSWERED]] * 2
    assert counts == {
        "rows": 7,
        "dropped/empty": 2,
        "dropped/tool_turn": 1,
        "dropped/unknown_role": 1,
        "dropped/not_text": 1,
    }


def test_an_unknown_shape_names_the_row_its_keys_and_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a", "chosen": "b"}\n')
    with pytest.raises(DataError, match=r"row 2: .*\['chosen', 'prompt'\].*conversations: turns"):
        list(read_conversations(path, Counter()))


@pytest.mark.parametrize(
    ("row", "conversation"),
    [
        (
            {"prompt": [ASKED], "completion": [ANSWERED, {"role": "user", "content": "c"}, ANSWERED]},
            [ASKED, ANSWERED, {"role": "user", "content": "c"}, ANSWERED],
        ),
        ({"prompt": [ASKED], "completion": [ASKED, ANSWERED]}, [ASKED, ANSWERED]),
        ({"messages": [ASKED], "response": "b"}, [ASKED, ANSWERED]),
        ({"messages": [ASKED]}, [ASKED]),
        ({"input": "a", "output": "b"}, [ASKED, ANSWERED]),
        ({"query": "a", "response": ["b"]}, [ASKED, ANSWERED]),
        ({"problem": "a", "solution": {"role": "assistant", "content": "b"}}, [ASKED, ANSWERED]),
        ({"text": "### Human: a### Assistant: b"}, [ASKED, ANSWERED]),
        ({"conversation": "User: a\nAssistant: b"}, [ASKED, ANSWERED]),
        ({"data": ["a", "b"]}, [ASKED, ANSWERED]),
        ({"conversation": [{"input": "a", "output": "b"}]}, [ASKED, ANSWERED]),
        ({"instruction": "a", "instances": [{"input": "", "output": "b"}]}, [ASKED, ANSWERED]),
        (
            {
                "prompt": {
                    "text": "a",
                    "role": "prompter",
                    "replies": [
                        {"text": "x", "role": "assistant", "rank": 1},
                        {
                            "text": "b",
                            "role": "assistant",
                            "rank": 0,
                            "replies": [{"text": "?", "role": "prompter"}],
                        },
                        {"text": "y", "role": "assistant", "rank": None},
                    ],
                }
            },
            [ASKED, ANSWERED],
        ),
    ],
)
def test_shapes_of_others(row: dict[str, Any], conversation: list[dict[str, str]]) -> None:
    assert to_conversation(row) == conversation


def test_an_answer_that_is_several_is_counted() -> None:
    with pytest.raises(UnusableRow) as caught:
        to_conversation({"prompt": "a", "response": ["b", "c"]})
    assert caught.value.reason == "several_answers"
