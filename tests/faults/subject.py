"""A small run of real stages without torch, in a process of its own: read, score with a rule, pair, and reuse
of all.

Forked from a process that has the imports done, so that hundreds of kills take a minute.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlhf.config.schema import Config
from rlhf.config.stage_configs import PairSettings, ReadStage
from rlhf.data.shards import read_all_rows
from rlhf.errors import UserError, writing
from rlhf.loop.judges import rule_config
from rlhf.run.artifact import Artifact
from rlhf.run.job import Job, Kind, Outcome
from rlhf.run.lock import hold_run
from rlhf.run.plan import Run
from rlhf.run.stage_table import stage_function
from tests.faults import hooks

NUM_PROMPTS, SHARD_SIZE = 10, 4
for _stage in ("read", "score", "pair"):
    stage_function(_stage)
for _module in ("rlhf.scoring.tournament", "rlhf.scoring.choose_judge", "pandas", "pyarrow.compute"):
    importlib.import_module(_module)


def length(messages: Any, response: str) -> float:
    """The rule that judges."""
    return float(len(response))


class Here:
    """A launcher that runs a stage in this process and writes down each shard it begins."""

    rank, world_size, num_threads = 0, 1, 1

    def __init__(self, begun: Path) -> None:
        self.begun = begun

    def launch(self, job: Job, kind: Kind, shards: list[int]) -> Outcome:
        """Run one stage attempt."""
        self.job, self.todo = job, shards
        return stage_function(job.stage)(job, self)

    def shards(self) -> Iterator[int]:
        """Those that are missing."""
        for index in self.todo:
            descriptor = os.open(self.begun, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, f"{self.job.out} {index}\n".encode())
            os.close(descriptor)
            yield index

    def say(self, text: str) -> None:
        pass

    def progress(self, done: float, total: float, note: str = "") -> None:
        """Nobody watches."""

    def keep(self, engine: object) -> None:
        """Nothing: the process ends after the stage."""


class Said:
    """A console that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """Keep it."""
        self.lines.append(text)

    def begin(self, *said: Any) -> None:
        """Nothing to keep."""

    end = begin
    done = begin


def prepare(folder: Path) -> None:
    """The file the run is made of."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"prompt": f"question {i}", "responses": ["a" * (i % 3 + 1), "bbbb", "c" * 6]}
        for i in range(NUM_PROMPTS)
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def stages(run: Run, folder: Path) -> list[Artifact]:
    """Everything the run makes."""
    file = Artifact(folder / "in.jsonl", "in")
    read = run.stage("read", "read", ReadStage("responses", SHARD_SIZE), {"file": file})
    candidates = read.part("candidates")
    rule = rule_config(Config(), "tests.faults.subject:length", "rule")
    scores = run.stage("score", "score", rule, {"candidates": candidates})
    return [
        read,
        scores,
        run.stage("pair", "pair", PairSettings(), {"candidates": candidates, "scores": scores}),
    ]


def whole(folder: Path) -> dict[str, Any]:
    """Do it in `folder/run`, take it over into `folder/again`; what came out."""
    said = Said()
    digests: dict[str, str | None] = {}
    made: list[Artifact] = []
    for name, reuse in (("run", []), ("again", [str(folder / "run")])):
        with hold_run(folder / name, said.say):
            plan = Run(folder / name, Config(reuse=reuse), planning=True)
            stages(plan, folder)
            plan.refuse_changes()
            run = Run(folder / name, Config(reuse=reuse), Here(folder / "begun"), said)  # type: ignore[arg-type]
            made = stages(run, folder)
            run.verify(*made)
            digests |= {f"{name}/{artifact.path.name}": artifact.digest for artifact in made}
    ids = {artifact.path.name: [row["id"] for row in read_all_rows(artifact.path)] for artifact in made[1:]}
    return {"digests": digests, "ids": ids, "said": said.lines}


def attempt(folder: Path, event: hooks.Event | None = None, before: Callable[[], None] | None = None) -> int:
    """Run `whole` in a child; its exit code, negative for a signal, 2 for an error of the user.

    What came out, or the error, stands in `result.json` or `error.txt`. `event` sees every boundary.
    """
    for name in ("result.json", "error.txt"):
        (folder / name).unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            if before is not None:
                before()
            if event is not None:
                hooks.install(folder, event)
            with writing():  # as `rlhf.command.line.guarded`
                result = json.dumps(whole(folder))
            (folder / "result.json").write_text(result)
            os._exit(0)
        except UserError as error:
            (folder / "error.txt").write_text(str(error))
            os._exit(2)
        except BaseException:
            (folder / "error.txt").write_text(traceback.format_exc())
            traceback.print_exc(file=sys.stderr)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
