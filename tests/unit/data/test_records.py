"""The rows between stages."""

from __future__ import annotations

import hashlib
import math
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pytest

from rlhf.data.records import (
    Candidate,
    PreferencePair,
    Prompt,
    prompt_id,
    scored_prompt,
    side_columns,
    to_row,
)
from rlhf.data.schemas import CANDIDATES_SCHEMA, LOGPROBS_SCHEMA, PAIRS_SCHEMA, PROMPT_SCHEMA, SCORES_SCHEMA
from rlhf.data.shards import shard_name, write_shard

USER = {"role": "user", "content": "Grüß dich"}


def test_prompt_id_depends_on_the_conversation_alone() -> None:
    assert prompt_id([USER]) == prompt_id([{"content": "Grüß dich", "role": "user", "name": "Ann"}])
    assert len(prompt_id([USER])) == 16
    ids = {
        prompt_id([USER]),
        prompt_id([{**USER, "role": "system"}]),
        prompt_id([USER, USER]),
        prompt_id([{"role": "user", "content": "Grüß"}]),
    }
    assert len(ids) == 4


def test_prompt_id_is_pinned() -> None:
    """Seeds and slices hang on it: another id is another experiment."""
    assert prompt_id([{"role": "user", "content": "Hi"}]) == "d7760b4ba3077c46"


def test_schemas_and_records_have_the_same_fields() -> None:
    assert PROMPT_SCHEMA.names == [field.name for field in fields(Prompt)]
    assert PAIRS_SCHEMA.names == [field.name for field in fields(PreferencePair)]
    inner = CANDIDATES_SCHEMA.field("candidates").type.value_type
    assert [inner.field(i).name for i in range(inner.num_fields)] == [
        field.name for field in fields(Candidate)
    ]


MESSAGES = "list<item: struct<role: string, content: string>>"
CANDIDATE = (
    "struct<token_ids: list<item: int32>, text: string, finish_reason: string, "
    "logprob: double, seed: int64, temperature: double>"
)
COLUMNS = {
    "prompts": f"""
        id: string
        messages: {MESSAGES}
    """,
    "candidates": f"""
        id: string
        messages: {MESSAGES}
        prompt_token_ids: list<item: int32>
        candidates: list<item: {CANDIDATE}>
    """,
    "scores": """
        id: string
        scores: list<item: double>
    """,
    "pairs": f"""
        id: string
        messages: {MESSAGES}
        prompt_token_ids: list<item: int32>
        chosen_token_ids: list<item: int32>
        rejected_token_ids: list<item: int32>
        chosen: string
        rejected: string
        chosen_score: double
        rejected_score: double
        chosen_penalised: double
        rejected_penalised: double
        chosen_rank: int32
        rejected_rank: int32
        chosen_chars: int32
        rejected_chars: int32
        chosen_truncated: bool
        rejected_truncated: bool
    """,
    "logprobs": """
        id: string
        logprobs: list<item: double>
    """,
}
SCHEMAS = {
    "prompts": PROMPT_SCHEMA,
    "candidates": CANDIDATES_SCHEMA,
    "scores": SCORES_SCHEMA,
    "pairs": PAIRS_SCHEMA,
    "logprobs": LOGPROBS_SCHEMA,
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_pinned(name: str) -> None:
    """Shards of old runs are read with them, and artifacts are known by their bytes."""
    schema = SCHEMAS[name]
    # The text of a type also says where an inner value may not be null: nowhere.
    columns = [f"{field.name}: {field.type}" for field in schema]
    assert columns == [line.strip() for line in COLUMNS[name].strip().splitlines()]
    assert all(field.nullable for field in schema)
    assert schema.metadata is None


SAMPLES = {
    "prompts": {"id": "x", "messages": [USER]},
    "candidates": {
        "id": "x",
        "messages": [USER],
        "prompt_token_ids": [1],
        "candidates": [to_row(Candidate([1, 2], "a", "stop", -0.5, 2**40, 0.7))],
    },
    "scores": {"id": "x", "scores": [1.5, math.nan]},
    "pairs": {
        "id": "x",
        "messages": [USER],
        "prompt_token_ids": [1],
        **side_columns("chosen", [3], "good", score=1.5, penalised=1.25, rank=0, truncated=False),
        **side_columns("rejected", [4], "bad", score=0.5, penalised=0.25, rank=1, truncated=True),
    },
    "logprobs": {"id": "x", "logprobs": [-1.5, -2.0]},
}
DIGESTS = {
    "prompts": "ab7f714f84e3755b84e9be23459a549790c6b409e68cafc925839becb77e8d4f",
    "candidates": "c5b1e4efd8adc41bd21da32da1d1ff50633accc6ae1899ed07ffd28837a612fe",
    "scores": "f7e0d2a036409640e39b05ce66a781265d71f3a714f217096d1289115a0b5ca9",
    "pairs": "f04351d8f29d4c5421313757cc3b9a5e20131a987bd782eb670328c1ceea848c",
    "logprobs": "5555ffa0095a62da90014c95a38abc35388e5aaba7da0363cae7e617f842f657",
}


# The footer of a Parquet file names the version that wrote it.
@pytest.mark.skipif(pa.__version__ != "26.0.1", reason="digests of what pyarrow 26.0.1 writes")
@pytest.mark.parametrize("name", SCHEMAS)
def test_bytes_of_shards_are_pinned(tmp_path: Path, name: str) -> None:
    path = tmp_path / shard_name(0)
    write_shard(path, SCHEMAS[name], [SAMPLES[name]], {"rows": 1})
    assert hashlib.sha256(path.read_bytes()).hexdigest() == DIGESTS[name]


def test_a_pair_is_its_two_sides_and_the_prompt() -> None:
    pair = PreferencePair(**SAMPLES["pairs"])
    assert to_row(pair) == SAMPLES["pairs"]
    assert (pair.chosen_chars, pair.rejected_chars) == (4, 3)


def test_rows_survive_arrow() -> None:
    candidate = Candidate([1, 2], "a\u2028", "stop", -0.5, 2**40, 0.7)
    row = {"id": "x", "messages": [USER], "prompt_token_ids": [1], "candidates": [to_row(candidate)]}
    (back,) = pa.Table.from_pylist([row], schema=CANDIDATES_SCHEMA).to_pylist()
    assert scored_prompt(back, {"id": "x", "scores": [1.5]}).candidates == (candidate,)


@pytest.mark.parametrize("scores_row", [{"id": "y", "scores": [1.0]}, {"id": "x", "scores": []}])
def test_rows_out_of_step_are_never_joined(scores_row: dict[str, object]) -> None:
    row = {
        "id": "x",
        "messages": [USER],
        "prompt_token_ids": [1],
        "candidates": [to_row(Candidate([1], "a", "stop", 0.0, 0, 1.0))],
    }
    with pytest.raises(AssertionError):
        scored_prompt(row, scores_row)


def test_truncated_is_everything_that_did_not_stop() -> None:
    assert not Candidate([1], "a", "stop", 0.0, 0, 1.0).truncated
    assert Candidate([1], "a", "length", 0.0, 0, 1.0).truncated
    assert Candidate([1], "a", "abort", 0.0, 0, 1.0).truncated
