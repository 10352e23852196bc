"""Stage `reference`: log-probabilities of responses under a frozen model.

Of pairs (`pairs`: chosen and rejected, as DPO will cut them) or of candidates (`candidates`: as
sampled). Workers take shards each for itself; under ZeRO-3 the ranks that train share out the weights, as
in DPO, and go through each shard together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rlhf.config.stage_configs import ReferenceStage
from rlhf.data.schemas import LOGPROBS_SCHEMA
from rlhf.data.shards import read_rows, shard_name, write_shard
from rlhf.models.weight_files import num_parameters
from rlhf.run.job import Job, Kind, Outcome, Worker
from rlhf.run.stage_table import kind_of, num_shards
from rlhf.training.deepspeed import init_process_group, load_sharded, on_gpu
from rlhf.training.logprobs import response_budget
from rlhf.training.memory_forecast import reference_memory
from rlhf.training.ranks import on_rank_zero, own_rank, sum_over_ranks, world_size
from rlhf.training.response_batches import batch_logprobs, batching_of
from rlhf.training.token_budget import TokenBudget, find_budget, forecast_of
from rlhf.training.weights import load_model, resolve_dtype

_ROWS_AT_A_TIME = 1024
"""Rows that are sorted into bins together: enough to find some of like length."""
_SMALLEST_BATCH = 512
"""Tokens of a batch below which memory is not what a model lacks."""
_COLUMNS = {
    "pairs": ["id", "prompt_token_ids", "chosen_token_ids", "rejected_token_ids"],
    "candidates": ["id", "prompt_token_ids", "candidates"],
}
"""What is read of each kind of input."""


@dataclass(frozen=True)
class _Group:
    """A prompt with responses of one row: their token ids, and which of the row's responses they are."""

    row: int
    prompt: list[int]
    places: list[int]
    responses: list[list[int]]

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + sum(len(response) for response in self.responses)


class ReferenceModel:
    """A loaded reference model."""

    def __init__(self, job: Job[ReferenceStage], budget: TokenBudget) -> None:
        config = job.config
        folder = job.input_path("model")
        device_name = "cuda" if on_gpu(job.compute) else "cpu"
        self.device = torch.device(device_name)
        dtype = resolve_dtype(config.dtype, folder)
        load = partial(load_model, folder, dtype, config.trust_remote_code)
        if _is_sharded(job):
            self.model = load_sharded(load, job.compute, dtype, num_parameters(folder))
        else:
            self.model = load().to(self.device).eval()
        # DeepSpeed's engine, where there is one, calls the model that it was made of.
        inner = getattr(self.model, "module", self.model)
        # Why it is not packed is said by DPO, which trains on these log-probabilities.
        self.batching, _ = batching_of(inner, budget.batch_tokens, on_gpu(job.compute))
        self.max_length = config.max_length or 0  # candidates have no budget

    def score(self, rows: list[dict[str, Any]], counts: dict[str, int]) -> list[dict[str, Any]]:
        """A row of log-probabilities for each row of pairs or candidates, in the same order.

        NaN stands for the pairs that DPO drops because their prompt fills `max_length`.

        Example:
            {"id": "5f1c0a9b2d3e4f60", "logprobs": [-41.7, -38.2]}
        """
        groups: list[_Group] = []
        scored = []
        for number, row in enumerate(rows):
            responses = self._responses(row)
            # A row each, also for a pair that is dropped: DPO reads both folders side by side.
            logprobs = [0.0] * len(responses)
            if not responses and "candidates" not in row:
                logprobs = [math.nan, math.nan]
            scored.append({"id": row["id"], "logprobs": logprobs})
            groups += self._groups(number, row["prompt_token_ids"], responses)
            counts["rows"] += 1
            counts["responses"] += len(responses)
            if not responses:
                counts["long_prompts"] += 1
        # Those of all rows together, so that groups that fill a batch find each other.
        for group, logprobs in zip(groups, self._logprobs(groups), strict=True):
            for place, logprob in zip(group.places, logprobs, strict=True):
                scored[group.row]["logprobs"][place] = logprob
        return scored

    def _responses(self, row: dict[str, Any]) -> list[list[int]]:
        """What a row has to be scored of; nothing of a pair whose prompt fills `max_length`."""
        if "candidates" in row:
            return [candidate["token_ids"] for candidate in row["candidates"]]
        budget = response_budget(len(row["prompt_token_ids"]), self.max_length)
        if budget < 1:
            return []
        return [row["chosen_token_ids"][:budget], row["rejected_token_ids"][:budget]]

    def _groups(self, row: int, prompt: list[int], responses: list[list[int]]) -> list[_Group]:
        """A row's responses in groups that fit a batch; without packing, each on its own."""
        groups: list[_Group] = []
        for place, response in enumerate(responses):
            # Empty responses keep their 0: they have probability 1.
            if not response:
                continue
            joins = False
            if groups and self.batching.packed:
                joins = groups[-1].num_tokens + len(response) <= self.batching.batch_tokens
            if not joins:
                groups.append(_Group(row, prompt, [], []))
            groups[-1].places.append(place)
            groups[-1].responses.append(response)
        return groups

    @torch.no_grad()
    def _logprobs(self, groups: list[_Group]) -> list[list[float]]:
        """Of each response of each group."""
        lengths = []
        logprobs: list[list[float]] = []
        for group in groups:
            lengths.append((len(group.prompt), [len(response) for response in group.responses]))
            logprobs.append([0.0] * len(group.responses))
        bins = self.batching.bins(lengths)
        num_ranks = world_size()
        for start in range(0, len(bins), num_ranks):
            own = start + own_rank()
            # The ranks exchange weights in every layer, so that each must come as often: one without a bin
            # of its own goes through the last, and keeps nothing of it.
            members = bins[min(own, len(bins) - 1)]
            prompts = [groups[member].prompt for member in members]
            responses = [groups[member].responses for member in members]
            batch = self.batching.batch(prompts, responses).to(self.device)
            values = iter(batch_logprobs(self.model, batch).tolist())
            if own >= len(bins):
                continue
            for member in members:
                logprobs[member] = list(itertools.islice(values, len(groups[member].responses)))
        # Each group was one rank's; the others have its zeros.
        summed = iter(sum_over_ranks(list(itertools.chain.from_iterable(logprobs))))
        return [list(itertools.islice(summed, len(group.responses))) for group in groups]


