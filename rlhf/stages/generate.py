"""Sample n responses per prompt."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

from rlhf.config.stage_configs import GenerateStage
from rlhf.data.records import CANDIDATES_SCHEMA, Candidate, what_became
from rlhf.data.shards import read_rows, shard_name, shard_paths, sum_counts, write_atomic, write_shard
from rlhf.errors import DataError, ModelError, TemplateRefuses
from rlhf.generation.request import Request, Sampler, Sampling, seed_of, temperatures_of
from rlhf.generation.vllm_args import prompt_limit
from rlhf.run.job import Job, Outcome, Worker
from rlhf.run.stage_table import num_shards, sliced_rows


def run(job: Job[GenerateStage], worker: Worker) -> Outcome:
    """Write a candidates shard per shard of prompts; inputs are `policy` and `prompts` (a Parquet
    file, or shards).

    Config beside the section's own: `iteration`, `slice` ([start, stop) rows of the prompts, null
    for all), `dtype` and `trust_remote_code` of the model. `tokens.json` tells later stages the
    terminators and the end of a turn.

    Counts: `prompts` = `prompts_sampled` + the sum of `dropped/<reason>`.

    Raises:
        TemplateRefuses: the chat template takes none of the prompts.
        DataError: all prompts are too long.
        ModelError: the model's weights give no numbers.
    """
    from rlhf.generation.choose_engine import load_sampler
    from rlhf.models.chat import load_tokenizer, longest_prompt, stop_token_ids

    config = job.config
    model = job.inputs["policy"]
    trusted = config.trust_remote_code
    tokenizer = load_tokenizer(model, trusted)
    stops = stop_token_ids(tokenizer, model, config.stop_token_ids, trusted)
    # One worker is enough: all would write the same.
    if worker.rank == 0:
        _write_tokens(job.out_path / "tokens.json", tokenizer, stops)
    limit = longest_prompt(model, config.max_prompt_tokens, config.max_new_tokens, trusted)
    limit = prompt_limit(config, limit)
    sampling = Sampling(config.max_new_tokens, config.top_p, config.top_k, stops)
    sampler = None
    metrics = {}
    for index in worker.shards():
        # An engine is only worth its start when there is a shard left.
        if sampler is None:
            sampler = load_sampler(config, model, job.seed, limit)
            if sampler.note:
                metrics["engine"] = sampler.note
        rows, counts = _sample_shard(job, index, tokenizer, sampler, sampling, limit)
        write_shard(job.out_path / shard_name(index), CANDIDATES_SCHEMA, rows, counts)
    _refuse_if_nothing_is_left(job, tokenizer, limit)
    return Outcome(metrics=metrics)


def _write_tokens(path: Path, tokenizer: Any, stops: list[int]) -> None:
    """Tell later stages how turns end; they have no tokenizer."""
    from rlhf.models.chat import end_of_turn_id, template_hash

    tokens = {
        "end_of_turn_id": end_of_turn_id(tokenizer),
        "stop_token_ids": stops,
        "template_sha256": template_hash(tokenizer),
    }
    write_atomic(path, json.dumps(tokens, indent=1).encode())


def _sample_shard(
    job: Job[GenerateStage],
    index: int,
    tokenizer: Any,
    sampler: Sampler,
    sampling: Sampling,
    max_prompt_tokens: int,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows of `CANDIDATES_SCHEMA`, and what was counted.

    Example:
        row: {"id": "5f1c…", "messages": […], "prompt_token_ids": [1, 306],
            "candidates": [{"text": "Yo.", …}, {"text": "Hello!", …}]}
        counts: {"prompts": 1, "prompts_sampled": 1, "responses": 2, "truncated": 0, …}
    """
    from rlhf.models.chat import render_prompts

    config = job.config
    rendered, counts = render_prompts(_prompts(job, index), tokenizer, max_prompt_tokens)
    temperatures = temperatures_of(config.n, config.temperatures)
    # The n requests of a prompt stand side by side: below, their candidates are found by their place.
    requests = []
    for row, prompt_token_ids in rendered:
        for sample, temperature in enumerate(temperatures):
            seed = seed_of(job.seed, config.iteration, row["id"], sample)
            requests.append(Request(prompt_token_ids, temperature, seed))
    candidates = sampler.sample(requests, sampling) if requests else []
    # Nobody else notices: sampling from NaN raises no error.
    if any(math.isnan(candidate.logprob) for candidate in candidates):
        raise ModelError(
            f"{job.inputs['policy']}: its probabilities are no numbers (NaN): its weights hold some, or "
            f"overflow in {config.dtype}. Save the model anew, or set model.dtype=float32."
        )
    rows = []
    for number, (row, prompt_token_ids) in enumerate(rendered):
        first = number * config.n
        candidate_rows = []
        for candidate in candidates[first : first + config.n]:
            candidate_rows.append(_with_text(candidate, tokenizer, sampling))
        rows.append(
            {
                "id": row["id"],
                "messages": row["messages"],
                "prompt_token_ids": prompt_token_ids,
                "candidates": candidate_rows,
            }
        )
    counts["responses"] = len(candidates)
    counts["truncated"] = sum(candidate.truncated for candidate in candidates)
    counts["response_tokens"] = sum(len(candidate.token_ids) for candidate in candidates)
    return rows, counts


def _with_text(candidate: Candidate, tokenizer: Any, sampling: Sampling) -> dict[str, Any]:
    """A candidate as a row holds it, with the text of its tokens up to the terminator."""
    ids = candidate.token_ids
    # `skip_special_tokens` alone would not do: a terminator from `stop_token_ids` may be a plain token.
    if ids and ids[-1] in sampling.stop_token_ids and not candidate.truncated:
        ids = ids[:-1]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return vars(candidate) | {"text": text}


def _refuse_if_nothing_is_left(job: Job[GenerateStage], tokenizer: Any, limit: int) -> None:
    """Raise when there were prompts and none was sampled; every worker asks, the last one sees all shards."""
    from rlhf.models.chat import render_prompt

    total = num_shards(job)
    if len(shard_paths(job.out_path)) < total:
        return
    counts = sum_counts(job.out_path)
    if counts.get("prompts_sampled") or not counts.get("prompts"):
        return
    if not counts.get("dropped/refused_by_template"):
        raise DataError(
            f"{job.inputs['prompts']}: all {counts['prompts']} prompts have more than {limit} "
            "tokens. Raise generate.max_prompt_tokens, lower generate.max_new_tokens (the context "
            "holds both), or give shorter prompts."
        )
    # Counts do not say why the template refused: the first prompt that it refuses again is the example.
    rows = itertools.chain.from_iterable(_prompts(job, index) for index in range(total))
    for row in rows:
        try:
            render_prompt(tokenizer, row["messages"])
        except TemplateRefuses as error:
            reasons = what_became(counts, "prompts")
            raise TemplateRefuses(f"No prompt can be sampled ({reasons}). {error}") from error


def _prompts(job: Job[GenerateStage], index: int) -> list[dict[str, Any]]:
    """Rows of `PROMPT_SCHEMA`: those of one shard."""
    path = job.input_path("prompts")
    if path.is_dir():
        return list(read_rows(path / shard_name(index)))
    start, stop = sliced_rows(path, job.config.slice)
    # A slice is cut into shards anew from its own beginning.
    first = start + index * job.config.shard_size
    last = min(first + job.config.shard_size, stop)
    return list(itertools.islice(read_rows(path), first, last))
