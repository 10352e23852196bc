"""Stage `raft`: supervised fine-tuning on each prompt's best response (RAFT, arXiv 2304.06767, Algorithm 1).

Inputs: `model` (the policy), `candidates` (shards and `tokens.json` of `generate`) and `scores`. What is
trained on are the token ids that were sampled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from rlhf.config.stage_configs import RaftStage
from rlhf.data.best_responses import best_responses
from rlhf.data.records import what_became
from rlhf.errors import DataError
from rlhf.run.job import Job, Outcome, Worker
from rlhf.training.sft import NothingToTrain, fine_tune
from rlhf.training.tokens import IGNORED, TokenRow


def train_raft(job: Job[RaftStage], worker: Worker) -> Outcome:
    """Fine-tune the policy on its best responses; write `model/` and `metrics.jsonl`. Every rank calls this.

    Counts: `prompts` = `conversations` + `held_out` + the sum of `dropped/<reason>`; `cut` responses.

    Raises:
        DataError: no prompt gives a response to train on.
        ConfigError: as `rlhf.training.sft.train_sft`.
    """
    counts: Counter[str] = Counter(prompts=0, cut=0)
    try:
        return fine_tune(job, worker, partial(_rows, job), counts)
    except NothingToTrain:
        raise DataError(
            f"{job.inputs['candidates']}: no response to train on ({what_became(counts, 'prompts')}). "
            "truncated: raise generate.max_new_tokens or set pair.truncated=allow; too_few_candidates: raise "
            "generate.n; non_finite: look at the judge, whose scores are no numbers; empty: look at the "
            "policy, which says nothing; long_prompt: raise raft.max_length."
        ) from None


def _rows(job: Job[RaftStage], tokenizer: Any, counts: Counter[str]) -> Iterator[TokenRow]:
    """The best response to each prompt behind it, cut at the end to `max_length`; no loss on the prompt."""
    config = job.config
    folders = job.input_path("candidates"), job.input_path("scores")
    for prompt, response in best_responses(*folders, config.pairing, counts):
        # As DPO has it: the response is cut, never the prompt.
        room = config.max_length - len(prompt)
        if room < 1:
            counts["dropped/long_prompt"] += 1
            continue
        counts["cut"] += len(response) > room
        kept = response[:room]
        yield {"input_ids": [*prompt, *kept], "labels": [*[IGNORED] * len(prompt), *kept]}
