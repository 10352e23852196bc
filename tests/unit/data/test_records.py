"""The rows between stages."""

from __future__ import annotations

from dataclasses import fields

import pyarrow as pa
import pytest

from rlhf.data.records import (
    CANDIDATES_SCHEMA,
    PAIRS_SCHEMA,
    PROMPT_SCHEMA,
    Candidate,
    PreferencePair,
    Prompt,
    prompt_id,
    scored_prompt,
    to_row,
)

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
    assert [inner.field(i).name for i in range(inner.num_fields)] == [field.name for field in fields(Candidate)]


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
