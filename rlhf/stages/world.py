"""The quickstart's synthetic world: tokenizer, base policy, judge to be trained, and every data file, from the seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf.config.stage_configs import WorldConfig
from rlhf.data.shards import write_atomic
from rlhf.run.job import Job, Outcome, Worker


def run(job: Job[WorldConfig], worker: Worker) -> Outcome:
    """Write the world into `job.out`; the same seed gives the same bytes.

    That is the folders `model` and `judge` and the files `sft.jsonl`, `preferences.jsonl`, `judge_prompts.jsonl`,
    `prompts.jsonl` and `held_out.jsonl`.
    """
    from rlhf.world import build, tasks
    from rlhf.world.tokenizer import build_tokenizer

    config, seed, out = job.config, job.seed, job.out_path
    counts = {
        "sft": _write_jsonl(out / "sft.jsonl", tasks.sft_rows(seed, config.num_sft_examples)),
        "preferences": _write_jsonl(out / "preferences.jsonl", tasks.preference_rows(seed, config.num_preferences)),
    }
    for split, number in (
        ("judge_prompts", config.num_judge_prompts),
        ("prompts", config.num_prompts),
        ("held_out", config.num_held_out),
    ):
        counts[split] = _write_jsonl(out / f"{split}.jsonl", tasks.prompt_rows(seed, split, number))
    tokenizer = build_tokenizer()
    model = build.pretrain(tokenizer, tasks.base_rows(seed, config.num_base_examples), config, seed, out)
    build.save_model(model, tokenizer, out / "model")
    build.save_model(build.judge_from(model, seed), tokenizer, out / "judge")
    counts["base"] = config.num_base_examples
    return Outcome(counts=counts, metrics={"num_parameters": model.num_parameters()})


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows, one a line; returns how many."""
    lines = [json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows]
    write_atomic(path, "".join(lines).encode())
    return len(lines)
