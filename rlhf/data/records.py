"""The rows that travel between stages, and their Parquet schemas.

One row of a `candidates` shard is one prompt with its n responses, one row of a `scores` shard is the same prompt
with n scores in the same order, one row of a `pairs` shard is one preference pair. Token ids travel; text is kept
for the judge and for people.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`"""

FINISHED = "stop"
"""`finish_reason` of a response that ended by itself; "length" marks one cut at the token limit."""


def prompt_id(messages: Sequence[Mapping[str, str]]) -> str:
    """16 hex digits that depend on the conversation alone."""
    canonical = json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def dropped(counts: Mapping[str, int]) -> dict[str, int]:
    """How many were dropped, by reason: the counts `dropped/<reason>` that are not zero."""
    return {key.removeprefix("dropped/"): n for key, n in counts.items() if key.startswith("dropped/") and n}


def what_became(counts: Mapping[str, int], of: str = "rows") -> str:
    """How many there were and why some were dropped, as text."""
    reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(dropped(counts).items()))
    return f"{counts.get(of, 0)} {of}, dropped: {reasons or 'none'}"


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a user's turn."""

    id: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Candidate:
    """One of the n responses sampled for a prompt.

    `token_ids` are as sampled, with the terminator when `finish_reason` is "stop". `logprob` is the sum over
    `token_ids` of the sampler's log-probabilities at temperature 1, in nats.
    """

    token_ids: list[int]
    text: str
    finish_reason: str
    logprob: float
    seed: int
    temperature: float

    @property
    def truncated(self) -> bool:
        """Whether the response was cut at the token limit."""
        return self.finish_reason != FINISHED


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt, its n candidates, and one score for each in the same order."""

    id: str
    messages: tuple[Message, ...]
    prompt_token_ids: list[int]
    candidates: tuple[Candidate, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class PreferencePair:
    """A preferred and a dispreferred response to one prompt.

    `chosen_token_ids` and `rejected_token_ids` are training targets: the response without its sampled terminator,
    then the token the chat template ends a turn with, unless the response was truncated. `*_score` is the judge's
    raw output, `*_penalised` what the pair was selected and oriented on, `*_rank` its rank among the prompt's
    candidates (0 is best), `*_chars` the length the penalty saw.
    """

    id: str
    messages: tuple[Message, ...]
    prompt_token_ids: list[int]
    chosen_token_ids: list[int]
    rejected_token_ids: list[int]
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float
    chosen_penalised: float
    rejected_penalised: float
    chosen_rank: int
    rejected_rank: int
    chosen_chars: int
    rejected_chars: int
    chosen_truncated: bool
    rejected_truncated: bool

    @property
    def margin(self) -> float:
        """How much better the chosen response is, on the penalised score; never negative."""
        return self.chosen_penalised - self.rejected_penalised


_messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_ids = pa.list_(pa.int32())

PROMPT_SCHEMA = pa.schema([("id", pa.string()), ("messages", _messages)])
CANDIDATES_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("messages", _messages),
        ("prompt_token_ids", _ids),
        (
            "candidates",
            pa.list_(
                pa.struct(
                    [
                        ("token_ids", _ids),
                        ("text", pa.string()),
                        ("finish_reason", pa.string()),
                        ("logprob", pa.float64()),
                        ("seed", pa.int64()),
                        ("temperature", pa.float64()),
                    ]
                )
            ),
        ),
    ]
)
SCORES_SCHEMA = pa.schema([("id", pa.string()), ("scores", pa.list_(pa.float64()))])
PAIRS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("messages", _messages),
        ("prompt_token_ids", _ids),
        ("chosen_token_ids", _ids),
        ("rejected_token_ids", _ids),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        *[(f"{side}_score", pa.float64()) for side in ("chosen", "rejected")],
        *[(f"{side}_penalised", pa.float64()) for side in ("chosen", "rejected")],
        *[(f"{side}_rank", pa.int32()) for side in ("chosen", "rejected")],
        *[(f"{side}_chars", pa.int32()) for side in ("chosen", "rejected")],
        *[(f"{side}_truncated", pa.bool_()) for side in ("chosen", "rejected")],
    ]
)
LOGPROBS_SCHEMA = pa.schema([("id", pa.string()), ("logprobs", pa.list_(pa.float64()))])
"""Summed response log-probabilities: [chosen, rejected] for a row of pairs, one per candidate for candidates."""


def to_row(record: Prompt | Candidate | ScoredPrompt | PreferencePair) -> dict[str, Any]:
    """A record as the mapping that its schema takes."""
    return asdict(record)


def scored_prompt(candidates_row: Mapping[str, Any], scores_row: Mapping[str, Any]) -> ScoredPrompt:
    """Join one row of a candidates shard with the row of the scores shard that stands at the same place."""
    assert candidates_row["id"] == scores_row["id"], "scores and candidates are out of step"
    assert len(candidates_row["candidates"]) == len(scores_row["scores"]), "one score per candidate"
    return ScoredPrompt(
        id=candidates_row["id"],
        messages=tuple(candidates_row["messages"]),
        prompt_token_ids=candidates_row["prompt_token_ids"],
        candidates=tuple(Candidate(**c) for c in candidates_row["candidates"]),
        scores=tuple(scores_row["scores"]),
    )
