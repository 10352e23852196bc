"""The Parquet schemas of the rows that travel between stages (`rlhf.data.records`).

In a file of their own, for they need Arrow: a command that reads no shard need not wait for its import.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

import pyarrow as pa

from rlhf.data.records import Int32, Message, PreferencePair, Prompt, ScoredPrompt

_ARROW_TYPES = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int64(),
    int | None: pa.int64(),
    Int32: pa.int32(),
    float: pa.float64(),
    # Not a map, as the hint would have it: every message has these two keys and no other.
    Message: pa.struct([("role", pa.string()), ("content", pa.string())]),
}


def _arrow_type(hint: Any) -> pa.DataType:
    """The type of a column whose values are hinted like this."""
    if hint in _ARROW_TYPES:
        return _ARROW_TYPES[hint]
    if is_dataclass(hint):
        return pa.struct(_arrow_fields(hint))
    # What is left are list[X] and tuple[X, ...].
    element = get_args(hint)[0]
    return pa.list_(_arrow_type(element))


def _arrow_fields(record: Any) -> list[pa.Field]:
    """The columns of a record's class, in the order of its fields; properties are none."""
    # Without extras, Int32 would come back as a plain int.
    hints = get_type_hints(record, include_extras=True)
    fields = []
    for name, hint in hints.items():
        fields.append(pa.field(name, _arrow_type(hint)))
    return fields


PROMPT_SCHEMA = pa.schema(_arrow_fields(Prompt))
PAIRS_SCHEMA = pa.schema(_arrow_fields(PreferencePair))
# What a `ScoredPrompt` joins is made by two stages, so it stands in two shards.
_SCORED_PROMPT = pa.schema(_arrow_fields(ScoredPrompt))
CANDIDATES_SCHEMA = _SCORED_PROMPT.remove(_SCORED_PROMPT.get_field_index("scores"))
SCORES_SCHEMA = pa.schema([_SCORED_PROMPT.field("id"), _SCORED_PROMPT.field("scores")])
ANSWERS_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("id", pa.string()),
        ("responses", pa.list_(pa.string())),
        ("is_swapped", pa.bool_()),
        ("answer", pa.string()),
        ("finish_reason", pa.string()),
        ("value", pa.float64()),
        ("unread", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
    ]
)
"""What a generative judge has answered: to which prompt (`id`), about which responses in the order shown, and
the number read out of it, or why there is none."""
LOGPROBS_SCHEMA = pa.schema([("id", pa.string()), ("logprobs", pa.list_(pa.float64()))])
"""Summed response log-probabilities: [chosen, rejected] for a row of pairs, else one per candidate."""
