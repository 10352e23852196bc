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
from rlhf.data.records import SIDES, prompt_id, side_columns, what_became
from rlhf.data.schemas import PAIRS_SCHEMA
from rlhf.data.shards import shard_name, write_shard
from rlhf.errors import TemplateRefuses
from rlhf.run.job import Job, Outcome, Worker

_ROWS_OF_A_SHARD = 4096


def run(job: Job[GivenPairsStage], worker: Worker) -> Outcome:
    """Write shards of pairs in the file's order, as a stream.

    There are no scores: they are NaN. Counts: `rows` = `pairs` + the sum of `dropped/<reason>`, and
    `spelled_special_tokens`, pairs that spell a special token.

    Raises:
        DataError: the file cannot be used, or no row of it is a pair.
        ModelError: the policy's template takes none of the pairs, or cannot be used for written ones.
    """
    from rlhf.models.chat_template import load_tokenizer

    config = job.config
    tokenizer = load_tokenizer(
        job.inputs["policy"],
        config.trust_remote_code,
        special_tokens=config.special_tokens,
    )
    counts = Counter[str]()
    # A generator: the file may be larger than memory.
    rows = _rows(job, tokenizer, counts)
    for index, block in enumerate(_blocks(rows)):
        write_shard(job.out_path / shard_name(index), PAIRS_SCHEMA, block)
    # Not before the last row is read: reading fills the counts.
    return Outcome(counts=dict(counts), metrics=reading_notes(counts, "pair"))


def _rows(job: Job[GivenPairsStage], tokenizer: Any, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """Rows of `PAIRS_SCHEMA`, without the pairs that the policy's template refuses or changes."""
    num_dropped = 0
    first_refusal = None
    for preference in read_preferences(job.input_path("data"), counts, columns=job.config.columns):
        try:
            row = _row(tokenizer, preference, counts)
        except TemplateRefuses as error:
            counts[f"dropped/{error.reason}"] += 1
            num_dropped += 1
            first_refusal = first_refusal or error
            continue
        yield row
    # Not before the end: until there it counts the pairs of the file.
    counts["pairs"] -= num_dropped
    if first_refusal is not None and not counts["pairs"]:
        raise TemplateRefuses(
            f"{job.inputs['data']}: no pair to train on ({what_became(counts)}). {first_refusal}"
        )


def _blocks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows in shards."""
    while block := list(itertools.islice(rows, _ROWS_OF_A_SHARD)):
        yield block


def _row(tokenizer: Any, preference: Preference, counts: Counter[str]) -> dict[str, Any]:
    """One row of `PAIRS_SCHEMA`; raises TemplateRefuses."""
    from rlhf.models.chat_template import render_response, spells_special_token

    messages, *responses = preference
    written = [*messages, *({"role": "assistant", "content": text} for text in responses)]
    if spells_special_token(tokenizer, written) is not None:
        counts["spelled_special_tokens"] += 1
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
