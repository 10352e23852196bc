"""Run a stage as its processes would, without the launcher: in this process, or as ranks of a process
group."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

from rlhf.config.choices import Device
from rlhf.config.fields import filled
from rlhf.config.schema import ComputeConfig
from rlhf.config.stage_configs import StageCompute
from rlhf.data.shards import shard_name
from rlhf.launch.ports import free_port
from rlhf.run.job import Job, Outcome
from rlhf.run.stage_table import STAGES, num_shards, stage_function
from tests import forked


@dataclass
class FakeWorker:
    """A worker that takes every shard of its job that is not there yet."""

    rank: int = 0
    world_size: int = 1
    num_threads: int = 1
    out: str = ""
    num_shards: int = 0
    reported: list[tuple[float, float, str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def shards(self) -> Iterator[int]:
        """Missing shards in order."""
        for index in range(self.num_shards):
            if not (Path(self.out) / shard_name(index)).exists():
                yield index

    def shards_ahead(self) -> Iterator[int | None]:
        """The same: the only worker need not wait for others."""
        return self.shards()

    def made(self, index: int) -> None:
        """Nothing: who made what is seen from the files."""

    def progress(self, done: float, total: float, note: str = "") -> None:
        """Remember what was reported."""
        self.reported.append((done, total, note))

    def say(self, text: str) -> None:
        """Remember what was said, and print it to the rank's log."""
        self.said.append(text)
        print(text, flush=True)

    def keep(self, engine: object) -> None:
        """Nothing: this process has more to do after the stage."""


def make_job(
    stage: str,
    config: Any,
    inputs: dict[str, Path],
    out: Path,
    seed: int = 1,
    compute: dict[str, Any] | None = None,
    cls: type | None = None,
    **extra: Any,
) -> Job[Any]:
    """A job of a config section, on the CPU; `extra` overrides or adds config values, choices as text too."""
    out.mkdir(parents=True, exist_ok=True)
    told = config_of(cls or STAGES[stage].config, config, **extra)
    resolved = config_of(StageCompute, ComputeConfig(device=Device.cpu), **(compute or {}))
    return Job(stage, stage, told, {k: str(v) for k, v in inputs.items()}, str(out), seed, resolved)


def config_of(cls: type, section: Any = None, **values: Any) -> Any:
    """A stage's config with the values of a section and others; a choice or a section in it may be as in
    YAML."""
    hints = get_type_hints(cls)
    for name, value in values.items():
        hint = hints[name]
        if isinstance(hint, type) and issubclass(hint, Enum):
            values[name] = hint(value)
        elif isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
            values[name] = config_of(hint, None, **value)
    return filled(cls, section, **values)


def run_here(job: Job) -> Outcome:
    """Run an inference or single stage in this process."""
    return stage_function(job.stage)(job, FakeWorker(out=job.out, num_shards=num_shards(job)))


@dataclass
class Ranks:
    """Running ranks of a training stage."""

    processes: list[Any]
    job: Job

    def wait(self, timeout: float = 240) -> Outcome:
        """The outcome of rank 0; raises with the logs when a rank fails."""
        deadline = time.monotonic() + timeout
        while any(process.exitcode is None for process in self.processes):
            if any(process.exitcode for process in self.processes) or time.monotonic() > deadline:
                break
            self.processes[0].join(0.05)
        codes = [process.exitcode for process in self.processes]
        if any(code != 0 for code in codes):
            self.kill()
            raise AssertionError(f"exit codes {codes}\n{self.log()}")
        return Outcome(**json.loads((Path(self.job.out) / "outcome.test.json").read_text()))

    def log(self) -> str:
        """What the ranks printed."""
        return "\n".join(path.read_text() for path in sorted(Path(self.job.out).glob("rank*.log")))

    def kill(self) -> None:
        """SIGKILL every rank."""
        for process in self.processes:
            process.kill()
            process.join()


def start_ranks(job: Job, num_ranks: int = 1, hook: str = "") -> Ranks:
    """Start a training stage with so many ranks; `hook` is Python that each runs first.

    Ranks are forked from a process that has the imports done, so they start in no time.
    """
    context = multiprocessing.get_context("forkserver")
    port = free_port()
    processes = []
    for rank in range(num_ranks):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        processes.append(context.Process(target=_rank, args=(job, environment, hook), daemon=True))
        forked.start(processes[-1])
    return Ranks(processes, job)


def run_ranks(job: Job, num_ranks: int = 1, hook: str = "") -> Outcome:
    """Run a training stage with so many ranks to its end."""
    return start_ranks(job, num_ranks, hook).wait()


def _rank(job: Job, environment: dict[str, str], hook: str) -> None:
    log = os.open(
        Path(job.out) / f"rank{environment['RANK']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644
    )
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    try:
        exec(hook, {"job": job, "rank": rank})
        worker = FakeWorker(rank, world_size, out=job.out, num_shards=num_shards(job))
        outcome = stage_function(job.stage)(job, worker)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    if rank == 0:
        (Path(job.out) / "outcome.test.json").write_text(json.dumps(asdict(outcome)))
    os._exit(0)
