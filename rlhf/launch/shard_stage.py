"""A stage that is cut in shards, over nodes that come and go.

Idle workers of any node take the next shard; what a dead node had in hand goes to others; the last shards of
a slow one are begun by an idle one too, and the first that is made counts.
"""

from __future__ import annotations

import statistics
import time
import uuid
from dataclasses import dataclass
from typing import Any

from rlhf.launch import attending
from rlhf.launch.attending import Told, Watched
from rlhf.launch.cluster import Conversation, RayCluster
from rlhf.launch.handout import LATER, Handout
from rlhf.launch.node import log_of
from rlhf.launch.remote_node import NodeLost, RemoteNode
from rlhf.launch.remote_worker import require_inputs, watched
from rlhf.launch.supervisor import named_by
from rlhf.run.attempt_folder import ATTEMPTS, end_attempts, take_file, take_shard
from rlhf.run.job import Job, Outcome
from rlhf.run.stage_table import STAGES, folders_beside, needs_engine

_SLOW = 2.0
"""A shard that takes so many times the median is begun a second time where a worker is idle."""
_LEAST_SLOW_SECONDS = 10.0
"""And at least so long: for less it is not worth to load a model's work twice."""


@dataclass
class _Placed:
    """A worker, its node, and the name of its folder among those of attempts."""

    node: RemoteNode
    worker: Watched
    own: str


