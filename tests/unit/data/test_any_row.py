"""Whatever stands in a row of any reader: it is kept, or dropped and counted, or the file is refused by name.

`RLHF_EXAMPLES=20000` looks longer than the test run does.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf.config.schema import PairConfig
from rlhf.data.benchmarks import read_questions
from rlhf.data.conversations import read_conversations
from rlhf.data.pairing import Drop, make_pairs
from rlhf.data.preferences import read_preferences
from rlhf.data.prompts import read_prompts
from rlhf.data.records import dropped, scored_prompt, to_row
from rlhf.data.responses import pair_line, read_best_of_n, read_comparisons, read_responses, scored_line
from rlhf.data.schemas import CANDIDATES_SCHEMA, PROMPT_SCHEMA
from rlhf.errors import DataError

NUM_EXAMPLES = int(os.environ.get("RLHF_EXAMPLES", "300"))
MANY = settings(
    max_examples=NUM_EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.data_too_large,
    ],
)


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def human(text: Any) -> dict[str, Any]:
    return {"from": "human", "value": text}


def gpt(text: Any) -> dict[str, Any]:
    return {"from": "gpt", "value": text}


PROMPTS: list[dict[str, Any]] = [
    {"prompt": "Hi", "system": "Be kind.", "context": "A greeting.", "id": 3},
    {"prompt": [user([{"type": "text", "text": "Hi"}])], "history": [["a", "b"]]},
    {"messages": [{"role": "system", "content": "S"}, user("a"), answer("b")], "system_prompt": "S"},
    {"context_messages": [user("a"), answer("b"), user("c")], "passages": [["T", "text"]]},
    {"instruction": "Add", "input": [1, 2], "instances": [{"input": "x", "output": "y"}]},
    {
        "question": {"stem": "q", "choices": [{"text": "x", "label": "A"}]},
        "choices": {"text": ["y"], "label": ["B"]},
    },
    {"question": "q", "options": {"A": "x", "B": "y"}, "documents": [{"title": "t", "text": "x"}]},
    {"conversations": [human("a"), gpt("b"), human("c")], "history": [human("0"), gpt("1")]},
    {"conversation": [{"system": "s", "input": "a", "output": "b"}]},
    {"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", "history": "User: x\nAssistant: y"},
    {"text": "### Human: a### Assistant: b"},
    {"text": "a", "role": "prompter", "parent_id": None},
    {"prompt": {"text": "a", "role": "prompter", "replies": [{"text": "b", "role": "assistant", "rank": 0}]}},
    {"turns": [{"content": "2+2?"}], "question_id": "q1"},
    {"prompt": {"system": "S", "user": "q", "context": "c"}, "history": ["a", "b"]},
    {"data": ["a", "b", "c"]},
    {"info": {"post": "I fell.", "title": "t", "subreddit": "r"}},
]
CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": [user("a"), answer("b")], "system": "s"},
    {"conversations": [human("a"), gpt("b")]},
    {"prompt": "a", "response": "b", "context": "c"},
    {"prompt": [user("a")], "completion": [answer("b"), user("c"), answer("d")]},
    {"instruction": "a", "input": "b", "output": "c", "history": [["x", "y"]]},
    {"instruction": "a", "instances": [{"input": "b", "output": "c"}]},
    {"question": "a", "answer": {"role": "assistant", "content": "b"}},
    PROMPTS[10],
    PROMPTS[12],
]
PREFERENCES: list[dict[str, Any]] = [
    {
        "prompt": "q",
        "chosen": "a",
        "rejected": "b",
        "score_chosen": 2,
        "score_rejected": 1,
        "metadata": {"x": 1},
    },
    {
        "prompt": [user("q")],
        "chosen": [answer("x"), user("y"), answer("a")],
        "rejected": [answer("x"), user("y"), answer("b")],
        "system": "s",
    },
    {
        "chosen": [user("q"), answer("a")],
        "rejected": [user("q"), answer("b")],
        "chosen_rating": 1,
        "rejected_rating": 2,
    },
    {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    {"prompt": "q", "chosen": ["a", "c"], "rejected": ["b"], "num_correct": 2},
    {"conversations": [human("q")], "chosen": gpt("a"), "rejected": gpt("b")},
    {"text": ["Human: q\n\nAssistant: a", "Human: q\n\nAssistant: b"], "score": [0.5, 1.0]},
    {
        "instruction": "q",
        "completions": [{"response": "a", "overall_score": 1}, {"response": "b", "overall_score": 2}],
    },
    {"prompt": "q", "answers": [{"answer": "a", "rank": 1.0}, {"answer": "b", "rank": 2.0}]},
    {"instruction": "q", "input": "i", "output_1": "a", "output_2": "b", "preference": 1},
    {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 1},
    {"context": [user("q")], "response1": "a", "response2": "b", "overall_preference": -2},
    {
        "conversation_a": [user("q"), answer("a")],
        "conversation_b": [user("q"), answer("b")],
        "winner": "model_a",
    },
    {
        "prompt": '["q"]',
        "response_a": '["a"]',
        "response_b": '["b"]',
        "winner_model_a": 1,
        "winner_model_b": 0,
    },
    {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 0, "score_A": 1, "score_B": 2},
    {"question": "q", "prediction 1": "a", "prediction 2": "b", "preference": [1], "passages": ["p"]},
    {"info": {"post": "p"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 1},
    {"conversation_input": [user("q")], "bon_best": {"answer": "a"}, "loser_list": [{"answer": "b"}]},
    {"instruction": "q", "output": ["a", "b"]},
    {"messages": [user("q"), answer("a")], "rejected_response": "b"},
    {
        "prompt": {
            "text": "q",
            "role": "prompter",
            "replies": [{"text": "a", "rank": 0}, {"text": "b", "rank": 1}],
        }
    },
]
RESPONSES: list[dict[str, Any]] = [
    {
        "prompt": "q",
        "responses": ["a", "b"],
        "rewards": [1.5, -1],
        "finish_reasons": ["stop", "length"],
        "id": "x",
    },
    {"instruction": "q", "input": "i", "context": "c", "responses": ["a"], "rewards": [1], "system": "s"},
    {
        "messages": [user("q"), answer("x")],
        "responses": ["a", "b"],
        "rewards": [1, 2],
        "history": [["h", "i"]],
    },
]
QUESTIONS: list[dict[str, Any]] = [
    {"dataset": "d", "instruction": "q", "output": "o", "generator": "g"},
    {"question_id": "q1", "turns": [{"content": "q"}], "category": "c"},
    {"uid": "u", "prompt": "q", "subcategory": "s"},
]
BEST_OF_N: list[dict[str, Any]] = [
    {"prompt": "q", "chosen": ["a"], "rejected": ["b", "c"], "subset": "Math", "id": "7", "num_correct": 1},
    {"prompt": "q", "chosen": ["a"], "rejected": ["b", "c"], "subset": "Ties", "id": "ref:1"},
]

NUMBERS = [
    0,
    1,
    1.0,
    -1,
    2,
    1.5,
    10**400,
    -(10**400),
    1.7e308,
    -1.7e308,
    1e39,
    math.nan,
    math.inf,
    -math.inf,
    2**63,
]
TEXTS = [
    "",
    " ",
    "a",
    "Human:",
    "\n\nHuman: a\n\nAssistant:",
    "User: a\nAssistant: b",
    "[1]",
    '[{"role": "user"}]',
]
TEXTS += [
    "\ud800",
    "x\udfff",
    "\x1b[31m",
    "\0",
    "1",
    "tie",
    "A>B",
    "model_a",
    "<extra_id_1>User",
    "é" * 100,
    "[[B]]",
]
KEYS = [
    "role",
    "content",
    "from",
    "value",
    "text",
    "type",
    "answer",
    "rank",
    "replies",
    "messages",
    "a",
    "\ud800",
    "",
]
KEYS += [
    "prompt",
    "system",
    "context",
    "history",
    "chosen",
    "rejected",
    "preference",
    "label",
    "evidence",
    "input",
]


def deep(levels: int) -> Any:
    value: Any = "x"
    for number in range(levels):
        value = [value] if number % 2 else {"content": value}
    return value


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(),
    st.floats(),
    st.sampled_from(TEXTS),
    st.text(max_size=5),
    st.builds(deep, st.sampled_from([3, 60, 70, 150])),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or object in a value with each of its places."""
    if isinstance(value, dict):
        for key in list(value):
            yield value, key
            yield from places(value[key])
    elif isinstance(value, list):
        for index in range(len(value)):
            yield value, index
            yield from places(value[index])


