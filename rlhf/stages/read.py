"""Stage `read`: rows of a plain file become shards; for the tools that work on files."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlhf.config.stage_configs import ReadStage
from rlhf.data.benchmarks import read_questions
from rlhf.data.json_text import json_text
from rlhf.data.prompts import read_prompts
from rlhf.data.reading_notes import reading_notes
from rlhf.data.records import to_row
from rlhf.data.response_columns import scored_tables
from rlhf.data.responses import read_best_of_n, read_comparisons, read_responses
from rlhf.data.schemas import CANDIDATES_SCHEMA, PROMPT_SCHEMA, SCORES_SCHEMA
from rlhf.data.shards import TOKENS, WriteBehind, rows_of_shard, shard_name, write_atomic
from rlhf.run.job import Job, Outcome, Worker

# What the tool needs to know of a row in the end and no stage reads: as JSON, so that any row fits.
_EXTRA = pa.field("extra", pa.string())
_FOLDERS = {
    "prompts": {"prompts": PROMPT_SCHEMA},
    "questions": {"prompts": PROMPT_SCHEMA.append(_EXTRA)},
    "responses": {"candidates": CANDIDATES_SCHEMA.append(_EXTRA)},
    # What else a scored row holds nobody asks for.
    "scored": {"candidates": CANDIDATES_SCHEMA, "scores": SCORES_SCHEMA},
    "qualities": {"candidates": CANDIDATES_SCHEMA.append(_EXTRA), "scores": SCORES_SCHEMA},
    "comparisons": {"candidates": CANDIDATES_SCHEMA.append(_EXTRA)},
    "best_of_n": {"candidates": CANDIDATES_SCHEMA.append(_EXTRA)},
}
"""Which folders of shards the rows become, by `what` they are."""
_SAME_FOR_ALL = [
    f"candidates.list.element.{name}" for name in ("finish_reason", "logprob", "seed", "temperature")
]


def run(job: Job[ReadStage], worker: Worker) -> Outcome:
    """Write the rows of the input `file` in folders of shards, in the file's order.

    Config: `what` (a name in `_FOLDERS`) and `shard_size` in rows (`rows_of_shard`). Memory holds one shard,
    and all questions.

    Counts: `rows` = rows written + the sum of `dropped/<reason>`.
    """
    counts = Counter[str]()
    folders = _FOLDERS[job.config.what]
    for name in folders:
        # Of an attempt that was killed: all of it is made again, and none must stay that is not.
        shutil.rmtree(job.out_path / name, ignore_errors=True)
        (job.out_path / name).mkdir()
    # Others are read again and again, and by other machines.
    unpacked = _SAME_FOR_ALL if job.config.what == "scored" else None
    with WriteBehind() as shards:
        for index, tables in enumerate(_tables(job.config, job.input_path("file"), counts)):
            for name, table in tables.items():
                shards.write(job.out_path / name / shard_name(index), table, None, unpacked)
    if "candidates" in folders:
        # What `generate` would tell the stages after it; texts from a file have no tokens.
        no_ids: dict[str, Any] = {"end_of_turn_id": None, "stop_token_ids": []}
        write_atomic(job.out_path / "candidates" / TOKENS, json_text(no_ids).encode())
    return Outcome(counts=dict(counts), metrics=reading_notes(counts))


def _tables(config: ReadStage, path: Path, counts: Counter[str]) -> Iterator[dict[str, pa.Table]]:
    """A table for each folder of `_FOLDERS[config.what]`, shard by shard."""
    if config.what == "scored":
        yield from scored_tables(path, counts, config.shard_size, columns=config.columns)
        return
    rows = _rows(config, path, counts)
    for index in itertools.count():
        block = list(itertools.islice(rows, rows_of_shard(index, config.shard_size)))
        if not block:
            return
        tables = {}
        # A row has the columns of all folders; each schema takes its own.
        for name, schema in _FOLDERS[config.what].items():
            tables[name] = pa.Table.from_pylist(block, schema=schema)
        yield tables


def _rows(config: ReadStage, path: Path, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """Rows for all schemas of `_FOLDERS[config.what]`."""
    what, columns = config.what, config.columns
    if what == "prompts":
        return map(to_row, read_prompts(path, counts, columns=columns))
    if what == "questions":
        return iter(read_questions(path, counts, columns=columns))
    if what == "comparisons":
        return read_comparisons(path, counts, columns=columns)
    if what == "best_of_n":
        return read_best_of_n(path, counts, columns=columns)
    # The key of a row that holds its scores, where the file has any.
    scores_key = "qualities" if what == "qualities" else None
    return read_responses(path, counts, scores_key, columns=columns)
