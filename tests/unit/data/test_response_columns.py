"""Scored rows read as columns are those of the row reader: the same bytes, counts and refusals."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf.data.response_columns import plain_row, scored_tables
from rlhf.data.responses import read_responses
from rlhf.data.schemas import CANDIDATES_SCHEMA, SCORES_SCHEMA
from rlhf.data.shards import write_shard, write_table
from rlhf.errors import DataError

SCHEMAS = {"candidates": CANDIDATES_SCHEMA, "scores": SCORES_SCHEMA}
PLAIN = {"prompt": [{"role": "user", "content": "2+2?"}], "responses": ["4", "5"], "rewards": [1.5, -0.5]}
Read = tuple[list[dict[str, Any]], Counter[str], str]


def by_rows(path: Path, **options: Any) -> Read:
    counts = Counter[str]()
    rows = []
    try:
        for row in read_responses(path, counts, "rewards", **options):
            rows.append(row)
    except DataError as error:
        return rows, counts, str(error)
    return rows, counts, ""


def check(path: Path, rows_per_table: int = 3, **options: Any) -> Read:
    """Both readers do the same with a file; what that is."""
    rows, counts, refusal = by_rows(path, **options)
    own_counts = Counter[str]()
    tables: list[dict[str, pa.Table]] = []
    own_refusal = ""
    try:
        for table in scored_tables(path, own_counts, rows_per_table, **options):
            tables.append(table)
    except DataError as error:
        own_refusal = str(error)
    assert own_refusal == refusal
    assert dict(own_counts) == dict(counts)
    if refusal:
        return rows, counts, refusal
    assert [len(table["scores"]) for table in tables[:-1]] == [rows_per_table] * (len(tables) - 1)
    for name, schema in SCHEMAS.items():
        for number, table in enumerate(tables):
            block = rows[number * rows_per_table : (number + 1) * rows_per_table]
            write_shard(path.with_name("rows.parquet"), schema, block)
            write_table(path.with_name("columns.parquet"), table[name])
            # Bytes, for NaN is unlike itself.
            own_bytes = path.with_name("columns.parquet").read_bytes()
            assert own_bytes == path.with_name("rows.parquet").read_bytes(), (
                name,
                block,
                table[name].to_pylist(),
            )
    assert sum(len(table["scores"]) for table in tables) == len(rows)
    return rows, counts, refusal


def write(folder: Path, *lines: str | bytes, name: str = "a.jsonl") -> Path:
    path = folder / name
    data = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def line(**changes: Any) -> str:
    row = PLAIN | changes
    return json.dumps({key: value for key, value in row.items() if value != "left out"})


ODD_LINES = [
    "",
    "   ",
    "\u2028",
    line() + "\r",
    line(rewards=[1, 0]),
    line(rewards=[1.0, 0.0]),
    line(rewards=[True, 0.5]),
    line(rewards=[None, 0.5]),
    line(rewards=["1.5", 0.5]),
    line(rewards="[1.5, 0.5]"),
    line(rewards=[1.5]),
    line(rewards=[1e39, -1e39]),
    line(rewards=[2**63, 0.5]),
    line(rewards=[2**64, 0.5]),
    line(rewards=[float(2**64), 0.5]),
    line(rewards=[10**30, 0.5]),
    line(rewards=[1e30, 0.5]),
    line(rewards=[10**400, 0.5]),
    line(rewards=[float("nan"), float("inf")]),
    line(rewards=[-0.0, 0]),
    line(rewards=[0.0, 0]),
    line(responses=[]),
    line(responses=["4", 5]),
    line(responses=["4", None]),
    line(responses="['4', '5']"),
    line(responses=["4", " \n"]),
    line(responses=["4", "\ud800"]),
    line(responses=["4", "\ud83d\ude00"]),
    line(responses=["4", "\x00\u2028\x85é日"]),
    line(responses=["4", "5", "6"], rewards=[1, 2, 3]),
    line(prompt="2+2?"),
    line(prompt=" 2+2? "),
    line(prompt=" "),
    line(prompt=None),
    line(prompt="Say: hi"),
    line(prompt="\n\nHuman: Hi\n\nAssistant:"),
    line(prompt="Hi<extra_id_1>Assistant\nHello"),
    line(prompt='[{"role": "user", "content": "Hi"}]'),
    line(prompt="[1, 2]"),
    line(prompt=[]),
    line(prompt=["Hi"]),
    line(prompt=[["Hi", "Hello"]]),
    line(prompt=[{"from": "human", "value": "Hi"}]),
    line(prompt=[{"role": "human", "content": "Hi"}]),
    line(prompt=[{"role": "user", "content": "Hi", "name": "Ann"}]),
    line(prompt=[{"role": "user", "content": ["Hi"]}]),
    line(prompt=[{"role": "user", "content": " Hi\x1f"}]),
    line(prompt=[{"role": "user", "content": " "}]),
    line(prompt=[{"role": "user", "content": '"\\\b\x7f'}]),
    line(prompt=[{"role": "assistant", "content": "Hi"}]),
    line(prompt=[{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi"}]),
    line(prompt=[{"role": "system", "content": "Be."}, {"role": "system", "content": "B."}]),
    line(prompt=[{"role": "tool", "content": "Be."}, {"role": "user", "content": "Hi"}]),
    line(prompt={"role": "user", "content": "Hi"}),
    line(finish_reasons=["stop", "length"]),
    line(finish_reasons=["eos", "max_tokens"]),
    line(finish_reasons=["stop"]),
    line(finish_reasons=["stop", None]),
    line(finish_reasons=["stop", {"type": "length"}]),
    line(finish_reasons=["stop", "why"]),
    line(finish_reasons=None),
    line(finish_reasons="stop"),
    line(stop_reasons=["stop", "length"]),
    line(temperatures=[1.0, 0.7], seeds=[2**70, 3], source="quiz", id=7),
    line(evidence="Sums."),
    line(context="Sums are easy."),
    line(system="Be brief."),
    line(instruction="Add."),
    line(Prompt="Another?"),
    line(Responses=["x"]),
    line(answer_a="1", answer_b="2", answer_c="3"),
    line(answer_a="1", answer_b="2"),
    line(choices=["4", "5"]),
    line(metadata={"a": {"b": [1, {"c": None}]}}),
    line(metadata={"a": "\ud800"}),
    line(metadata="left out", model="x"),
    line(response_a="x", response_b="y", prompt="['Hi']"),
    line(role="user", text="Hi", parent_id=3),
    '{"prompt": "Hi", "prompt": "Ho", "responses": ["a", "b"], "rewards": [1, 2]}',
    '{"rewards": [1, 2], "responses": ["a", "b"], "prompt": "Hi"}',
    '{"prompt": "Hi", "responses": ["a", "b"], "rewards": [1e400, -0]}',
    '{"prompt": "Hi", "responses": ["a", "b"], "rewards": [1, 2], "meta": ' + "[" * 70 + "]" * 70 + "}",
    '{"prompt": "Hi", "responses": ["a", "b"], "rewards": [1, 2], "meta": ' + "[" * 900 + "]" * 900 + "}",
]
REFUSED = [
    line(responses="left out"),
    line(rewards="left out"),
    line(prompt="left out"),
    '{"prompt": "Hi"',
    '{"prompt": "Hi", "responses": ["a", "b"], "rewards": [1, 2]} x',
    '{"prompt": "Hi\t", "responses": ["a", "b"], "rewards": [1, 2]}',
    '{"prompt": "Hi", "responses": ["a", "b"], "rewards": [1, 2], "meta": ' + "[" * 1010 + "]" * 1010 + "}",
    '{"prompt": "Hi", "responses": ["a", "b"], "rewards": [1, 0' + "0" * 5000 + "]}",
    "[1]",
    "7",
    "null",
    b'{"prompt": "H\xff", "responses": ["a", "b"], "rewards": [1, 2]}',
    b'\xef\xbb\xbf{"prompt": "H", "responses": ["a", "b"], "rewards": [1, 2]}',
]


@pytest.mark.parametrize("odd", ODD_LINES)
def test_an_odd_line_among_plain_ones(tmp_path: Path, odd: str) -> None:
    _, counts, refusal = check(write(tmp_path, line(), odd, line(prompt="3+3?"), odd))
    assert not refusal
    assert counts["rows"] >= 2


@pytest.mark.parametrize("refused", REFUSED)
def test_what_is_refused_is_refused_in_the_same_words(tmp_path: Path, refused: str | bytes) -> None:
    _, _, refusal = check(write(tmp_path, line(), refused))
    assert refusal
    check(write(tmp_path, refused, line(), name="b.jsonl"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
@pytest.mark.parametrize("first", ["", "\ufeff"])
def test_kinds_of_files(tmp_path: Path, name: str, first: str) -> None:
    rows, _, _ = check(write(tmp_path, first + line(), line(prompt="3+3?"), "", name=name))
    assert len(rows) == 2
    rows, _, _ = check(write(tmp_path, first + f"[{line()}, {line(prompt='3+3?')}]", name=name))
    assert len(rows) == 2
    _, _, refusal = check(write(tmp_path, first, " ", name=name))
    assert "no rows" in refusal
    check(tmp_path / "missing.jsonl")


def test_damaged_gzip(tmp_path: Path) -> None:
    path = write(tmp_path, *[line(prompt=f"{number}?") for number in range(500)], name="a.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-20])
    _, _, refusal = check(path)
    assert "cannot be unpacked" in refusal


def test_mapped_columns(tmp_path: Path) -> None:
    path = write(tmp_path, line(prompt="left out", ask="Hi"), line(prompt="left out", ask="Ho"))
    rows, _, _ = check(path, columns={"question": "ask"})
    assert len(rows) == 2


@pytest.mark.parametrize(
    "usual",
    [
        line(),
        line(prompt="2 + 2: what is it?"),
        line(rewards=[1, 0]),
        line(finish_reasons=["stop", "length"], temperatures=[1.0, 1.0], seeds=[1, 2]),
        line(id=7, source="quiz", metadata={"by": ["x", {"y": 1}]}),
    ],
)
def test_usual_lines_take_the_short_way(usual: str) -> None:
    assert plain_row(usual.encode()) is not None


content = st.one_of(st.text(max_size=5), st.sampled_from(["Human: a", "[", "x: y", " ", "\ud800"]))
turn = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "human"]), "content": content}
)
number = st.one_of(
    st.floats(), st.integers(), st.sampled_from([0, 0.0, -0.0, 1, 1.0, True, None, 2**64, 1e400])
)
extras = st.dictionaries(
    st.sampled_from(
        ["id", "source", "Source", "system", "context", "evidence", "option_a", "option_b", "option_c"]
    ),
    st.one_of(st.integers(), content, st.lists(st.integers(), max_size=2)),
    max_size=3,
)


@st.composite
def scored_rows(draw: st.DrawFn) -> dict[str, Any]:
    num = draw(st.integers(1, 3))
    row: dict[str, Any] = {
        "prompt": draw(st.one_of(content, st.lists(turn, max_size=3))),
        "responses": draw(st.lists(content, min_size=num, max_size=num)),
        "rewards": draw(st.lists(number, min_size=num, max_size=num)),
    }
    if draw(st.booleans()):
        reasons = st.sampled_from(["stop", "length", "eos", None, 3])
        row["finish_reasons"] = draw(st.lists(reasons, min_size=num, max_size=num))
    return row | draw(extras)


@settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(scored_rows(), min_size=1, max_size=5), st.integers(1, 4))
def test_any_rows(tmp_path: Path, rows: list[dict[str, Any]], rows_per_table: int) -> None:
    # Twice, for what repeats an earlier row.
    lines = [json.dumps(row) for row in [*rows, rows[0]]]
    check(write(tmp_path, *lines), rows_per_table)