@st.composite
def damaged(draw: st.DrawFn, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A valid row with something arbitrary in one or two places, or a key too many or too few."""
    row = copy.deepcopy(draw(st.sampled_from(rows)))
    for _ in range(draw(st.integers(1, 2))):
        holder, key = draw(st.sampled_from(list(places(row)) or [(row, "prompt")]))
        how = draw(st.integers(0, 5))
        if how == 0 and isinstance(holder, dict):
            holder.pop(key, None)
        elif how == 1 and isinstance(holder, dict):
            holder[draw(st.sampled_from(KEYS) | st.text(max_size=4))] = draw(VALUES)
        else:
            holder[key] = draw(VALUES)
    return row


Reader = Callable[[Path, Counter[str]], Any]


def read(reader: Reader, path: Path, rows: list[dict[str, Any]]) -> tuple[list[Any], Counter[str], str]:
    """What a reader keeps of rows, what it counts, and what it says where it refuses the file."""
    # Python writes NaN and half pairs, too: JSON text as it comes.
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = Counter[str]()
    kept: list[Any] = []
    try:
        kept.extend(reader(path, counts))
    except DataError as error:
        return kept, counts, str(error)
    return kept, counts, ""


def accounted(kept: list[Any], counts: Counter[str], refusal: str, path: Path, of: str = "rows") -> None:
    """Every row is kept, or counted under a reason; a file of no known shape is refused with its row."""
    if refusal and ", row " in refusal.split(": ")[0]:
        assert str(path) in refusal
        return
    assert counts[of] == len(kept) + sum(dropped(counts).values()), counts
    assert bool(refusal) == (not kept), refusal
    json.dumps(counts, allow_nan=False, ensure_ascii=False).encode()


def plain(value: Any) -> None:
    """It can be written as JSON that every reader takes."""
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


def no_constant(name: str) -> None:
    raise AssertionError(name)


def asked(messages: Any) -> None:
    assert messages[-1]["role"] == "user"
    for message in messages:
        assert set(message) == {"role", "content"} and message["content"] == message["content"].strip() != ""
        assert message["role"] in ("system", "user", "assistant")
    plain(messages)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


@MANY
@given(row=damaged(PROMPTS))
def test_prompts(path: Path, row: dict[str, Any]) -> None:
    kept, counts, refusal = read(read_prompts, path, [row])
    accounted(kept, counts, refusal, path)
    for prompt in kept:
        asked(prompt.messages)
    pa.Table.from_pylist([to_row(prompt) for prompt in kept], schema=PROMPT_SCHEMA)


@MANY
@given(row=damaged(CONVERSATIONS))
def test_conversations(path: Path, row: dict[str, Any]) -> None:
    kept, counts, refusal = read(read_conversations, path, [row])
    if not refusal:
        assert counts["rows"] == len(kept) + sum(dropped(counts).values())
    else:
        assert ", row 1: " in refusal
    plain(kept)


@MANY
@given(row=damaged(PREFERENCES))
def test_preferences(path: Path, row: dict[str, Any]) -> None:
    kept, counts, refusal = read(read_preferences, path, [row])
    accounted(kept, counts, refusal, path, "comparisons")
    for messages, chosen, rejected in kept:
        asked(messages)
        assert chosen != rejected
    plain(kept)


@MANY
@given(row=damaged(RESPONSES))
def test_responses(path: Path, row: dict[str, Any]) -> None:
    kept, counts, refusal = read(read_responses, path, [row])
    accounted(kept, counts, refusal, path)
    pa.Table.from_pylist(kept, schema=CANDIDATES_SCHEMA)
    lines = [scored_line(candidates, [1.0] * len(candidates["candidates"])) for candidates in kept]
    for candidates, line in zip(kept, lines, strict=True):
        asked(candidates["messages"])
        json.loads(candidates["extra"], parse_constant=no_constant)
        plain(line)
    if not lines:
        return
    again, _, refusal = read(read_responses, path, lines)
    assert [each["messages"] for each in again] == [each["messages"] for each in kept], refusal


@MANY
@given(row=damaged(RESPONSES))
def test_scored_responses(path: Path, row: dict[str, Any]) -> None:
    kept, counts, refusal = read(lambda path, counts: read_responses(path, counts, "rewards"), path, [row])
    accounted(kept, counts, refusal, path)
    for candidates in kept:
        prompt = scored_prompt(candidates, candidates)
        for penalty in (0.0, 1e308):
            pairs = make_pairs(prompt, PairConfig(length_penalty=penalty), None, 0)
            for pair in [] if isinstance(pairs, Drop) else pairs:
                plain(pair_line(to_row(pair)))


@MANY
@given(row=damaged(QUESTIONS))
def test_questions(path: Path, row: dict[str, Any]) -> None:
    kept, _, refusal = read(read_questions, path, [row])
    assert len(kept) == 1 or ", row 1: " in refusal
    for question in kept:
        asked(question["messages"])
        plain(json.loads(question["extra"], parse_constant=no_constant))


@MANY
@given(row=damaged(BEST_OF_N))
def test_best_of_n(path: Path, row: dict[str, Any]) -> None:
    kept, counts, refusal = read(read_best_of_n, path, [row])
    if refusal:
        assert ", row 1: " in refusal
        return
    assert counts["rows"] == len(kept) + sum(dropped(counts).values())
    for candidates in kept:
        about = json.loads(candidates["extra"], parse_constant=no_constant)
        plain(about)
        assert isinstance(about["subset"], str)


@MANY
@given(row=damaged(PREFERENCES))
def test_comparisons(path: Path, row: dict[str, Any]) -> None:
    kept, counts, refusal = read(read_comparisons, path, [row])
    accounted(kept, counts, refusal, path, "comparisons")
    for candidates in kept:
        about = json.loads(candidates["extra"], parse_constant=no_constant)
        plain(about)
        assert isinstance(about["subset"], str)


@pytest.mark.parametrize(
    ("reader", "rows"),
    [
        (read_prompts, PROMPTS),
        (read_conversations, CONVERSATIONS),
        (read_preferences, PREFERENCES),
        (read_responses, RESPONSES),
        (read_questions, QUESTIONS),
        (read_best_of_n, BEST_OF_N),
    ],
)
def test_every_row_that_is_damaged_here_is_fine_before(
    path: Path, reader: Reader, rows: list[dict[str, Any]]
) -> None:
    for row in rows:
        kept, counts, refusal = read(reader, path, [row])
        assert kept and not refusal and not dropped(counts), (row, counts, refusal)
