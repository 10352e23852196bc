"""Sample n responses per prompt."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

from rlhf.config.stage_configs import GenerateStage
from rlhf.data.records import CANDIDATES_SCHEMA, what_became
from rlhf.data.shards import read_rows, shard_name, shard_paths, sum_counts, write_atomic, write_shard
from rlhf.errors import DataError, ModelError, TemplateRefuses
from rlhf.run.job import Job, Outcome, Worker
from rlhf.run.stage_table import num_shards, sliced_rows


def run(job: Job[GenerateStage], worker: Worker) -> Outcome:
    """Write a candidates shard per shard of prompts; inputs are `policy` and `prompts` (a Parquet file, or shards).

    Config beside the section's own: `iteration`, `slice` ([start, stop) rows of the prompts, null for all), `dtype`
    and `trust_remote_code` of the model. `tokens.json` tells later stages the terminators and the end of a turn.

    Counts: `prompts` = `prompts_sampled` + the sum of `dropped/<reason>`.

    Raises:
        TemplateRefuses: the chat template takes none of the prompts.
        DataError: all prompts are too long.
        ModelError: the model's weights give no numbers.
    """
    from rlhf.generation.choose_engine import load_sampler
    from rlhf.generation.request import Sampling
    from rlhf.models.chat import end_of_turn_id, load_tokenizer, longest_prompt, stop_token_ids, template_hash

    config, model = job.config, job.inputs["policy"]
    tokenizer = load_tokenizer(model, config.trust_remote_code)
    stops = stop_token_ids(tokenizer, model, config.stop_token_ids, config.trust_remote_code)
    if worker.rank == 0:
        tokens = {"end_of_turn_id": end_of_turn_id(tokenizer), "stop_token_ids": stops}
        tokens["template_sha256"] = template_hash(tokenizer)
        write_atomic(job.out_path / "tokens.json", json.dumps(tokens, indent=1).encode())
    limit = longest_prompt(model, config.max_prompt_tokens, config.max_new_tokens, config.trust_remote_code)
    sampling = Sampling(config.max_new_tokens, config.top_p, config.top_k, stops)
    sampler = None
    metrics = {}
    for index in worker.shards():
        if sampler is None:  # an engine is only worth its start when there is a shard left
            sampler = load_sampler(config, model, job.seed, limit)
            metrics = {"engine": sampler.note} if sampler.note else {}
        rows, counts = _sample_shard(job, index, tokenizer, sampler, sampling, limit)
        write_shard(job.out_path / shard_name(index), CANDIDATES_SCHEMA, rows, counts)
    _refuse_if_nothing_is_left(job, tokenizer, limit)
    return Outcome(metrics=metrics)


def _sample_shard(
    job: Job[GenerateStage], index: int, tokenizer: Any, sampler: Any, sampling: Any, max_prompt_tokens: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    from rlhf.generation.request import Request, seed_of, temperatures_of
    from rlhf.models.chat import render_prompts

    config = job.config
    kept, counts = render_prompts(_prompts(job, index), tokenizer, max_prompt_tokens)
    temperatures = temperatures_of(config.n, config.temperatures)
    requests = [
        Request(ids, temperature, seed_of(job.seed, config.iteration, row["id"], sample))
        for row, ids in kept
        for sample, temperature in enumerate(temperatures)
    ]
    candidates = sampler.sample(requests, sampling) if requests else []
    if any(math.isnan(candidate.logprob) for candidate in candidates):
        what = f"{job.inputs['policy']}: its probabilities are no numbers (NaN): its weights hold some, or overflow"
        raise ModelError(f"{what} in {config.dtype}. Save the model anew, or set model.dtype=float32.")
    stops = set(sampling.stop_token_ids)
    filled = []
    for candidate in candidates:
        ids = candidate.token_ids
        body = ids[:-1] if ids and ids[-1] in stops and not candidate.truncated else ids
        filled.append(vars(candidate) | {"text": tokenizer.decode(body, skip_special_tokens=True)})
    n = config.n
    rows = [
        {"id": row["id"], "messages": row["messages"], "prompt_token_ids": ids, "candidates": filled[i * n : i * n + n]}
        for i, (row, ids) in enumerate(kept)
    ]
    counts |= {
        "responses": len(candidates),
        "truncated": sum(candidate.truncated for candidate in candidates),
        "response_tokens": sum(len(candidate.token_ids) for candidate in candidates),
    }
    return rows, counts


def _refuse_if_nothing_is_left(job: Job[GenerateStage], tokenizer: Any, limit: int) -> None:
    """Raise when there were prompts and none was sampled; every worker asks, the last one sees all shards."""
    from rlhf.models.chat import render_prompt

    if len(shard_paths(job.out_path)) < num_shards(job):
        return
    counts = sum_counts(job.out_path)
    if counts.get("prompts_sampled") or not counts.get("prompts"):
        return
    if not counts.get("dropped/refused_by_template"):
        raise DataError(
            f"{job.inputs['prompts']}: all {counts['prompts']} prompts have more than {limit} tokens. Raise generate."
            "max_prompt_tokens, lower generate.max_new_tokens (the context holds both), or give shorter prompts."
        )
    for row in itertools.chain.from_iterable(_prompts(job, index) for index in range(num_shards(job))):
        try:
            render_prompt(tokenizer, row["messages"])
        except TemplateRefuses as error:
            raise TemplateRefuses(f"No prompt can be sampled ({what_became(counts, 'prompts')}). {error}") from error


def _prompts(job: Job[GenerateStage], index: int) -> list[dict[str, Any]]:
    if job.input_path("prompts").is_dir():
        return list(read_rows(job.input_path("prompts") / shard_name(index)))
    start, stop = sliced_rows(job.input_path("prompts"), job.config.slice)
    first = start + index * job.config.shard_size
    last = min(first + job.config.shard_size, stop)
    return list(itertools.islice(read_rows(Path(job.inputs["prompts"])), first, last))
