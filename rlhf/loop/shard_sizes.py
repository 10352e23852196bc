"""How many prompts a shard of responses has: `generate.shard_size`, or fewer where workers would be idle.

How prompts are cut is part of what the files are. So it is settled when the first such stage of a run begins,
and stays as it is there when the run goes on with other GPUs.
"""

from __future__ import annotations

import math

from rlhf.config.schema import Config
from rlhf.run.plan import Run

SMALLEST_SHARD = 8
"""Prompts: fewer are not worth an engine's start."""
_SHARDS_EACH = 4
"""Of one worker in an iteration: who is slower makes fewer of them, and a kill costs a quarter at most."""


def held_out_shard_size(cfg: Config, run: Run, num_workers: int) -> int:
    """Prompts of one shard of the held-out ones: so few that every worker has a shard.

    They are few: all of them could be one shard of `generate.shard_size`, and one GPU would work.
    """
    evenly = math.ceil(cfg.prompts.num_held_out / num_workers)
    return _settled(cfg, run, "iteration_*/held_out/generate", evenly)


def train_shard_size(cfg: Config, run: Run, num_workers: int) -> int:
    """Prompts of one shard of an iteration: so few that every worker has some, where there are several."""
    evenly = cfg.generate.shard_size
    if num_workers > 1:
        evenly = math.ceil(cfg.prompts.num_per_iteration / (_SHARDS_EACH * num_workers))
    return _settled(cfg, run, "iteration_*/generate", evenly)


def _settled(cfg: Config, run: Run, pattern: str, evenly: int) -> int:
    """What such a stage of the run has been told already; else `evenly` within the limits."""
    largest = cfg.generate.shard_size
    suits = min(largest, max(SMALLEST_SHARD, evenly))
    recorded = run.recorded_config(pattern)
    if recorded is None:
        return suits
    settled = int(recorded["shard_size"])
    if settled < suits and not run.planning:
        stage = pattern.removeprefix("iteration_*/")
        run.say_once(
            f"  ! {stage}: shards of {settled} prompts, as when the run began; {suits} would suit "
            f"generate.shard_size={largest} and the workers there are now, but where shards end is part of "
            "what is made. A new run_dir begins with them."
        )
    # A run of `reuse` may have had another limit than the one that is asked for now.
    return min(largest, settled)
