"""A stage's processes on the nodes of a Ray cluster: the same stages, folders and resume as on one."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlhf.errors import ConfigError, SmallerBatches, WorkerFailed
from rlhf.launch import attending
from rlhf.launch.attending import Told, Watched
from rlhf.launch.cluster import Conversation, RayCluster
from rlhf.launch.local import LocalLauncher
from rlhf.launch.machine import Group
from rlhf.launch.remote_node import NodeLost, RemoteNode
from rlhf.launch.remote_worker import require_inputs, watched
from rlhf.launch.shard_stage import ShardStage
from rlhf.run.attempt_folder import attempt_folder, end_attempts, pinned_ranks, take_all, take_checkpoints
from rlhf.run.job import Job, Kind, Outcome
from rlhf.run.stage_table import needs_engine

_MOST_LOSSES = 20
"""Attempts in a row that lost a node before another checkpoint was written."""


@dataclass
class RayLauncher:
    """Starts workers on the nodes of a cluster; stages of one process run beside the driver."""

    run_folder: Path
    token: str
    cluster: RayCluster
    preload: bool = True
    device: str = "auto"
    told: Told = field(default_factory=Told)

    def warm_up(self, engines: bool = True, rows: bool = True) -> None:
        """Begin the imports in the background, on all nodes that are there."""
        self._local().warm_up(False, rows)
        if not engines:
            return
        for node in self.cluster.nodes():
            node.actor.warm_up.remote(True)

    def launch(self, job: Job[Any], kind: Kind, shards: list[int]) -> Outcome:
        """Run one stage to its end, over the nodes that come and go.

        Raises:
            UserError: a worker found the user's input wrong.
            WorkerFailed: a worker raised or died on a node that lives, or nodes did not come.
        """
        if kind is Kind.single:
            return self._local().launch(job, kind, shards)
        self.told.progress(0, 0, "importing torch and the engines" if self._engines(job) else "starting")
        if kind is Kind.inference:
            return ShardStage(self.cluster, self.told, job, shards).run()
        return self._train(job)

    def _local(self) -> LocalLauncher:
        return LocalLauncher(self.run_folder, self.token, self.preload, self.device, self.told)

    def _engines(self, job: Job[Any]) -> bool:
        return needs_engine(job.stage, job.config)

    def _train(self, job: Job[Any]) -> Outcome:
        """Train, again from the last checkpoint where a node is lost."""
        num_lost = 0
        checkpoints = _checkpoint_names(job)
        while True:
            try:
                return self._attempt(job)
            except NodeLost as lost:
                kept = _checkpoint_names(job)
                num_lost = 1 if kept != checkpoints else num_lost + 1
                checkpoints = kept
                last = f"goes on from {kept[-1]}" if kept else "begins again (it had no checkpoint yet)"
                if num_lost == _MOST_LOSSES:
                    raise WorkerFailed(
                        f"{job.name}: {num_lost} times in a row a node was lost before a checkpoint was "
                        f"written, the last time {lost}. The same command goes on from there."
                    ) from None
                self.told.say(f"  ! {job.name}: {lost} is lost; {last} as soon as enough nodes are there")

    def _attempt(self, job: Job[Any]) -> Outcome:
        """One attempt at a training.

        Raises:
            NodeLost: a node of it is gone.
        """
        partial = job.out_path
        pinned = pinned_ranks(partial)
        nodes = self._nodes_for(job, pinned)
        placed = self._placed(job, nodes, pinned)
        folder = attempt_folder(partial, uuid.uuid4().hex[:12])
        take_checkpoints(partial, folder)
        attempt = replace(job, out=str(folder))
        try:
            workers = self._start(attempt, placed)
            self._attend(attempt, workers)
            take_all(folder, partial)
        except SmallerBatches:
            _keep_hidden(folder, partial)
            raise
        except WorkerFailed:
            # It may be no more than that another node is gone: its peers see a closed connection.
            self._require(placed)
            raise
        finally:
            self.cluster.end_workers([node for node, _ in placed])
            end_attempts(partial)
        outcome = workers[0][1].outcome
        assert outcome is not None, "rank 0 ended well and said nothing"
        return outcome

    def _nodes_for(self, job: Job[Any], pinned: int | None) -> list[RemoteNode]:
        """The nodes that a training runs on; waits until they are there."""
        wanted = pinned or job.compute.num_training_ranks
        num_nodes = self.cluster.num_needed()

        def is_enough(nodes: list[RemoteNode]) -> bool:
            if not nodes:
                return False
            num_gpus = sum(node.num_gpus for node in nodes)
            if num_gpus == 0:
                # Without GPUs any node has room for any number of ranks: what was begun goes on with fewer.
                return pinned is not None or len(nodes) >= num_nodes
            if wanted is not None and num_gpus < wanted:
                return False
            return pinned is not None or len(nodes) >= num_nodes

        what = f"{job.name}: {num_nodes} nodes"
        if pinned is not None:
            what = f"{job.name}: nodes for {wanted} ranks"
        elif wanted is not None:
            what += f" with room for {wanted} ranks"
        return self.cluster.wait_for(is_enough, what)

    def _placed(
        self, job: Job[Any], nodes: list[RemoteNode], pinned: int | None
    ) -> list[tuple[RemoteNode, list[int]]]:
        """The ranks of each node, in one piece a node.

        Raises:
            NodeLost: one is gone.
            ConfigError: there are fewer GPUs.
        """
        room = [node.ask("num_ranks", job.compute) for node in nodes]
        has_gpus = any(room)
        wanted = pinned or job.compute.num_training_ranks or (sum(room) if has_gpus else len(nodes))
        if not has_gpus:
            even, more = divmod(wanted, len(nodes))
            room = [even + (place < more) for place in range(len(nodes))]
        placed = []
        first = 0
        for node, most in zip(nodes, room, strict=True):
            here = min(most, wanted - first)
            if here:
                placed.append((node, list(range(first, first + here))))
            first += here
        if first < wanted:
            raise ConfigError(
                f"compute.num_training_ranks={wanted}: each rank has a GPU of its own, and the nodes have "
                f"{first}. Lower it, set it to null (all GPUs), or add nodes."
            )
        return placed

    def _start(
        self, job: Job[Any], placed: list[tuple[RemoteNode, list[int]]]
    ) -> list[tuple[RemoteNode, Watched]]:
        """Start all ranks; rank 0's node is where they meet."""
        require_inputs(job, [node for node, _ in placed])
        first = placed[0][0]
        # All on one machine, as on a cluster that is tried out there: no network is asked for.
        is_alone = len({node.address for node, _ in placed}) == 1
        address = "127.0.0.1" if is_alone else first.address
        world_size = sum(len(ranks) for _, ranks in placed)
        group = Group(world_size, address, first.ask("port"))
        calls = []
        for node, ranks in placed:
            node.actor.warm_up.remote(self._engines(job))
            calls.append(node.actor.begin_ranks.remote(job, ranks, group, is_alone))
        workers = []
        for (node, ranks), call in zip(placed, calls, strict=True):
            for rank, log in zip(ranks, node.result(call), strict=True):
                workers.append((node, watched(job, node, rank, log)))
        return workers

    def _attend(self, job: Job[Any], workers: list[tuple[RemoteNode, Watched]]) -> None:
        """Take in what the ranks report, until all of them have left.

        Raises:
            NodeLost: a node is gone.
        """
        by_rank = {worker.rank: worker for _, worker in workers}
        conversation = Conversation()
        for node, _ in workers:
            conversation.add(node)
        while any(worker.is_open for worker in by_rank.values()):
            for node, messages in conversation.hear(1.0):
                if messages is None:
                    self.cluster.lose(node)
                    raise NodeLost(node.name)
                for rank, kind, body in messages:
                    asked = attending.take_in(job, by_rank[rank], kind, body, self.told)
                    assert asked is None, "ranks of a training have no shards"
            attending.watch(job, [worker for worker in by_rank.values() if worker.is_open], self.told)

    def _require(self, placed: list[tuple[RemoteNode, list[int]]]) -> None:
        """Raise NodeLost where one of the nodes is gone."""
        for node, _ in placed:
            try:
                node.ask("facts")
            except NodeLost:
                self.cluster.lose(node)
                raise NodeLost(node.name) from None


def _checkpoint_names(job: Job[Any]) -> list[str]:
    names = [path.name for path in job.out_path.glob("checkpoint-*")]
    return sorted(names, key=lambda name: (len(name), name))


def _keep_hidden(folder: Path, partial: Path) -> None:
    """Keep what an attempt has found out for the next one (`rlhf.training.token_budget`)."""
    for path in folder.glob(".*.json"):
        path.replace(partial / path.name)
