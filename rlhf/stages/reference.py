"""Stage `reference`: log-probabilities of responses under a frozen model.

Of pairs (`pairs`: chosen and rejected, as DPO will cut them) or of candidates (`candidates`: as sampled).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rlhf.data.records import LOGPROBS_SCHEMA
from rlhf.data.shards import read_rows, shard_name, shard_paths, write_shard
from rlhf.run.job import Job, Kind, Outcome, Worker

if TYPE_CHECKING:
    from rlhf.training.reference import Reference

KIND = Kind.inference

_ROWS_AT_A_TIME = 1024
_COLUMNS = {
    "pairs": ["id", "prompt_token_ids", "chosen_token_ids", "rejected_token_ids"],
    "candidates": ["id", "prompt_token_ids", "candidates"],
}


def num_shards(job: Job) -> int:
    """As many as the input has."""
    return len(shard_paths(job.input_path(_source(job))))


def run(job: Job, worker: Worker) -> Outcome:
    """Write a shard of log-probabilities for each shard of the input, row by row."""
    source = _source(job)
    reference: Reference | None = None
    for index in worker.shards():
        if reference is None:
            from rlhf.training.reference import Reference

            reference = Reference(job)
        counts = {"rows": 0, "responses": 0, "long_prompts": 0}
        rows = list(_score(reference, read_rows(job.input_path(source) / shard_name(index), _COLUMNS[source]), counts))
        write_shard(job.out_path / shard_name(index), LOGPROBS_SCHEMA, rows, counts)
    return Outcome()


def _source(job: Job) -> str:
    return "pairs" if "pairs" in job.inputs else "candidates"


def _score(reference: Reference, rows: Iterator[dict[str, Any]], counts: dict[str, int]) -> Iterator[dict[str, Any]]:
    block: list[dict[str, Any]] = []
    for row in rows:
        block.append(row)
        if len(block) == _ROWS_AT_A_TIME:
            yield from reference.score(block, counts)
            block = []
    yield from reference.score(block, counts)


if __name__ == "__main__":
    from rlhf.stage import main

    main("reference")
