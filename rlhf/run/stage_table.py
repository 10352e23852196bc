"""The table of stages: which processes run one, what it is sharded by, what it is told, which function does
it.

Adding a stage is a row here, its function, and its class in `rlhf.config.stage_configs`. The name of a stage
is also that of its config section (where it has one), of its folder in a run, and of its log.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config import stage_configs as told
from rlhf.config.schema import ComputeConfig
from rlhf.data.shards import TOKENS, num_rows, shard_paths
from rlhf.run.job import ANSWERS, Job, Kind, Outcome, Worker


@dataclass(frozen=True)
class Stage:
    """How one stage runs.

    `function` is `module:function`; importing this table imports none of them. `sharded_by` names the inputs
    whose shards it follows, one output shard for each; the first that a job has counts, and without any the
    stage has no shards. `config` is the class of `Job.config`, or a base of it. `kind_under_zero3` is what
    takes the place of `kind` where the weights are shared out over the training ranks; None changes nothing.
    `needs_torch` is true of one that is `single` and all the same needs what the others import.
    `file_of_rank_0` is what one worker alone writes beside the shards.
    """

    kind: Kind
    config: type
    function: str
    sharded_by: tuple[str, ...] = ()
    kind_under_zero3: Kind | None = None
    needs_torch: bool = False
    file_of_rank_0: str | None = None


STAGES = {
    "world": Stage(Kind.single, told.WorldConfig, "rlhf.stages.world:run"),
    "dataset": Stage(Kind.single, told.DatasetStage, "rlhf.stages.dataset:run"),
    "prompts": Stage(Kind.single, told.PromptsStage, "rlhf.stages.split_prompts:run"),
    "sft": Stage(Kind.training, told.SftStage, "rlhf.training.sft:train_sft"),
    "reward_model": Stage(Kind.training, told.RewardModelStage, "rlhf.training.train_judge:train_judge"),
    "generate": Stage(
        Kind.inference,
        told.GenerateStage,
        "rlhf.stages.generate:run",
        ("prompts",),
        file_of_rank_0=TOKENS,
    ),
    "score": Stage(Kind.inference, told.ScoreStage, "rlhf.stages.score:run", ("candidates",)),
    "mix": Stage(Kind.single, told.MixStage, "rlhf.stages.mix:run", ("scores",)),
    "pair": Stage(Kind.single, told.PairSettings, "rlhf.stages.pair:run", ("candidates",)),
    "preferences": Stage(Kind.single, told.GivenPairsStage, "rlhf.stages.given_pairs:run"),
    "reference": Stage(
        Kind.inference,
        told.ReferenceStage,
        "rlhf.training.reference:compute_logprobs",
        ("pairs", "candidates"),
        kind_under_zero3=Kind.training,
    ),
    "dpo": Stage(Kind.training, told.DpoStage, "rlhf.training.dpo:train_dpo"),
    "raft": Stage(Kind.training, told.RaftStage, "rlhf.training.raft:train_raft"),
    "export": Stage(Kind.single, told.ExportStage, "rlhf.stages.export:run"),
    "read": Stage(Kind.single, told.ReadStage, "rlhf.stages.read:run"),
    "call_rule": Stage(Kind.single, told.CallRuleStage, "rlhf.preflight.rules:run"),
    "preflight": Stage(Kind.single, told.PreflightStage, "rlhf.preflight.tokenizers:run"),
    "track": Stage(Kind.single, told.TrackStage, "rlhf.stages.track:run", needs_torch=True),
}


def stage_function(name: str) -> Callable[[Job[Any], Worker], Outcome]:
    """The function of a stage; imports its module, and with it the engines it needs."""
    module_name, _, function_name = STAGES[name].function.partition(":")
    module = importlib.import_module(module_name)
    function: Callable[[Job[Any], Worker], Outcome] = getattr(module, function_name)
    return function


def kind_of(stage: str, compute: ComputeConfig) -> Kind:
    """Which processes run a stage on this machine."""
    row = STAGES[stage]
    if compute.zero_stage == 3 and row.kind_under_zero3 is not None:
        return row.kind_under_zero3
    return row.kind


def needs_engine(stage: str, config: Any) -> bool:
    """Whether a stage loads or trains a model with the libraries that take ten seconds to import.

    The others start at once (`rlhf.launch.server`): what they may need of those libraries after all, as
    `world` does, they import themselves.

    Args:
        stage: a name in `STAGES`.
        config: what it is told, or a mapping of it.
    """
    if STAGES[stage].needs_torch:
        return True
    # A rule, and a generative judge behind a server, need none of them.
    for name in ("rule", "served_model"):
        value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
        if value is not None:
            return False
    return STAGES[stage].kind is not Kind.single


def folders_beside(job: Job[Any]) -> tuple[str, ...]:
    """The folders in which a stage writes, for each shard, another of the same name before it."""
    return (ANSWERS,) if isinstance(job.config, told.GenerativeStage) else ()


def num_shards(job: Job[Any]) -> int:
    """How many shards a job makes, 0 where its stage is not cut in shards.

    As many as the input has that the stage is sharded by. An input that is one file (prompts) is cut here, by
    `slice` and `shard_size` of the stage's config.
    """
    for name in STAGES[job.stage].sharded_by:
        for key in sorted(job.inputs):
            # `scores` also means scores.NAME of each judge; all of them have the same shards
            if key != name and not key.startswith(f"{name}."):
                continue
            path = job.input_path(key)
            if path.is_dir():
                return len(shard_paths(path))
            start, stop = sliced_rows(path, job.config.slice)
            return math.ceil((stop - start) / job.config.shard_size)
    return 0


def sliced_rows(path: Path, wanted: Sequence[int] | None) -> tuple[int, int]:
    """The rows [start, stop) of a Parquet file that a slice names, all for None; a slice may end behind the
    file.
    """
    total = num_rows(path)
    if wanted is None:
        return 0, total
    start, stop = wanted
    return start, min(stop, total)
