"""Stage processes on this machine: fed with shards, watched, ended."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rlhf.launch import attending
from rlhf.launch.attending import Told, Watched
from rlhf.launch.handout import Handout
from rlhf.launch.machine import environments
from rlhf.launch.node import Node
from rlhf.run.job import Job, Kind, Outcome
from rlhf.run.stage_table import needs_engine


@dataclass
class LocalLauncher:
    """Starts workers as child processes of this driver, and ends no other process.

    `preload` forks them from processes that have their imports done once (`rlhf.launch.server`).
    """

    run_folder: Path
    token: str
    preload: bool = True
    device: str = "auto"
    told: Told = field(default_factory=Told)

    def warm_up(self, engines: bool = True, rows: bool = True) -> None:
        """Begin the imports in the background.

        Args:
            engines: whether to begin the heavy ones too.
            rows: whether rows will be read or written; else no more than rules will be called.
        """
        self._node().warm_up(engines, rows)

    def launch(self, job: Job[Any], kind: Kind, shards: list[int]) -> Outcome:
        """Run one stage attempt to its end.

        Raises:
            UserError: a worker found the user's input wrong.
            WorkerFailed: a worker raised or died; the first one's message.
        """
        node = self._node()
        engines = needs_engine(job.stage, job.config)
        node.warm_up(engines, rows=job.stage != "call_rule")
        # Until a worker says more: with its server's imports that may take a minute on a busy machine.
        self.told.progress(0, 0, "importing torch and the engines" if engines else "starting")
        workers: list[Watched] = []
        try:
            tensor_parallel = int(getattr(job.config, "tensor_parallel_size", 1))
            worker_environments = environments(kind, job.compute, tensor_parallel, len(shards))
            world_size = len(worker_environments)
            # One by one: whatever fails here or later, those that were started are ended.
            for rank, environment in enumerate(worker_environments):
                log = node.start(job, rank, world_size, environment)
                state = partial(node.state, rank)
                workers.append(Watched(f"{job.name}.{rank}", rank, log, attending.patience_of(job), state))
            self._attend(job, node, workers, Handout(shards, world_size))
        finally:
            node.end()
        outcome = workers[0].outcome
        assert outcome is not None, "rank 0 ended well and said nothing"
        return outcome

    def _node(self) -> Node:
        return Node(self.run_folder, self.token, self.preload, self.device)

    def _attend(self, job: Job[Any], node: Node, workers: list[Watched], shards: Handout) -> None:
        """Hand out shards and take in what workers report, until all of them have left."""
        progress_at = time.monotonic()
        while True:
            working = [worker for worker in workers if worker.is_open]
            if not working:
                return
            for rank, kind, body in node.messages(1.0):
                self._attend_to(job, node, workers[rank], kind, body, shards)
            attending.watch(job, [worker for worker in workers if worker.is_open], self.told)
            now = time.monotonic()
            if shards.total and now - progress_at > 1.0:
                progress_at = now
                self.told.progress(shards.num_made(), shards.total, "shards")

    def _attend_to(
        self, job: Job[Any], node: Node, worker: Watched, kind: str, body: Any, shards: Handout
    ) -> None:
        """Take in one message of a worker, and answer it.

        Raises:
            UserError: it found the user's input wrong.
            WorkerFailed: it raised, or died without an outcome.
        """
        asked = attending.take_in(job, worker, kind, body, self.told)
        if asked is None:
            return
        if asked[0] == "next":
            shard = shards.take(worker.rank)
            attending.note_answer(worker, shard)
            node.send(worker.rank, shard)
        else:
            shards.made(worker.rank, asked[1])
            self.told.progress(shards.num_made(), shards.total, "shards")
            attending.note_made(job, worker, asked[1], self.told)
