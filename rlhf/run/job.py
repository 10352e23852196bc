"""The contract between the driver and a stage.

A stage is a function `(job, worker) -> Outcome` with a row in `rlhf.run.stage_table`. It is called in every
worker, and rank 0's outcome is recorded. It reads finished artifacts (`job.inputs`), writes into `job.out`,
and returns what it counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rlhf.config.stage_configs import StageCompute
from rlhf.data.shards import shard_name

ConfigT = TypeVar("ConfigT")
"""A class of `rlhf.config.stage_configs`."""


JUDGE_INPUT = "judge."
"""Before the name of a judge: the inputs of `generate` whose chat templates must take every prompt."""


KEPT_ANSWERS = ".answers"
"""In the folder of unfinished work: what judges have answered so far; hidden, so no part of the artifact."""
ANSWERS = "answers"
"""In a `score` artifact: what a generative judge has answered, a shard for each shard of scores."""


class Kind(Enum):
    """Which processes run a stage."""

    single = "one process, no accelerator"
    inference = "independent workers that take shards, one per tensor-parallel group"
    training = "ranks of one process group"


@dataclass(frozen=True)
class Job(Generic[ConfigT]):
    """One attempt at one stage.

    `config` is what the stage is told (`rlhf.config.stage_configs`): everything in it that is compared is
    part of the fingerprint; `compute` is not. `inputs` maps a name to the folder (or file) of a finished
    artifact.

    Example:
        Job("pair", "iteration_001/pair", PairSettings(), {"candidates": "runs/x/iteration_001/generate",
        "scores": "runs/x/iteration_001/score"}, "runs/x/iteration_001/.pair.partial", 42)
    """

    stage: str
    name: str
    config: ConfigT
    inputs: dict[str, str]
    out: str
    seed: int
    compute: StageCompute = field(default_factory=StageCompute)
    shards_out: str | None = None
    """Where a worker writes its shards, from where the driver takes them (`rlhf.run.attempt_folder`); None is
    `out`."""

    @property
    def out_path(self) -> Path:
        """The folder the stage writes in."""
        return Path(self.out)

    @property
    def shards_path(self) -> Path:
        """The folder that this worker writes its shards in, and what lies beside them."""
        return Path(self.shards_out or self.out)

    @property
    def writer(self) -> str:
        """What tells this worker from those of any other attempt on a cluster; "" on one machine."""
        return "" if self.shards_out is None else "-".join(Path(self.shards_out).parts[-2:])

    def shard_path(self, index: int) -> Path:
        """Where a shard is written."""
        return self.shards_path / shard_name(index)

    def input_path(self, name: str) -> Path:
        """The folder or file of one input."""
        return Path(self.inputs[name])


@dataclass
class Outcome:
    """What a stage reports: `counts` are whole numbers (rows in, out, dropped by reason), `metrics` anything
    JSON.
    """

    counts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


class Worker(Protocol):
    """A stage process, as the stage sees it."""

    rank: int
    world_size: int
    num_threads: int

    def shards(self) -> Iterator[int]:
        """Shard numbers this worker should make, each handed to one worker only; finished ones are not
        given. Who asks for the next one has made the one before.
        """
        ...

    def shards_ahead(self) -> Iterator[int | None]:
        """The same for a stage that begins a shard before those it holds are made; it says `made` of each.

        None means not yet: the shards that are left are for workers that hold fewer. It is never the answer
        to who holds none, so ask again when one is made.
        """
        ...

    def made(self, index: int) -> None:
        """Tell the driver that a shard of `shards_ahead` is written."""
        ...

    def progress(self, done: float, total: float, note: str = "") -> None:
        """Tell the driver how far this worker is.

        With a total of 0 nothing can be counted, and `note` says what goes on: "loading the model".
        """
        ...

    def say(self, text: str) -> None:
        """Tell the person who watches what the stage's end would tell too late."""
        ...

    def keep(self, engine: object) -> None:
        """Keep something to the end of the process, which gives all back at once.

        vLLM's engines take a second and a half to be taken down in order, at the end of every stage.
        """
        ...