class ShardStage:
    """One attempt at such a stage.

    Args:
        cluster: whose nodes work.
        told: who hears of it.
        job: the stage's.
        shards: those that are not made yet.
    """

    def __init__(self, cluster: RayCluster, told: Told, job: Job[Any], shards: list[int]) -> None:
        self._cluster = cluster
        self._told = told
        self._job = job
        self._attempt = uuid.uuid4().hex[:12]
        self._handout = Handout(shards)
        self._conversation = Conversation()
        self._workers: dict[int, _Placed] = {}
        """By rank; those of a lost node are taken out."""
        self._num_begun = 0
        """Workers so far, whatever has become of them."""
        self._waiting: list[int] = []
        """Ranks that have asked for a shard and were not answered yet."""
        self._begun_at: dict[int, float] = {}
        self._seconds: list[float] = []
        """What each shard that was made here took."""
        self._outcomes: dict[int, Outcome] = {}
        self._end_is_said = False

    def run(self) -> Outcome:
        """Make all shards.

        Raises:
            UserError: a worker found the user's input wrong.
            WorkerFailed: a worker raised or died on a node that lives, or nodes did not come.
        """
        end_attempts(self._job.out_path)
        num_nodes = self._cluster.num_needed()
        self._cluster.wait_for(lambda nodes: len(nodes) >= num_nodes, f"{self._job.name}: {num_nodes} nodes")
        try:
            while not self._is_over():
                if not self._end_is_said and (self._cluster.has_news() or not self._at_work()):
                    self._welcome()
                for node, messages in self._conversation.hear(1.0):
                    if messages is None:
                        self._lose(node)
                    else:
                        self._take_in(node, messages)
                self._serve()
                self._told.progress(self._handout.num_made(), self._handout.total, "shards")
                attending.watch(self._job, self._working(), self._told)
        finally:
            # Also of those whose shard another one has made first.
            self._cluster.end_workers(self._conversation.nodes())
            end_attempts(self._job.out_path)
        return self._outcome()

    def _at_work(self) -> list[int]:
        """Ranks of the workers that make shards, or would."""
        ranks = []
        for rank, placed in self._workers.items():
            if placed.worker.is_open and rank not in self._outcomes:
                ranks.append(rank)
        return ranks

    def _working(self) -> list[Watched]:
        """Workers that are not waiting for us."""
        working = []
        for rank, placed in self._workers.items():
            if placed.worker.is_open and rank not in self._waiting:
                working.append(placed.worker)
        return working

    def _is_over(self) -> bool:
        """Whether all is made, and rank 0 has said what is recorded."""
        if not self._end_is_said or 0 not in self._outcomes:
            return False
        # Of those that were let go; who still makes what is made already is not waited for.
        return all(self._handout.in_hand(rank) for rank in self._at_work())

    def _welcome(self) -> None:
        """Start the workers of nodes that have none yet, as many as there is work for."""
        nodes = self._cluster.nodes()
        if not nodes:
            nodes = self._cluster.wait_for(bool, f"{self._job.name}: a node")
        for node in nodes:
            num_unmade = self._handout.total - self._handout.num_made()
            at_work = self._at_work()
            # Where nobody is at work any more, the nodes that are heard begin again: only rank 0 asks a
            # server, and the others had left.
            is_needed = num_unmade > len(at_work) and node not in self._conversation.nodes()
            if not is_needed and at_work:
                continue
            try:
                self._begin(node, max(1, num_unmade - len(at_work)))
            except NodeLost:
                self._lose(node)

    def _begin(self, node: RemoteNode, num_shards: int) -> None:
        """Start a node's workers."""
        job = self._job
        require_inputs(job, [node])
        node.actor.warm_up.remote(needs_engine(job.stage, job.config))
        tensor_parallel = int(getattr(job.config, "tensor_parallel_size", 1))
        environments = node.ask("room", job.compute, tensor_parallel, num_shards)
        run_folder = self._cluster.run_folder.absolute()
        for environment in environments:
            # Rank 0 has tasks of its own: where its first holder is gone, the next one takes them over.
            rank = self._num_begun if 0 in self._workers or 0 in self._outcomes else 0
            # A folder that nobody had: the lost holder of the rank may wake.
            own = f"{self._attempt}/{self._num_begun}"
            given = environment | named_by(job.config)
            starting = node.actor.begin_worker.remote(job, own, rank, len(environments), given)
            self._conversation.begin(node, starting)
            self._num_begun += 1
            self._handout.join(rank)
            worker = watched(job, node, rank, log_of(run_folder, job, rank))
            self._workers[rank] = _Placed(node, worker, own)

    def _take_in(self, node: RemoteNode, messages: list[tuple[int, str, Any]]) -> None:
        for rank, kind, body in messages:
            placed = self._workers.get(rank)
            if placed is None or placed.node is not node:
                continue  # of one whose place another has taken
            worker = placed.worker
            asked = attending.take_in(self._job, worker, kind, body, self._told)
            if worker.outcome is not None and rank not in self._outcomes:
                self._outcomes[rank] = worker.outcome
                self._take_file(placed)
            if asked is None:
                continue
            if asked[0] == "next":
                self._waiting.append(rank)
            else:
                self._made(placed, asked[1])

    def _take_file(self, placed: _Placed) -> None:
        """Take what rank 0 alone has written beside its shards."""
        name = STAGES[self._job.stage].file_of_rank_0
        if placed.worker.rank == 0 and name is not None:
            take_file(self._job.out_path, self._job.out_path / ATTEMPTS / placed.own, name)

    def _made(self, placed: _Placed, shard: int) -> None:
        """Take a shard that a worker has written, unless another one was first."""
        worker = placed.worker
        if not self._handout.made(worker.rank, shard):
            return
        folder = self._job.out_path / ATTEMPTS / placed.own
        take_shard(self._job.out_path, folder, shard, folders_beside(self._job))
        self._seconds.append(time.monotonic() - self._begun_at[shard])
        attending.note_made(self._job, worker, shard, self._told)

    def _serve(self) -> None:
        """Answer those who have asked for a shard, as far as there is an answer."""
        is_all_made = self._handout.num_made() == self._handout.total
        for rank in list(self._waiting):
            shard = self._handout.take(rank)
            if shard is None and not is_all_made:
                # Who has something in hand goes on with that, and asks again.
                shard = LATER if self._handout.in_hand(rank) else self._slow_shard(rank)
                if shard is None:
                    continue  # its turn may yet come: a node may be lost
            if isinstance(shard, int):
                self._begun_at[shard] = time.monotonic()
            self._waiting.remove(rank)
            placed = self._workers[rank]
            attending.note_answer(placed.worker, shard)
            self._conversation.answer(placed.node, rank, shard)
        if is_all_made:
            self._say_the_end()

    def _say_the_end(self) -> None:
        """All is made; where nobody is left who is rank 0, one more worker does what only rank 0 does."""
        self._end_is_said = True
        if 0 in self._outcomes:
            return
        holder = self._workers.get(0)
        if holder is not None and holder.worker.is_open and not self._handout.in_hand(0):
            return
        # Not on its own node, which would have two of a rank.
        nodes = [node for node in self._conversation.nodes() if holder is None or node is not holder.node]
        if not nodes and holder is not None:
            return  # it is waited for after all
        if not nodes:
            nodes = self._cluster.wait_for(bool, f"{self._job.name}: a node")
        if holder is not None:
            self._handout.leave(0)
            del self._workers[0]
        try:
            self._begin(nodes[0], 1)
        except NodeLost:
            self._lose(nodes[0])

    def _slow_shard(self, rank: int) -> int | None:
        """A shard that takes another worker so long that it is begun here too; None where there is none."""
        if not self._seconds:
            return None
        limit = max(_LEAST_SLOW_SECONDS, _SLOW * statistics.median(self._seconds))
        own_node = self._workers[rank].node
        for shard, maker in self._handout.in_one_hand():
            node = self._workers[maker].node
            seconds = time.monotonic() - self._begun_at[shard]
            if node is not own_node and seconds > limit:
                self._handout.take_again(rank, shard)
                usual = statistics.median(self._seconds)
                self._told.say(
                    f"  ! {self._job.name}: shard {shard} takes {node.name} {seconds:.0f} s, others took "
                    f"{usual:.0f}: {own_node.name} begins it too, and the first that is made counts"
                )
                return shard
        return None

    def _lose(self, node: RemoteNode) -> None:
        """A node is gone: what it had in hand is for others."""
        self._cluster.lose(node)
        lost = []
        had_workers = False
        for rank, placed in list(self._workers.items()):
            if placed.node is node:
                had_workers = True
                lost += self._handout.leave(rank)
                del self._workers[rank]
                if rank in self._waiting:
                    self._waiting.remove(rank)
        if not had_workers:
            return  # Ray takes a moment to see that a node is gone, and a new supervisor goes with it
        shards = "it had no shard in hand"
        if len(lost) == 1:
            shards = f"shard {lost[0]} goes to others"
        elif lost:
            shards = f"shards {', '.join(map(str, lost))} go to others"
        self._told.say(f"  ! {self._job.name}: {node.name} is lost; {shards}")

    def _outcome(self) -> Outcome:
        """Rank 0's, with what others have measured where it has not."""
        metrics: dict[str, Any] = {}
        for rank in sorted(self._outcomes, reverse=True):
            metrics |= self._outcomes[rank].metrics
        return Outcome(self._outcomes[0].counts, metrics)
