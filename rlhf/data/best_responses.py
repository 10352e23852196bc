"""The best of each prompt's scored responses, as token ids to learn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.config.schema import PairSettings
from rlhf.data.pairing import Drop, candidate_pool, training_target
from rlhf.data.records import Candidate, ScoredPrompt
from rlhf.data.scored_shards import read_terminators, scored_shard
from rlhf.data.shards import shard_name, shard_paths


def best_responses(
    candidates: Path, scores: Path, config: PairSettings, counts: Counter[str]
) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of each prompt and of its response with the highest penalised score, prompt by prompt.

    Which responses may be chosen, and by what score, is as for pairs (`rlhf.data.pairing`), and so are the
    reasons to drop a prompt, but that one usable response is enough; equal scores are no reason, of them the
    first is taken.

    Args:
        candidates: a folder of shards, with `tokens.json`.
        scores: the folder of their scores.
        config: `length_penalty`, `truncated` and `num_candidates` of it are looked at.
        counts: `prompts` and `dropped/<reason>` are added to.

    Raises:
        DataError: the two folders do not belong together, or a response ends in no terminator.
    """
    terminators = read_terminators(candidates)
    for index in range(len(shard_paths(candidates))):
        name = shard_name(index)
        tables = scored_shard(candidates / name, scores / name)
        for row, scores_row in zip(*(table.to_pylist() for table in tables), strict=True):
            counts["prompts"] += 1
            prompt = _scored_prompt(row, scores_row["scores"])
            pool = candidate_pool(prompt, config, least=1)
            if isinstance(pool, Drop) or not pool.choosable:
                reason = pool if isinstance(pool, Drop) else Drop.truncated
                counts[f"dropped/{reason.value}"] += 1
                continue
            # Of equal scores the first: RAFT takes the argmax, and copying itself does the policy no harm.
            best = pool.best_first(pool.choosable)[0]
            yield prompt.prompt_token_ids, training_target(prompt.candidates[best], terminators)


def _scored_prompt(row: Mapping[str, Any], scores: list[float]) -> ScoredPrompt:
    responses = []
    for candidate in row["candidates"]:
        # The rest of a candidate is not read: nothing here looks at it.
        known = candidate["token_ids"], candidate["text"], candidate["finish_reason"]
        responses.append(Candidate(*known, logprob=0.0, seed=None, temperature=0.0))
    return ScoredPrompt(
        row["id"], tuple(row["messages"]), row["prompt_token_ids"], tuple(responses), tuple(scores)
    )
