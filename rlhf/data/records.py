"""The rows that travel between stages; their Parquet schemas are in `rlhf.data.schemas`.

One row of a `candidates` shard is one prompt with its n responses, one row of a `scores` shard is the
same prompt with n scores in the same order, one row of a `pairs` shard is one preference pair. Token
ids travel; text is kept for the judge and for people.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from rlhf.data.json_text import json_text

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`"""

Int32 = Annotated[int, "int32"]
"""A number whose column holds 32 bits; a plain `int` takes 64."""

FINISHED = "stop"
"""`finish_reason` of a response that ended by itself; "length" marks one cut at the token limit."""

SIDES = ("chosen", "rejected")
"""The two responses of a pair, as its columns name them."""


def prompt_id(messages: Sequence[Mapping[str, str]]) -> str:
    """16 hex digits that depend on the conversation alone."""
    # Role and content only: the ids of old runs hang on these very bytes, whatever else messages hold.
    turns = [[message["role"], message["content"]] for message in messages]
    text = json_text(turns, ascii_only=False)
    digest = hashlib.sha256(text.encode())
    return digest.hexdigest()[:16]


def dropped(counts: Mapping[str, int]) -> dict[str, int]:
    """How many were dropped, by reason: the counts `dropped/<reason>` that are not zero.

    Example:
        {"rows": 9, "dropped/empty": 2} gives {"empty": 2}
    """
    by_reason = {}
    for key, count in counts.items():
        if key.startswith("dropped/") and count:
            by_reason[key.removeprefix("dropped/")] = count
    return by_reason


def what_became(counts: Mapping[str, int], of: str = "rows") -> str:
    """How many there were and why some were dropped, as text: "9 rows, dropped: 2 empty"."""
    by_reason = sorted(dropped(counts).items())
    reasons = ", ".join(f"{count} {reason}" for reason, count in by_reason)
    total = counts.get(of, 0)
    return f"{total} {of}, dropped: {reasons or 'none'}"


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a user's turn."""

    id: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Candidate:
    """One of the n responses sampled for a prompt.

    `token_ids` are as sampled, with the terminator when `finish_reason` is "stop". `logprob` is the sum over
    `token_ids` of the sampler's log-probabilities at temperature 1, in nats. `seed` is None where it had none
    of its own (`generate.seeds=engine`).
    """

    token_ids: list[Int32]
    text: str
    finish_reason: str
    logprob: float
    # 64 bits, although the seeds that `generate` draws fit in 31: a file's rows bring their own.
    seed: int | None
    temperature: float

    @property
    def truncated(self) -> bool:
        """Whether the response was cut at the token limit."""
        # Everything that did not stop by itself: vLLM also says "abort", for one.
        return self.finish_reason != FINISHED


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt, its n candidates, and one score for each in the same order."""

    id: str
    messages: tuple[Message, ...]
    prompt_token_ids: list[Int32]
    candidates: tuple[Candidate, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class PreferencePair:
    """A preferred and a dispreferred response to one prompt.

    `chosen_token_ids` and `rejected_token_ids` are training targets: the response without its sampled
    terminator, then the token the chat template ends a turn with, unless the response was truncated.
    `*_score` is the judge's raw output, `*_penalised` what the pair was selected and oriented on,
    `*_rank` its rank among the prompt's candidates (0 is best), `*_chars` the length the penalty saw.
    """

    # The order is that of the columns: in another one, equal pairs would have other bytes.
    id: str
    messages: tuple[Message, ...]
    prompt_token_ids: list[Int32]
    chosen_token_ids: list[Int32]
    rejected_token_ids: list[Int32]
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float
    chosen_penalised: float
    rejected_penalised: float
    chosen_rank: Int32
    rejected_rank: Int32
    chosen_chars: Int32
    rejected_chars: Int32
    chosen_truncated: bool
    rejected_truncated: bool

    @property
    def margin(self) -> float:
        """How much better the chosen response is, on the penalised score; never negative."""
        return self.chosen_penalised - self.rejected_penalised


def side_columns(
    side: str,
    token_ids: list[int],
    text: str,
    score: float,
    penalised: float,
    rank: int,
    truncated: bool,
) -> dict[str, Any]:
    """What a pair holds of one response, under the names of `PreferencePair`; `side` is one of `SIDES`.

    Example:
        {"chosen_token_ids": [5, 9], "chosen": "4", "chosen_score": 1.5, "chosen_penalised": 1.5,
         "chosen_rank": 0, "chosen_chars": 1, "chosen_truncated": False}
    """
    return {
        f"{side}_token_ids": token_ids,
        side: text,
        f"{side}_score": score,
        f"{side}_penalised": penalised,
        f"{side}_rank": rank,
        f"{side}_chars": len(text),
        f"{side}_truncated": truncated,
    }


def to_row(record: Prompt | Candidate | ScoredPrompt | PreferencePair) -> dict[str, Any]:
    """A record as the mapping that its schema takes.

    Example:
        {"id": "d7760b4ba3077c46", "messages": ({"role": "user", "content": "Hi"},)}
    """
    row = dict(vars(record))
    # Not `asdict`, which copies every token id of every response: two thirds of the time of `pair`.
    if isinstance(record, ScoredPrompt):
        row["candidates"] = [vars(candidate) for candidate in record.candidates]
    return row


def scored_prompt(candidates_row: Mapping[str, Any], scores_row: Mapping[str, Any]) -> ScoredPrompt:
    """Join one row of a candidates shard with the row of the scores shard that stands at the same place.

    Args:
        candidates_row: `{"id": "5f1c…", "messages": […], "prompt_token_ids": […], "candidates": [{…}, {…}]}`.
        scores_row: `{"id": "5f1c…", "scores": [1.5, -0.3]}`.
    """
    # A score that went to another response would turn pairs around without a trace.
    assert candidates_row["id"] == scores_row["id"], "scores and candidates are out of step"
    assert len(candidates_row["candidates"]) == len(scores_row["scores"]), "one score per candidate"
    candidates = [Candidate(**candidate) for candidate in candidates_row["candidates"]]
    return ScoredPrompt(
        id=candidates_row["id"],
        messages=tuple(candidates_row["messages"]),
        prompt_token_ids=candidates_row["prompt_token_ids"],
        candidates=tuple(candidates),
        scores=tuple(scores_row["scores"]),
    )