def _is_sharded(job: Job[ReferenceStage]) -> bool:
    """Whether the job's processes are ranks of one group, which hold a share of the weights each."""
    return kind_of(job.stage, job.compute) is Kind.training


def _shards(job: Job[ReferenceStage], worker: Worker) -> Iterator[int]:
    """Shards to make: this worker's own, or in a group of ranks the same ones on all of them."""
    if not _is_sharded(job):
        yield from worker.shards()
        return
    init_process_group(job.compute)
    shards = iter(worker.shards())
    while True:
        index = on_rank_zero(lambda: next(shards, None))
        if index is None:
            return
        if worker.rank != 0:
            # Rank 0 alone asks the driver, which takes who says nothing for long for one that hangs.
            worker.progress(index, num_shards(job), "shards")
        yield index


def compute_logprobs(job: Job[ReferenceStage], worker: Worker) -> Outcome:
    """Write a shard of log-probabilities for each shard of the input, row by row."""
    source = "pairs" if "pairs" in job.inputs else "candidates"
    model: ReferenceModel | None = None
    outcome = Outcome()
    for index in _shards(job, worker):
        # Loaded with the first shard: a worker for which none is left does not load it at all.
        if model is None:
            worker.progress(0, 0, "loading the model")
            budget = _budget(job, worker)
            outcome.metrics["budget"] = budget.record()
            model = ReferenceModel(job, budget)
        counts = {"rows": 0, "responses": 0, "long_prompts": 0}
        rows = read_rows(job.input_path(source) / shard_name(index), _COLUMNS[source])
        with budget.watched(f"in shard {index} on worker {worker.rank}"):
            logprobs = list(_score_in_blocks(model, rows, counts))
        if own_rank() == 0:
            write_shard(job.shard_path(index), LOGPROBS_SCHEMA, logprobs, counts)
    return outcome


def _budget(job: Job[ReferenceStage], worker: Worker) -> TokenBudget:
    """How many tokens go through the model at a time, with an estimate of what memory allows."""
    # A longer response goes through by itself: how long they are is known only once all are read.
    forecast = forecast_of(reference_memory, job, worker, job.input_path("model"), _SMALLEST_BATCH)
    return find_budget(job, worker, forecast, _SMALLEST_BATCH)


def _score_in_blocks(
    model: ReferenceModel, rows: Iterator[dict[str, Any]], counts: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """`ReferenceModel.score` of rows that are too many to hold."""
    while True:
        block = list(itertools.islice(rows, _ROWS_AT_A_TIME))
        if not block:
            return
        yield from model.score(block, counts)
