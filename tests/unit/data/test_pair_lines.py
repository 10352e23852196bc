"""Lines made on columns are those of the row function, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf.data.pair_lines import pair_lines
from rlhf.data.responses import pair_line, write_rows
from rlhf.data.schemas import PAIRS_SCHEMA
from rlhf.data.shards import read_all_rows, shard_name, write_shard

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
floats = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-10, 10),
    st.sampled_from([0.0, -0.0, 1e-4, 9.9e-5, 1e15, 1e16, 123456789012345.6, 5e-324]),
)
small = st.integers(0, 2**31 - 1)
pairs = st.fixed_dictionaries(
    {
        "id": texts,
        "messages": st.lists(st.fixed_dictionaries({"role": texts, "content": texts}), max_size=3),
        "prompt_token_ids": st.lists(small, max_size=3),
        "chosen_token_ids": st.lists(small, max_size=3),
        "rejected_token_ids": st.lists(small, max_size=3),
        "chosen": texts,
        "rejected": texts,
        "chosen_score": floats,
        "rejected_score": floats,
        "chosen_penalised": floats,
        "rejected_penalised": floats,
        "chosen_rank": small,
        "rejected_rank": small,
        "chosen_chars": small,
        "rejected_chars": small,
        "chosen_truncated": st.booleans(),
        "rejected_truncated": st.booleans(),
    }
)


def check(folder: Path, *shards: list[dict[str, Any]]) -> None:
    for index, rows in enumerate(shards):
        write_shard(folder / shard_name(index), PAIRS_SCHEMA, rows)
    number = write_rows(folder / "rows.jsonl", map(pair_line, read_all_rows(folder)))
    assert write_rows(folder / "columns.jsonl", pair_lines(folder)) == number
    assert (folder / "columns.jsonl").read_bytes() == (folder / "rows.jsonl").read_bytes()


@settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(pairs, max_size=4), st.lists(pairs, max_size=4))
def test_any_pairs(tmp_path: Path, first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    check(tmp_path, first, second)


@pytest.mark.parametrize("number", [float("inf"), float("nan"), -1.7e308])
def test_numbers_that_are_not_finite(tmp_path: Path, number: float) -> None:
    row = {
        "id": "p",
        "messages": [{"role": "user", "content": "Hi"}],
        "prompt_token_ids": [],
        **{f"{side}_token_ids": [] for side in ("chosen", "rejected")},
        **{side: side for side in ("chosen", "rejected")},
        **{f"{side}_{name}": 1 for side in ("chosen", "rejected") for name in ("rank", "chars")},
        **{f"{side}_truncated": False for side in ("chosen", "rejected")},
        **{f"{side}_score": 1.5 for side in ("chosen", "rejected")},
        # Beyond all numbers as a difference, at last.
        "chosen_penalised": 1.7e308,
        "rejected_penalised": number,
    }
    check(tmp_path, [row] * 3000)
