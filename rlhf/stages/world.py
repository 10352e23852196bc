"""The quickstart's synthetic world: tokenizer, base policy, judge to be trained, and every data
file, from the seed.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf.config.stage_configs import WorldConfig
from rlhf.data.json_text import json_text
from rlhf.data.shards import write_atomic
from rlhf.run.job import Job, Outcome, Worker


def run(job: Job[WorldConfig], worker: Worker) -> Outcome:
    """Write the world into `job.out`; the same seed gives the same bytes.

    That is the folders `model` and `judge` and the files `sft.jsonl`, `preferences.jsonl`,
    `judge_prompts.jsonl`, `prompts.jsonl` and `held_out.jsonl`.
    """
    gc.disable()  # for the imports: it saves a fifth of their time
    import torch

    from rlhf.world import build, tasks
    from rlhf.world.tokenizer import build_tokenizer

    gc.enable()
    # So small a model gains nothing by a second thread, and meanwhile the engines are imported on that core
    # (`rlhf.launch.preload`). The bytes are the same with two.
    torch.set_num_threads(1)
    config = job.config
    seed = job.seed
    out = job.out_path
    rows_by_file: dict[str, Iterable[Mapping[str, Any]]] = {
        "sft": tasks.sft_rows(seed, config.num_sft_examples),
        "preferences": tasks.preference_rows(seed, config.num_preferences),
        "judge_prompts": tasks.prompt_rows(seed, "judge_prompts", config.num_judge_prompts),
        "prompts": tasks.prompt_rows(seed, "prompts", config.num_prompts),
        "held_out": tasks.prompt_rows(seed, "held_out", config.num_held_out),
    }
    # Each draws from a stream of its own, so none depends on the number of the others.
    counts = {}
    worker.progress(0, 0, "making up the data")
    for name, rows in rows_by_file.items():
        counts[name] = _write_jsonl(out / f"{name}.jsonl", rows)
    tokenizer = build_tokenizer()
    base_rows = tasks.base_rows(seed, config.num_base_examples)

    def tell(step: int, steps: int) -> None:
        worker.progress(step, steps, "steps of the base model")

    model = build.pretrain(tokenizer, base_rows, config, seed, out, job.compute.num_checkpoints, tell)
    worker.progress(0, 0, "writing the policy and the judge")
    build.save_model(model, tokenizer, out / "model")
    # It has still to be trained, by the run's reward-model stage.
    judge = build.judge_from(model, seed)
    build.save_model(judge, tokenizer, out / "judge")
    counts["base"] = config.num_base_examples
    return Outcome(counts=counts, metrics={"num_parameters": model.num_parameters()})


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows, one a line; returns how many."""
    lines = []
    for row in rows:
        # Sorted keys: files of the same rows have the same digest, in whatever order the keys were set.
        line = json_text(row, ascii_only=False, sort_keys=True)
        lines.append(line + "\n")
    write_atomic(path, "".join(lines).encode())
    return len(lines)
