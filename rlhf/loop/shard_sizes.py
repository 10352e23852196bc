"""How many prompts a shard of responses has: `generate.shard_size`, fewer where workers would be idle, and
more where a folder would hold too many files.

How prompts are cut is part of what the files are. So it is settled when the first such stage of a run begins,
and stays as it is there when the run goes on with other GPUs, or was begun under other rules.
"""

from __future__ import annotations

import math
from typing import Any

from rlhf.config.schema import Config
from rlhf.data.shards import MOST_SHARDS, fewest_rows
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run
from rlhf.run.refusal import UNKNOWN

SMALLEST_SHARD = 8
"""Prompts: fewer are not worth an engine's start."""
_SHARDS_EACH = 4
"""Of one worker in an iteration: who is slower makes fewer of them, and a kill costs a quarter at most."""


def held_out_shard_size(cfg: Config, run: Run, num_workers: int) -> int:
    """Prompts of one shard of the held-out ones: so few that every worker has a shard.

    They are few: all of them could be one shard of `generate.shard_size`, and one GPU would work.
    """
    num_prompts = cfg.prompts.num_held_out
    evenly = math.ceil(num_prompts / num_workers)
    return _settled(cfg, run, "iteration_*/held_out/generate", evenly, num_prompts)


def train_shard_size(cfg: Config, run: Run, num_workers: int) -> int:
    """Prompts of one shard of an iteration: so few that every worker has some, where there are several."""
    num_prompts = cfg.prompts.num_per_iteration
    evenly = cfg.generate.shard_size
    if num_workers > 1:
        evenly = math.ceil(num_prompts / (_SHARDS_EACH * num_workers))
    return _settled(cfg, run, "iteration_*/generate", evenly, num_prompts)


def judge_shard_size(cfg: Config, run: Run, prompts: Artifact) -> Any:
    """Prompts of one shard of those that a judge's own pairs are made of; `UNKNOWN` before they are read."""
    if prompts.digest is None:
        return UNKNOWN
    return _settled(cfg, run, "judge/generate", cfg.generate.shard_size, prompts.counts["train"])


def _settled(cfg: Config, run: Run, pattern: str, evenly: int, num_prompts: int) -> int:
    """What such a stage of the run has been told already; else `evenly` within the limits."""
    asked_for = cfg.generate.shard_size
    fewest = fewest_rows(num_prompts)
    largest = max(asked_for, fewest)
    suits = min(largest, max(SMALLEST_SHARD, evenly, fewest))
    recorded = run.recorded_config(pattern)
    stage = pattern.removeprefix("iteration_*/")
    if recorded is None:
        if fewest > asked_for and not run.planning:
            run.say_once(
                f"  ! {stage}: shards of {fewest} prompts, not generate.shard_size={asked_for}: "
                f"{num_prompts} prompts would be {math.ceil(num_prompts / asked_for)} shards, and a folder "
                f"folder is to hold no more than {MOST_SHARDS}."
            )
        return suits
    settled = int(recorded["shard_size"])
    if settled < suits and not run.planning:
        run.say_once(
            f"  ! {stage}: shards of {settled} prompts, as when the run began; {suits} would suit "
            f"generate.shard_size={asked_for}, the number of prompts and the workers there are now, but "
            "where shards end is part of what is made. A new run_dir begins with them."
        )
    # A run of `reuse` may have had another limit than the one that is asked for now.
    return min(largest, settled)
