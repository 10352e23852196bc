"""Stage `preferences`: given preference pairs as training pairs of a policy, for offline DPO.

Inputs: `data` (a file of preferences) and `policy` (whose tokenizer and template are used).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rlhf.config.stage_configs import GivenPairsStage
from rlhf.data.preferences import Preference, read_preferences
from rlhf.data.reading_notes import reading_notes
from rlhf.data.records import PAIRS_SCHEMA, SIDES, prompt_id, side_columns
from rlhf.data.shards import shard_name, write_shard
from rlhf.run.job import Job, Outcome, Worker

_ROWS_OF_A_SHARD = 4096


def run(job: Job[GivenPairsStage], worker: Worker) -> Outcome:
    """Write shards of pairs in the file's order, as a stream.

    There are no scores: they are NaN. Counts: `rows` = `pairs` + the sum of `dropped/<reason>`.

    Raises:
        DataError: the file cannot be used, or no row of it is a pair.
    """
    from rlhf.models.chat import load_tokenizer

    tokenizer = load_tokenizer(job.inputs["policy"], job.config.trust_remote_code)
    counts = Counter[str]()
    # A generator: the file may be larger than memory.
    preferences = read_preferences(job.input_path("data"), counts, columns=job.config.columns)
    rows = (_row(tokenizer, preference) for preference in preferences)
    for index, block in enumerate(_blocks(rows)):
        write_shard(job.out_path / shard_name(index), PAIRS_SCHEMA, block)
    # Not before the last row is read: reading fills the counts.
    return Outcome(counts=dict(counts), metrics=reading_notes(counts, "pair"))


def _blocks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows in shards."""
    while block := list(itertools.islice(rows, _ROWS_OF_A_SHARD)):
        yield block


def _row(tokenizer: Any, preference: Preference) -> dict[str, Any]:
    """One row of `PAIRS_SCHEMA`."""
    from rlhf.models.chat import render_response

    messages, *responses = preference
    row: dict[str, Any] = {"id": prompt_id(messages), "messages": messages}
    # Chosen comes first, so a side's place is also its rank.
    for rank, (side, text) in enumerate(zip(SIDES, responses, strict=True)):
        prompt_token_ids, response_token_ids = render_response(tokenizer, messages, text)
        row["prompt_token_ids"] = prompt_token_ids
        row |= side_columns(
            side,
            token_ids=response_token_ids,
            text=text,
            score=math.nan,
            penalised=math.nan,
            rank=rank,
            truncated=False,
        )
    return row
