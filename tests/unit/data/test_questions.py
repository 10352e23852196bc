"""All that belongs to a question becomes messages, in every spelling and nesting; what does not is
counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.conversations import read_conversations
from rlhf.data.preferences import read_preferences
from rlhf.data.prompts import load_prompts, to_messages
from rlhf.data.records import prompt_id
from rlhf.data.responses import read_responses, scored_line
from rlhf.data.rows import UnusableRow
from rlhf.errors import DataError


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PIRATE = [system("Answer as a pirate."), user("Say hi")]
SPAIN = [user("Capital of France?"), answer("Paris."), user("And of Spain?")]
TURNS: list[tuple[dict[str, Any], list[dict[str, str]]]] = [
    # system
    ({"system": "Answer as a pirate.", "prompt": "Say hi"}, PIRATE),
    ({"system_prompt": "Answer as a pirate.\n", "instruction": "Say hi"}, PIRATE),
    ({"systemPrompt": "Answer as a pirate.", "Question": "Say hi"}, PIRATE),
    ({"System Message": [{"type": "text", "text": "Answer as a pirate."}], "query": "Say hi"}, PIRATE),
    ({"sys_prompt": "Answer as a pirate.", "messages": [user("Say hi"), answer("x")]}, PIRATE),
    ({"system": "Answer as a pirate.", "prompt": PIRATE}, PIRATE),
    ({"system": "Answer as a pirate.", "system_prompt": "Answer as a pirate.", "prompt": "Say hi"}, PIRATE),
    ({"system": "", "system_prompt": None, "prompt": "Say hi"}, PIRATE[1:]),
    ({"prompt": [{"role": "developer", "content": "Answer as a pirate."}, user("Say hi")]}, PIRATE),
    # history
    ({"instruction": "And of Spain?", "input": "", "history": [["Capital of France?", "Paris."]]}, SPAIN),
    ({"prompt": "And of Spain?", "history": SPAIN[:2]}, SPAIN),
    ({"prompt": "And of Spain?", "history": SPAIN}, SPAIN),
    ({"prompt": "And of Spain?", "context": SPAIN[:2]}, SPAIN),
    ({"prompt": SPAIN, "history": SPAIN[:2]}, SPAIN),
    (
        {
            "question": "And of Spain?",
            "chat_history": [
                {"from": "human", "value": "Capital of France?"},
                {"from": "gpt", "value": "Paris."},
            ],
        },
        SPAIN,
    ),
    ({"prompt": "And of Spain?", "history": [{"question": "Capital of France?", "answer": "Paris."}]}, SPAIN),
    ({"prompt": "And of Spain?", "history": "Human: Capital of France?\n\nAssistant: Paris."}, SPAIN),
    (
        {"system": "S", "prompt": "And of Spain?", "history": [["Capital of France?", "Paris."]]},
        [system("S"), *SPAIN],
    ),
    # bases
    ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "x"}]}, [user("Hi")]),
    ({"conversation": [{"from": "user", "value": "Hi"}, {"from": "bing", "value": "x"}]}, [user("Hi")]),
    ({"conversations": [{"from": "Human", "value": "Hi"}, {"from": "ChatGPT", "value": "x"}]}, [user("Hi")]),
    ({"conversations": [{"role": "user", "value": "Hi"}]}, [user("Hi")]),
    (
        {"messages": [{"role": "prompter", "text": "Hi"}, {"role": "model", "parts": [{"text": "x"}]}]},
        [user("Hi")],
    ),
    ({"prompt": [{"type": "text", "text": "Hi"}]}, [user("Hi")]),
    (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi", "image": None}]}]},
        [user("Hi")],
    ),
    ({"prompt": json.dumps([user("Hi")])}, [user("Hi")]),
    ({"messages": [], "prompt": "Hi"}, [user("Hi")]),
    ({"query": "Hi"}, [user("Hi")]),
    ({"problem": "Hi"}, [user("Hi")]),
    ({"input": "Hi"}, [user("Hi")]),
    ({"input": 7}, [user("7")]),
    ({"conversation_input": [user("Hi")]}, [user("Hi")]),
    ({"turns": ["Hi"]}, [user("Hi")]),
    ({"turns": [{"content": "Hi"}]}, [user("Hi")]),
    ({"turns": SPAIN}, SPAIN),
    ({"data": ["Capital of France?", "Paris.", "And of Spain?", "Madrid."]}, SPAIN),
    ({"context": SPAIN}, SPAIN),
    ({"conversation": [{"system": "S", "input": "Hi", "output": "x"}]}, [system("S"), user("Hi")]),
    (
        {"prompt": {"text": "Hi", "role": "prompter", "replies": [{"text": "x", "role": "assistant"}]}},
        [user("Hi")],
    ),
    ({"text": "Hi", "role": "prompter", "parent_id": None, "lang": "en"}, [user("Hi")]),
    ({"question": {"full_text": "Hi", "id": "1"}}, [user("Hi")]),
    ({"info": {"post": "I fell.", "title": "Ouch"}}, [user("TITLE: Ouch\nPOST: I fell.\nTL;DR:")]),
    ({"prompt": {"system": "S", "user": "Hi"}}, [system("S"), user("Hi")]),
    (
        {"prompt": {"messages": [user("Hi"), answer("x"), user("y")], "system": "S"}},
        [system("S"), user("Hi"), answer("x"), user("y")],
    ),
    ({"prompt": "And of Spain?", "history": ["Capital of France?", "Paris."]}, SPAIN),
    ({"prompt": "And of Spain?", "history": {"question": "Capital of France?", "answer": "Paris."}}, SPAIN),
    # marked text
    (
        {
            "prompt": "\n\nHuman: Capital of France?\n\nAssistant: Paris.\n\nHuman: And of "
            "Spain?\n\nAssistant:"
        },
        SPAIN,
    ),
    ({"prompt": "Human: Capital of France?\nAssistant: Paris.\nHuman: And of Spain?\nAssistant:"}, SPAIN),
    (
        {
            "prompt": "### Human: Capital of France?### Assistant: Paris.### Human: And of "
            "Spain?### Assistant:"
        },
        SPAIN,
    ),
    ({"prompt": "## Human:\nCapital of France?\n\n## Assistant:\nParis.\n\n## Human:\nAnd of Spain?"}, SPAIN),
    ({"prompt": "User: Capital of France?\n\nAssistant: Paris.\n\nUser: And of Spain?\n\nAssistant:"}, SPAIN),
    ({"prompt": "USER: Capital of France?\nASSISTANT: Paris.\nUSER: And of Spain?\nASSISTANT: "}, SPAIN),
    ({"prompt": "\n\nHuman: Hi\nAssistant:"}, [user("Hi")]),
    ({"prompt": "Be brief.\n\nHuman: Hi\n\nAssistant:"}, [system("Be brief."), user("Hi")]),
    ({"text": "### Human: Hi### Assistant: Hello"}, [user("Hi")]),
    (
        {"prompt": "Capital of France?\n<extra_id_1>Assistant\nParis.\n<extra_id_1>User\nAnd of Spain?"},
        SPAIN,
    ),
]


@pytest.mark.parametrize(("row", "messages"), TURNS)
def test_turns(row: dict[str, Any], messages: list[dict[str, str]]) -> None:
    assert to_messages(row) == messages


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"instruction": "Who wrote it?", "context": "By Ann."}, "Who wrote it?\n\nBy Ann."),
        ({"question": "Who wrote it?", "context": "By Ann."}, "Who wrote it?\n\nBy Ann."),
        ({"prompt": "Who wrote it?", "passage": "By Ann."}, "Who wrote it?\n\nBy Ann."),
        ({"messages": [user("Who wrote it?")], "document": "By Ann."}, "Who wrote it?\n\nBy Ann."),
        (
            {"question": "Who?", "documents": [{"title": "Ann", "text": "She did."}, "No."]},
            "Who?\n\nAnn\nShe did.\n\nNo.",
        ),
        ({"question": "why?", "passages": ["The sky is blue."]}, "The sky is blue.\n\nwhy?"),
        (
            {"question": "why?", "passages": [["Sky", "It is blue."], ["Sea", "Too."]]},
            "Sky\nIt is blue.\n\nSea\nToo.\n\nwhy?",
        ),
        ({"instruction": "Double", "input": 7}, "Double\n\n7"),
        ({"instruction": "Double", "input": 0}, "Double\n\n0"),
        ({"instruction": "Negate", "input": False}, "Negate\n\nfalse"),
        ({"instruction": "Sum", "input": [1, 2, 3]}, "Sum\n\n[1, 2, 3]"),
        ({"instruction": "Sort", "input": ["b", "a"]}, "Sort\n\nb\na"),
        ({"instruction": "Read", "input": {"né": [1]}}, 'Read\n\n{"né": [1]}'),
        ({"instruction": "Add", "input": "1 2", "context": "Sums."}, "Add\n\n1 2\n\nSums."),
        ({"instruction": "Be brief.", "question": "Why?"}, "Be brief.\n\nWhy?"),
        ({"instruction": "Shorten", "instances": [{"input": "A b.", "output": "B."}]}, "Shorten\n\nA b."),
        ({"instruction": "Shorten", "instances": [{"input": "", "output": "B."}]}, "Shorten"),
        ({"question": "q", "choices": ["red", "blue"]}, "q\n\nA. red\nB. blue"),
        (
            {"question": "q", "choices": {"text": ["red", "blue"], "label": ["1", "2"]}},
            "q\n\n1. red\n2. blue",
        ),
        (
            {"question": "q", "options": [{"label": "C", "text": "red"}, {"text": "blue"}]},
            "q\n\nC. red\n2. blue",
        ),
        ({"question": "q", "options": {"A": "red", "B": "blue", "E": None}}, "q\n\nA. red\nB. blue"),
        ({"question": {"stem": "q", "choices": [{"text": "red", "label": "A"}]}}, "q\n\nA. red"),
        ({"question": {"problem": "q", "context": "c", "id": 3}}, "q\n\nc"),
        ({"instruction": {"text": "Double"}, "input": 7}, "Double\n\n7"),
        # what stands there already is not said twice
        ({"prompt": "By Ann.\n\nWho wrote it?", "context": "By Ann."}, "By Ann.\n\nWho wrote it?"),
        ({"prompt": "q\n\nA. red\nB. blue", "choices": ["red", "blue"]}, "q\n\nA. red\nB. blue"),
        ({"prompt": "q (A) red (B) blue", "choices": ["red", "blue"]}, "q (A) red (B) blue"),
        (
            {"prompt": "Do:\nAdd\nInput: 7\nAnswer:", "instruction": "Add", "input": 7},
            "Do:\nAdd\nInput: 7\nAnswer:",
        ),
        ({"prompt": "### Input:\ncat\n### Response:", "input": "cat"}, "### Input:\ncat\n### Response:"),
        ({"prompt": "What is 17?", "context": "7"}, "What is 17?\n\n7"),
        (
            {"question": "q", "documents": [{"text": "x", "id": "3", "mood": "y"}]},
            'q\n\n{"text": "x", "id": "3", "mood": "y"}',
        ),
        ({"question": "q", "documents": [{"text": "x", "id": "3", "score": 0.5}]}, "q\n\nx"),
    ],
)
def test_what_belongs_to_a_text(row: dict[str, Any], text: str) -> None:
    assert to_messages(row) == [user(text)]


ORDINARY = [
    "User: the word before a colon",
    "Explain this log:\nUser: ann\nAssistant: none",
    "Write a dialogue.\n\nHuman: and robot",
    "What does 'Human:' mean?",
    "[1, 2]",
    "Q: Hi\nA:",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_text_that_is_no_conversation_stays_as_it_is(text: str) -> None:
    assert to_messages({"prompt": text}) == [user(text)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"system": "A", "prompt": [system("B"), user("Hi")]}, "two_systems"),
        ({"system": "A", "system_prompt": "B", "prompt": "Hi"}, "two_systems"),
        ({"system": "A", "prompt": "Hi", "history": [system("B"), user("x"), answer("y")]}, "two_systems"),
        ({"system": 7, "prompt": "Hi"}, "not_text"),
        ({"messages": [user("Hi"), {"role": "tool", "content": "3"}, user("x")]}, "tool_turn"),
        (
            {"messages": [user("Hi"), {"role": "assistant", "content": None, "tool_calls": [{}]}, user("x")]},
            "tool_turn",
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "observation", "value": "3"}]},
            "tool_turn",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "not_text_part",
        ),
        ({"turns": ["Hi", "And?"]}, "user_turns_only"),
        ({"prompt": ["Hi", "And?"]}, "user_turns_only"),
        ({"text": "Hi", "role": "prompter", "parent_id": "7"}, "part_of_a_tree"),
        ({"prompt": "\n\nHuman: Hi\n\nAssistant: Hello"}, "not_user_last"),
        ({"prompt": "Hi", "history": [["x", None]]}, "empty"),
        ({"prompt": None}, "empty"),
        ({"prompt": {"a": 1}}, "not_messages"),
        ({"prompt": float("nan")}, "empty"),
    ],
)
def test_what_cannot_be_asked_is_counted(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableRow) as caught:
        to_messages(row)
    assert caught.value.reason == reason


def test_every_door_reads_the_same_question(tmp_path: Path) -> None:
    asked = {
        "system": "S",
        "instruction": "Add",
        "input": [1, 2],
        "context": "Sums.",
        "history": [["a", "b"]],
    }
    messages = [system("S"), user("a"), answer("b"), user("Add\n\n[1, 2]\n\nSums.")]
    path = tmp_path / "rows.jsonl"
    assert list(load_prompts(write(path, [asked]))[0][0].messages) == messages
    (conversation,) = read_conversations(write(path, [asked | {"output": "3"}]), Counter())
    assert conversation == [*messages, answer("3")]
    write(
        path,
        [
            asked | {"chosen": "3", "rejected": "4"},
            asked | {"output_1": "3", "output_2": "4", "preference": 1},
        ],
    )
    assert list(read_preferences(path, Counter())) == [(messages, "3", "4")] * 2
    (candidates,) = read_responses(write(path, [asked | {"responses": ["3"]}]), Counter())
    assert candidates["messages"] == messages


def test_our_own_output_is_read_as_it_was_asked(tmp_path: Path) -> None:
    """It keeps the columns of the input beside the finished prompt."""
    row = {
        "system": "S",
        "instruction": "Add",
        "input": 7,
        "context": "Sums.",
        "history": [["a", "b"]],
        "choices": ["x", "y"],
        "responses": ["3"],
    }
    (first,) = read_responses(write(tmp_path / "a.jsonl", [row]), Counter())
    line = scored_line(first, [1.0])
    counts = Counter[str]()
    (again,) = read_responses(write(tmp_path / "b.jsonl", [line]), counts, "rewards")
    assert again["messages"] == first["messages"] == line["prompt"]
    assert counts == {"rows": 1}


@pytest.mark.parametrize(
    ("row", "identity"),
    [
        ({"prompt": "Hi"}, "d7760b4ba3077c46"),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, "f33399248958d3fe"),
        ({"instruction": " Hi\n", "input": " "}, "d7760b4ba3077c46"),
        ({"question": "2+2?", "answer": "4"}, "89b50da3557605f2"),
        ({"messages": [system("S"), user("a"), answer("b"), user("c"), answer("d")]}, "1e5b2c4e2a7e01c7"),
        ({"prompt": "Tell me: User: x\n\nfoo"}, "305473495c3bf948"),
        ({"context_messages": [user("é\u2028"), answer("b"), user("c")], "prompt": "x"}, "b6101e5e8554307c"),
    ],
)
def test_ids_are_those_of_older_runs(row: dict[str, Any], identity: str) -> None:
    assert prompt_id(to_messages(row)) == identity


def test_the_shape_of_a_file_is_refused_with_what_is_known(tmp_path: Path) -> None:
    for row in ({"text": "b"}, {"story": "b"}, {"turns": 3}, {"data": {}}):
        with pytest.raises(
            DataError, match=r"row 1: No prompt found: the keys are .*known shapes are: .*question: text"
        ):
            load_prompts(write(tmp_path / "p.jsonl", [row]))
