"""Candidates of files: finish reasons in other words, numbers of other kinds, and margins that stay
finite."""

from __future__ import annotations

import json
import math
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.config.schema import PairConfig
from rlhf.data.pairing import Drop, make_pairs
from rlhf.data.records import dropped, scored_prompt, to_row
from rlhf.data.responses import pair_line, read_responses, scored_line, to_number
from rlhf.errors import DataError


def read(
    path: Path, row: dict[str, Any], numbers: str | None = None
) -> tuple[list[dict[str, Any]], Counter[str]]:
    path.write_text(
        json.dumps(row) + "\n" + json.dumps({"prompt": "other", "responses": ["x"], "rewards": [1]})
    )
    counts = Counter[str]()
    rows = list(read_responses(path, counts, numbers))
    return rows[:-1], counts


@pytest.mark.parametrize(
    ("reasons", "truncated"),
    [
        (["stop", "length"], [False, True]),
        (["eos_token", "model_length"], [False, True]),
        (["stop_sequence", "max_tokens"], [False, True]),
        (["end_turn", "MAX_TOKENS"], [False, True]),
        (["EOS", "max-length"], [False, True]),
        ([None, ""], [False, False]),
        ([{"type": "stop", "matched": 2}, {"type": "length"}], [False, True]),
        (None, [False, False]),
    ],
)
def test_finish_reasons(tmp_path: Path, reasons: Any, truncated: list[bool]) -> None:
    row = {"prompt": "q", "responses": ["a", "b"], "finish_reasons": reasons}
    ((candidates,), _) = read(tmp_path / "a.jsonl", row)
    assert [each["finish_reason"] == "length" for each in candidates["candidates"]] == truncated


@pytest.mark.parametrize("word", ["content_filter", "abort", "\x1b[2J", 7, True, ["stop"], "tool_calls"])
def test_an_unknown_finish_reason_is_counted_and_named(tmp_path: Path, word: Any) -> None:
    row = {"prompt": "q", "responses": ["a", "b"], "finish_reasons": ["stop", word]}
    rows, counts = read(tmp_path / "a.jsonl", row)
    assert not rows and dropped(counts) == {"unknown_finish_reason": 1}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"finish_reasons holds .*known are complete.*, length, ") as caught:
        list(read_responses(tmp_path / "a.jsonl", Counter()))
    assert repr(word) in str(caught.value)


@pytest.mark.parametrize("rewards", [[1.7e308, -1.7e308], [math.inf, 0], [1e39, 1], [10**300, 1]])
def test_no_margin_is_infinite(tmp_path: Path, rewards: list[float]) -> None:
    ((row,), _) = read(
        tmp_path / "a.jsonl", {"prompt": "q", "responses": ["a", "b"], "rewards": rewards}, "rewards"
    )
    assert make_pairs(scored_prompt(row, row), PairConfig(), None, 0) is Drop.non_finite


def test_the_largest_scores_make_a_line_of_plain_json(tmp_path: Path) -> None:
    row = {"prompt": "q", "responses": ["a", "b"], "rewards": [3.4e38, -3.4e38]}
    ((row,), _) = read(tmp_path / "a.jsonl", row, "rewards")
    pairs = make_pairs(scored_prompt(row, row), PairConfig(), None, 0)
    assert not isinstance(pairs, Drop)
    line = pair_line(to_row(pairs[0]))
    assert json.loads(json.dumps(line, allow_nan=False))["penalised_margin"] == pytest.approx(6.8e38)
    assert make_pairs(scored_prompt(row, row), PairConfig(length_penalty=1e308), None, 0) is Drop.non_finite


def test_half_pairs_and_numbers_that_are_none_in_other_columns(tmp_path: Path) -> None:
    row = {"prompt": "q", "responses": ["a"], "rewards": ["\ud800"], "note": "n"}
    assert dropped(read(tmp_path / "a.jsonl", row)[1]) == {"invalid_unicode": 1}
    assert dropped(read(tmp_path / "a.jsonl", row | {"rewards": [1], "\udc00": 1})[1]) == {
        "invalid_unicode": 1
    }
    ((kept,), _) = read(
        tmp_path / "a.jsonl", row | {"rewards": [1], "metadata": {"loss": [math.nan, -math.inf, 2]}}
    )
    line = json.loads(json.dumps(scored_line(kept, [1.0]), allow_nan=False))
    assert line["metadata"] == {"loss": [None, None, 2]}
    deep: Any = 1
    for _ in range(80):
        deep = [deep]
    assert dropped(read(tmp_path / "a.jsonl", row | {"rewards": [1], "metadata": deep})[1]) == {"too_deep": 1}


def test_parquet_with_decimals_and_dates(tmp_path: Path) -> None:
    numbers = pa.array([[Decimal("1.50"), Decimal("-1.00")]], pa.list_(pa.decimal128(10, 2)))
    when = pa.array([1], pa.timestamp("us"))
    pq.write_table(
        pa.table({"prompt": ["q"], "responses": [["a", "b"]], "rewards": numbers, "created": when}),
        tmp_path / "a.parquet",
    )
    (row,) = read_responses(tmp_path / "a.parquet", Counter(), "rewards")
    assert row["scores"] == [1.5, -1.0]
    assert json.loads(row["extra"]) == {"created": "1970-01-01 00:00:00.000001"}
    assert to_number(Decimal("2.5"), "rewards") == 2.5


def test_csv_holds_lists_as_json(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,responses,rewards\nq,"[""a"", ""b""]","[1, 0.5]"\n')
    (row,) = read_responses(tmp_path / "a.csv", Counter(), "rewards")
    assert [each["text"] for each in row["candidates"]] == ["a", "b"]
    assert row["scores"] == [1.0, 0.5]
