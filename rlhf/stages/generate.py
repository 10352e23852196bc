"""Sample n responses per prompt."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

from rlhf.data.shards import num_rows, read_rows, shard_name, shard_paths, write_atomic, write_shard
from rlhf.job import Job, Kind, Outcome, Worker
from rlhf.records import CANDIDATES_SCHEMA

KIND = Kind.inference


def num_shards(job: Job) -> int:
    """Shards of `shard_size` prompts of this stage's slice; as many as the prompts have when they come in shards."""
    if job.input_path("prompts").is_dir():
        return len(shard_paths(job.input_path("prompts")))
    start, stop = _slice(job)
    return math.ceil((stop - start) / job.config["shard_size"])


def _slice(job: Job) -> tuple[int, int]:
    total = num_rows(job.input_path("prompts"))
    start, stop = job.config["slice"] or (0, total)
    return start, min(stop, total)


def run(job: Job, worker: Worker) -> Outcome:
    """Write a candidates shard per shard of prompts; inputs are `policy` and `prompts` (a Parquet file, or shards).

    Config beside the section's own: `iteration`, `slice` ([start, stop) rows of the prompts, null for all), `dtype`
    and `trust_remote_code` of the model. `tokens.json` tells later stages the terminators and the end of a turn.
    """
    from rlhf.chat import end_of_turn_id, load_tokenizer, longest_prompt, stop_token_ids, template_hash
    from rlhf.generation.load import load_sampler
    from rlhf.generation.request import Sampling

    config, model = job.config, job.inputs["policy"]
    tokenizer = load_tokenizer(model, config["trust_remote_code"])
    stops = stop_token_ids(tokenizer, model, config["stop_token_ids"], config["trust_remote_code"])
    if worker.rank == 0:
        tokens = {"end_of_turn_id": end_of_turn_id(tokenizer), "stop_token_ids": stops}
        tokens["template_sha256"] = template_hash(tokenizer)
        write_atomic(job.out_path / "tokens.json", json.dumps(tokens, indent=1).encode())
    limit = longest_prompt(model, config["max_prompt_tokens"], config["max_new_tokens"], config["trust_remote_code"])
    sampling = Sampling(config["max_new_tokens"], config["top_p"], config["top_k"], stops)
    sampler = None
    for index in worker.shards():
        if sampler is None:  # an engine is only worth its start when there is a shard left
            sampler = load_sampler(config, model, job.seed, limit)
        rows, counts = _sample_shard(job, index, tokenizer, sampler, sampling, limit)
        write_shard(job.out_path / shard_name(index), CANDIDATES_SCHEMA, rows, counts)
    return Outcome()


def _sample_shard(
    job: Job, index: int, tokenizer: Any, sampler: Any, sampling: Any, max_prompt_tokens: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    from rlhf.chat import render_prompt
    from rlhf.generation.request import Request, seed_of, temperatures_of

    config = job.config
    prompts = [(row, render_prompt(tokenizer, row["messages"])) for row in _prompts(job, index)]
    kept = [(row, ids) for row, ids in prompts if len(ids) <= max_prompt_tokens]
    temperatures = temperatures_of(config["n"], config["temperatures"])
    requests = [
        Request(ids, temperature, seed_of(job.seed, config["iteration"], row["id"], sample))
        for row, ids in kept
        for sample, temperature in enumerate(temperatures)
    ]
    candidates = sampler.sample(requests, sampling)
    stops = set(sampling.stop_token_ids)
    filled = []
    for candidate in candidates:
        ids = candidate.token_ids
        body = ids[:-1] if ids and ids[-1] in stops and not candidate.truncated else ids
        filled.append(vars(candidate) | {"text": tokenizer.decode(body, skip_special_tokens=True)})
    n = config["n"]
    rows = [
        {"id": row["id"], "messages": row["messages"], "prompt_token_ids": ids, "candidates": filled[i * n : i * n + n]}
        for i, (row, ids) in enumerate(kept)
    ]
    counts = {
        "prompts": len(prompts),
        "prompts_sampled": len(kept),
        "dropped/prompt_too_long": len(prompts) - len(kept),
        "responses": len(candidates),
        "truncated": sum(candidate.truncated for candidate in candidates),
        "response_tokens": sum(len(candidate.token_ids) for candidate in candidates),
    }
    return rows, counts


def _prompts(job: Job, index: int) -> list[dict[str, Any]]:
    if job.input_path("prompts").is_dir():
        return list(read_rows(job.input_path("prompts") / shard_name(index)))
    start, stop = _slice(job)
    first = start + index * job.config["shard_size"]
    last = min(first + job.config["shard_size"], stop)
    return list(itertools.islice(read_rows(Path(job.inputs["prompts"])), first, last))


if __name__ == "__main__":
    from rlhf.alone import main

    main("generate")
