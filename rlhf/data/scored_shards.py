"""Candidates and their scores as pairing reads them: shard by shard, checked that they belong together."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from rlhf.data.pairing import Terminators
from rlhf.data.shards import TOKENS, read_table
from rlhf.errors import DataError

_NOT_READ = ("logprob", "seed", "temperature", "extra")
"""Of a candidates shard: pairing does not look at it."""


def read_terminators(candidates: Path) -> Terminators | None:
    """What `generate` wrote down about the ends of turns; None of responses that are text alone.

    Example:
        {"end_of_turn_id": 128009, "stop_token_ids": [128001, 128009]} stands in `tokens.json`
    """
    path = candidates / TOKENS
    if not path.is_file():
        message = f"{path} is missing: `generate` writes it beside its shards. Generate the candidates anew."
        raise DataError(message)
    tokens = json.loads(path.read_text(encoding="utf-8"))
    end_of_turn_id = tokens["end_of_turn_id"]
    # Candidates that were read from a file of texts have no tokens, so nothing ends them.
    if end_of_turn_id is None:
        return None
    stop_token_ids = frozenset(map(int, tokens["stop_token_ids"]))
    return Terminators(int(end_of_turn_id), stop_token_ids)


def scored_shard(candidates: Path, scores: Path) -> tuple[pa.Table, pa.Table]:
    """A shard of candidates and the shard of their scores, which must match row by row.

    Raises:
        DataError: one is missing, they differ in length, or a row's id or number of scores differs.

    Example:
        {"id": "5f1c…", "messages": […], "prompt_token_ids": […], "candidates": [{…}, {…}]} and
        {"id": "5f1c…", "scores": [1.5, -0.3]} are rows with the same number
    """
    for path in (candidates, scores):
        if not path.is_file():
            raise DataError(f"{path} is missing. Make its stage anew, or restore the file.")
    candidates_table = read_table(candidates, leave_out=_NOT_READ)
    scores_table = read_table(scores)
    if len(candidates_table) != len(scores_table):
        difference = f"{len(scores_table)} rows for {len(candidates_table)}"
        raise _mismatch(candidates, scores, difference)
    # Checked although the pipeline makes them in step: both may be files that a user has put together.
    nums_candidates = pc.list_value_length(candidates_table["candidates"])
    nums_scores = pc.list_value_length(scores_table["scores"])
    columns = (candidates_table["id"], scores_table["id"], nums_candidates, nums_scores)
    if columns[0].equals(columns[1]) and nums_candidates.equals(nums_scores):
        return candidates_table, scores_table
    # Only now row by row, for the first one that differs is the one to name.
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    for number, (name, scores_name, num_candidates, num_scores) in enumerate(rows, start=1):
        if name != scores_name:
            difference = f"row {number} is prompt {scores_name} there and {name} here"
            raise _mismatch(candidates, scores, difference)
        if num_candidates != num_scores:
            difference = (
                f"row {number}, prompt {name}, has {num_scores} scores for {num_candidates} candidates"
            )
            raise _mismatch(candidates, scores, difference)
    return candidates_table, scores_table


def _mismatch(candidates: Path, scores: Path, difference: str) -> DataError:
    return DataError(f"{scores} does not belong to {candidates}: {difference}. Score these candidates anew.")
