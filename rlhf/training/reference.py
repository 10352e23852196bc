"""Stage `reference`: log-probabilities of responses under a frozen model.

Of pairs (`pairs`: chosen and rejected, as DPO will cut them) or of candidates (`candidates`: as sampled).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch

from rlhf.config.stage_configs import ReferenceStage
from rlhf.data.records import LOGPROBS_SCHEMA
from rlhf.data.shards import read_rows, shard_name, write_shard
from rlhf.models.batches import bins_by_tokens
from rlhf.run.job import Job, Outcome, Worker
from rlhf.training.deepspeed import on_gpu
from rlhf.training.logprobs import collate, response_budget, response_logprobs
from rlhf.training.weights import load_model, resolve_dtype

_ROWS_AT_A_TIME = 1024
"""Rows that are sorted into bins together: enough to find some of like length."""
_COLUMNS = {
    "pairs": ["id", "prompt_token_ids", "chosen_token_ids", "rejected_token_ids"],
    "candidates": ["id", "prompt_token_ids", "candidates"],
}
"""What is read of each kind of input."""

Sequence = tuple[list[int], list[int]]
"""Prompt ids and response ids."""


class ReferenceModel:
    """A loaded reference model."""

    def __init__(self, job: Job[ReferenceStage]) -> None:
        config = job.config
        folder = job.input_path("model")
        self.device = torch.device("cuda" if on_gpu(job.compute) else "cpu")
        dtype = resolve_dtype(config.dtype, folder)
        self.model = load_model(folder, dtype, config.trust_remote_code).to(self.device).eval()
        self.batch_tokens = config.batch_tokens
        self.max_length = config.max_length or 0  # candidates have no budget

    def score(self, rows: list[dict[str, Any]], counts: dict[str, int]) -> list[dict[str, Any]]:
        """A row of log-probabilities for each row of pairs or candidates, in the same order.

        NaN stands for the pairs that DPO drops because their prompt fills `max_length`.
        """
        groups = [self._sequences(row) for row in rows]
        values = self._logprobs([sequence for group in groups for sequence in group])
        done, out = 0, []
        for row, group in zip(rows, groups, strict=True):
            out.append(
                {
                    "id": row["id"],
                    "logprobs": values[done : done + len(group)] if group or "candidates" in row else [math.nan] * 2,
                }
            )
            done += len(group)
            counts["rows"] += 1
            counts["responses"] += len(group)
            counts["long_prompts"] += not group
        return out

    def _sequences(self, row: dict[str, Any]) -> list[Sequence]:
        prompt = row["prompt_token_ids"]
        if "candidates" in row:
            return [(prompt, candidate["token_ids"]) for candidate in row["candidates"]]
        budget = response_budget(len(prompt), self.max_length)
        if budget < 1:
            return []
        return [(prompt, row["chosen_token_ids"][:budget]), (prompt, row["rejected_token_ids"][:budget])]

    @torch.no_grad()
    def _logprobs(self, sequences: list[Sequence]) -> list[float]:
        values = [0.0] * len(sequences)  # an empty response has probability 1
        scored = [i for i, (_, response) in enumerate(sequences) if response]
        lengths = [len(sequences[i][0]) + len(sequences[i][1]) for i in scored]
        for members in bins_by_tokens(lengths, self.batch_tokens):
            chosen = [scored[m] for m in members]
            batch = collate([sequences[i][0] for i in chosen], [sequences[i][1] for i in chosen])
            result = response_logprobs(self.model, batch.to(self.device))
            for i, value in zip(chosen, result.tolist(), strict=True):
                values[i] = value
        return values


def compute_logprobs(job: Job[ReferenceStage], worker: Worker) -> Outcome:
    """Write a shard of log-probabilities for each shard of the input, row by row."""
    source = "pairs" if "pairs" in job.inputs else "candidates"
    model: ReferenceModel | None = None
    for index in worker.shards():
        if model is None:  # only loaded when there is a shard left
            model = ReferenceModel(job)
        counts = {"rows": 0, "responses": 0, "long_prompts": 0}
        rows = read_rows(job.input_path(source) / shard_name(index), _COLUMNS[source])
        logprobs = list(_score_in_blocks(model, rows, counts))
        write_shard(job.out_path / shard_name(index), LOGPROBS_SCHEMA, logprobs, counts)
    return Outcome()


def _score_in_blocks(
    model: ReferenceModel, rows: Iterator[dict[str, Any]], counts: dict[str, int]
) -> Iterator[dict[str, Any]]:
    while block := list(itertools.islice(rows, _ROWS_AT_A_TIME)):
        yield from model.score(block, counts)
