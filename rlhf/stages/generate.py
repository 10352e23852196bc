"""Sample n responses per prompt."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.config.choices import Seeds
from rlhf.config.stage_configs import GenerateStage
from rlhf.data.json_text import json_text
from rlhf.data.records import Candidate, Message, dropped, what_became
from rlhf.data.schemas import CANDIDATES_SCHEMA
from rlhf.data.shards import TOKENS, read_rows, shard_name, shard_paths, sum_counts, write_atomic, write_shard
from rlhf.errors import DataError, ModelError, TemplateRefuses
from rlhf.generation.request import Request, Sampling, ShardOfRequests, seed_of, temperatures_of, text_of
from rlhf.generation.vllm_args import prompt_limit
from rlhf.run.job import JUDGE_INPUT, Job, Outcome, Worker
from rlhf.run.stage_table import num_shards, sliced_rows


def run(job: Job[GenerateStage], worker: Worker) -> Outcome:
    """Write a candidates shard per shard of prompts; inputs are `policy` and `prompts` (a Parquet
    file, or shards).

    Config beside the section's own: `iteration`, `slice` ([start, stop) rows of the prompts, null
    for all), `dtype` and `trust_remote_code` of the model. `tokens.json` tells later stages the
    terminators and the end of a turn. The inputs `judge.NAME` are judges that will read the
    responses: prompts that their templates refuse are not sampled.

    Counts: `prompts` = `prompts_sampled` + the sum of `dropped/<reason>`, and `spelled_special_tokens`,
    prompts that spell a special token.

    Raises:
        TemplateRefuses: the chat templates take none of the prompts.
        DataError: all prompts are too long.
        ModelError: the model's weights give no numbers.
    """
    from rlhf.generation.choose_engine import load_sampler
    from rlhf.models.chat_template import load_tokenizer, longest_prompt, stop_token_ids

    config = job.config
    model = job.inputs["policy"]
    trusted = config.trust_remote_code
    tokenizer = load_tokenizer(model, trusted, special_tokens=config.special_tokens)
    stops = stop_token_ids(tokenizer, model, config.stop_token_ids, trusted)
    # One worker is enough: all would write the same.
    if worker.rank == 0:
        _write_tokens(job.shards_path / TOKENS, tokenizer, stops)
    limit = longest_prompt(model, config.max_prompt_tokens, config.max_new_tokens, trusted)
    limit = prompt_limit(config, limit)
    sampling = Sampling(config.max_new_tokens, config.top_p, config.top_k, stops)
    metrics = {}
    indices = worker.shards_ahead()
    first = next(indices, None)
    # Only where something is left to sample: an engine and each judge's tokenizer take seconds to load.
    if first is not None:
        shards = _Shards(job, tokenizer, _judges(job), limit)
        worker.progress(0, 0, "loading the model, and compiling kernels where its engine does")
        sampler = load_sampler(config, model, _engine_seed(job, first), limit)
        worker.keep(sampler.engine)
        if sampler.note:
            metrics["engine"] = sampler.note
        todo = itertools.chain([first], indices)
        for index, candidates in sampler.sample_shards(map(shards.requests, todo), sampling):
            shards.write(index, candidates, sampling)
            worker.made(index)
    _refuse_if_nothing_is_left(job, tokenizer, limit)
    if worker.rank == 0:
        metrics |= _templated_already(job, tokenizer)
    return Outcome(metrics=metrics)


def _judges(job: Job[GenerateStage]) -> list[Any]:
    """The tokenizers of the judges that will read the responses."""
    from rlhf.models.chat_template import load_tokenizer

    tokenizers = []
    for key in sorted(job.inputs):
        if key.startswith(JUDGE_INPUT):
            is_trusted = key.removeprefix(JUDGE_INPUT) in job.config.trusted_judges
            special_tokens = job.config.special_tokens
            tokenizers.append(load_tokenizer(job.inputs[key], is_trusted, special_tokens=special_tokens))
    return tokenizers


def _templated_already(job: Job[GenerateStage], tokenizer: Any) -> dict[str, str]:
    """A metric `warning` where prompts hold what only a chat template writes.

    Example:
        {"warning": "24 of 24 prompts hold <|im_start|>: a chat template was applied to them already, …"}
    """
    from rlhf.models.special_tokens import template_token, templated_already

    tokens: Counter[str] = Counter()
    total = 0
    prompts = _Prompts(job)
    for index in range(num_shards(job)):
        for row in prompts.of_shard(index):
            total += 1
            token = template_token(tokenizer, row["messages"])
            if token is not None:
                tokens[token] += 1
    return {"warning": templated_already(tokens, total)} if tokens else {}


def _write_tokens(path: Path, tokenizer: Any, stops: list[int]) -> None:
    """Tell later stages how turns end; they have no tokenizer."""
    from rlhf.models.chat_template import end_of_turn_id, template_hash

    tokens = {
        "end_of_turn_id": end_of_turn_id(tokenizer),
        "stop_token_ids": stops,
        "template_sha256": template_hash(tokenizer),
    }
    write_atomic(path, json_text(tokens, indent=1).encode())


def _engine_seed(job: Job[GenerateStage], first: int) -> int:
    """The seed of an engine that begins with a shard."""
    if job.config.seeds is Seeds.request:
        return job.seed
    # No two engines of a run may draw the same numbers: not those of two workers, nor of two stages, nor that
    # of a worker which goes on after a kill.
    num_made = len(shard_paths(job.out_path))
    begins = f"engine of {job.name} that begins with shard {first}, {num_made} made before"
    return seed_of(job.seed, job.config.iteration, begins, 0)


class _Shards:
    """The shards that a worker has in hand: what is asked of the sampler, and what is written of it.

    Args:
        job: the stage's.
        tokenizer: the policy's.
        judges: the tokenizers of those that will read the responses.
        limit: tokens a prompt may have.
    """

    def __init__(self, job: Job[GenerateStage], tokenizer: Any, judges: list[Any], limit: int) -> None:
        self._job = job
        self._tokenizer = tokenizer
        self._judges = judges
        self._limit = limit
        self._prompts = _Prompts(job)
        self._in_hand: dict[int, tuple[list[tuple[dict[str, Any], list[int]]], dict[str, int]]] = {}
        """By number, until it is written: its prompts with their token ids, and what was counted."""

    def requests(self, index: int | None) -> ShardOfRequests | None:
        """What is asked for a shard; None where it is not known yet which."""
        from rlhf.models.chat_template import render_prompts

        if index is None:
            return None
        config = self._job.config
        prompts = self._prompts.of_shard(index)
        rendered, counts = render_prompts(prompts, self._tokenizer, self._limit, self._judges)
        self._in_hand[index] = rendered, counts
        temperatures = temperatures_of(config.n, config.temperatures)
        # The n requests of a prompt stand side by side: `write` finds their candidates by their place.
        requests = []
        for row, prompt_token_ids in rendered:
            for sample, temperature in enumerate(temperatures):
                seed = None
                if config.seeds is Seeds.request:
                    seed = seed_of(self._job.seed, config.iteration, row["id"], sample)
                requests.append(Request(prompt_token_ids, temperature, seed))
        return index, requests

    def write(self, index: int, candidates: list[Candidate], sampling: Sampling) -> None:
        """Write a shard of the candidates that its requests gave, in their order.

        Example of a row:
            {"id": "5f1c…", "messages": […], "prompt_token_ids": [1, 306],
                "candidates": [{"text": "Yo.", …}, {"text": "Hello!", …}]}
        Example of the counts:
            {"responses": 2, "truncated": 0, "response_tokens": 9}
        """
        job = self._job
        # Nobody else notices: sampling from NaN raises no error.
        if any(math.isnan(candidate.logprob) for candidate in candidates):
            raise ModelError(
                f"{job.inputs['policy']}: its probabilities are no numbers (NaN): its weights hold some, or "
                f"overflow in {job.config.dtype}. Save the model anew, or set model.dtype=float32."
            )
        rendered, counts = self._in_hand.pop(index)
        rows = []
        for number, (row, prompt_token_ids) in enumerate(rendered):
            first = number * job.config.n
            candidate_rows = []
            for candidate in candidates[first : first + job.config.n]:
                candidate_rows.append(_with_text(candidate, self._tokenizer, sampling))
            rows.append(
                {
                    "id": row["id"],
                    "messages": row["messages"],
                    "prompt_token_ids": prompt_token_ids,
                    "candidates": candidate_rows,
                }
            )
        counts_of_samples = {
            "responses": len(candidates),
            "truncated": sum(candidate.truncated for candidate in candidates),
            "response_tokens": sum(len(candidate.token_ids) for candidate in candidates),
        }
        write_shard(job.shard_path(index), CANDIDATES_SCHEMA, rows, counts | counts_of_samples)


def _with_text(candidate: Candidate, tokenizer: Any, sampling: Sampling) -> dict[str, Any]:
    """A candidate as a row holds it, with the text of its tokens up to the terminator."""
    text = text_of(candidate.token_ids, tokenizer, [] if candidate.truncated else sampling.stop_token_ids)
    return vars(candidate) | {"text": text}


def _refuse_if_nothing_is_left(job: Job[GenerateStage], tokenizer: Any, limit: int) -> None:
    """Raise when there were prompts and none was sampled; every worker asks, the last one sees all shards."""
    total = num_shards(job)
    if len(shard_paths(job.out_path)) < total:
        return
    counts = sum_counts(job.out_path)
    if counts.get("prompts_sampled") or not counts.get("prompts"):
        return
    reasons = set(dropped(counts))
    if reasons == {"prompt_too_long"}:
        raise DataError(
            f"{job.inputs['prompts']}: all {counts['prompts']} prompts have more than {limit} "
            "tokens. Raise generate.max_prompt_tokens, lower generate.max_new_tokens (the context "
            "holds both), or give shorter prompts."
        )
    # Counts do not say why a template refused: the first prompt that one refuses again is the example.
    judges = _judges(job)
    prompts = _Prompts(job)
    for index in range(total):
        for row in prompts.of_shard(index):
            error = _refusal(tokenizer, judges, row["messages"])
            if error is not None:
                all_counts = what_became(counts, "prompts")
                raise TemplateRefuses(f"No prompt can be sampled ({all_counts}). {error}") from error


def _refusal(tokenizer: Any, judges: list[Any], messages: list[Message]) -> TemplateRefuses | None:
    """Why the policy's template, or else a judge's, does not take a prompt; None where all take it."""
    from rlhf.models.chat_template import refusal_of_judge, render_prompt

    try:
        render_prompt(tokenizer, messages)
    except TemplateRefuses as error:
        return error
    for judge in judges:
        refusal = refusal_of_judge(judge, messages)
        if refusal is not None:
            return refusal
    return None


class _Prompts:
    """The prompts of a job by shard. A file is read once as long as shards are asked for in rising order."""

    def __init__(self, job: Job[GenerateStage]) -> None:
        self._path = job.input_path("prompts")
        self._shard_size = job.config.shard_size
        self._slice = job.config.slice
        self._rows: Iterator[dict[str, Any]] = iter(())
        self._next: int | None = None
        """Number of the row that `_rows` gives next; None before the file is open."""

    def of_shard(self, index: int) -> list[dict[str, Any]]:
        """Rows of `PROMPT_SCHEMA`."""
        if self._path.is_dir():
            return list(read_rows(self._path / shard_name(index)))
        start, stop = sliced_rows(self._path, self._slice)
        # A slice is cut into shards anew from its own beginning.
        first = start + index * self._shard_size
        last = min(first + self._shard_size, stop)
        if self._next is None or self._next > first:
            self._rows = read_rows(self._path, start=first)
            self._next = first
        rows = list(itertools.islice(self._rows, first - self._next, last - self._next))
        self._next = last
        return rows
