"""Scaling of `generate` and `score` over workers and over Ray nodes: the table of docs/cluster.md.

    python -m benchmarks.cluster [workers=1,2,4] [runs=3] [prompts=320]

Each worker has one thread, so that the cores are what is shared out; a Ray node has one worker. The figure
is shards a second between the first and the last that are made: what a long stage has. A start (imports,
loading) comes on top of it, once for each stage. No time counts unless all shards are the same.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import generation, scoring
from benchmarks.rows import Cost, cost_in_a_process, in_turn, median

PROMPTS_OF_A_SHARD = 10
STAGES = ("generate", "score")
_LOOK_SECONDS = 1.0


class ProcessorSeconds:
    """What the workers of a run have spent, looked up while they live: on a cluster they are no children."""

    def __init__(self, folder: Path) -> None:
        self._lock = folder / ".workers.lock"
        self._seconds: dict[int, float] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ProcessorSeconds:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def total(self) -> float:
        """Of all workers so far, but for what each spends after the last look at it."""
        return sum(self._seconds.values())

    def _watch(self) -> None:
        from rlhf.run.processes import holders_of

        ticks = os.sysconf("SC_CLK_TCK")
        while not self._is_over.wait(_LOOK_SECONDS):
            with contextlib.suppress(OSError):  # not made yet, or a worker that has just ended
                for pid in holders_of(self._lock):
                    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                    self._seconds[pid] = (int(stat[11]) + int(stat[12])) / ticks


@contextlib.contextmanager
def nodes(number: int) -> Iterator[None]:
    """A Ray cluster of so many nodes of one worker, beside a head that has no work; none for 0."""
    if not number:
        yield
        return
    import ray
    from ray.cluster_utils import Cluster

    # Ray's own choice of 15 would not be that of local workers.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(number):
            cluster.add_node(num_cpus=1)
        os.environ["RAY_ADDRESS"] = cluster.address
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def launcher_of(folder: Path, token: str, cfg: Any, told: Any) -> Any:
    """As a run has it, but that it tells nobody but `told`."""
    from rlhf.launch.choose import on_a_cluster
    from rlhf.launch.local import LocalLauncher

    if not on_a_cluster(cfg):
        return LocalLauncher(folder, token, device="cpu", told=told)
    from rlhf.launch.cluster import RayCluster
    from rlhf.launch.ray_launcher import RayLauncher

    cluster = RayCluster(cfg.compute, folder, token, told.say)
    cluster.connect()
    return RayLauncher(folder, token, cluster, device="cpu", told=told)


def cost_of(stage: str, given: Path, workers: int, is_ray: bool) -> Cost:
    """One stage by so many workers; the proof is the digest of what was made, and shards a second."""
    from rlhf.config.choices import Device, Engine, Launcher
    from rlhf.config.schema import Config
    from rlhf.config.stage_configs import GenerateStage, ScoreStage
    from rlhf.launch.attending import Told
    from rlhf.run.artifact import Artifact
    from rlhf.run.lock import hold_run
    from rlhf.run.plan import Run

    cfg = Config()
    cfg.compute.device = Device.cpu
    cfg.compute.num_threads = 1
    cfg.compute.num_inference_workers = 1 if is_ray else workers
    if is_ray:
        cfg.compute.launcher = Launcher.ray
        cfg.compute.num_nodes = workers
    if stage == "generate":
        told: Any = GenerateStage(
            n=generation.SAMPLES,
            max_prompt_tokens=generation.MAX_PROMPT_TOKENS,
            max_new_tokens=generation.MAX_NEW_TOKENS,
            dtype="float32",
            shard_size=PROMPTS_OF_A_SHARD,
        )
        inputs = {"policy": given / "model", "prompts": given / "prompts.parquet"}
    else:
        told = ScoreStage(engine=Engine.transformers, max_tokens=scoring.MAX_TOKENS)
        inputs = {"judge": given / "judge", "candidates": given / "run" / "generate"}
    folder = Path(tempfile.mkdtemp(dir=given))
    made_at: list[float] = []
    heard = Told(say=print, shard=lambda counts: made_at.append(time.perf_counter()))
    with nodes(workers if is_ray else 0), hold_run(folder, print) as token, ProcessorSeconds(folder) as spent:
        run = Run(folder, cfg, launcher_of(folder, token, cfg, heard), token=token)
        began = time.perf_counter()
        artifact = run.stage(
            stage, stage, told, {name: Artifact(path, name) for name, path in inputs.items()}
        )
        wall = time.perf_counter() - began
    if stage == "generate" and not (given / "run").exists():
        folder.rename(given / "run")
    rate = (len(made_at) - 1) / (made_at[-1] - made_at[0])
    return Cost(spent.total(), wall, 0.0, proof=(artifact.digest, rate))


def table(given: Path, workers: list[int], runs: int) -> Iterator[str]:
    """Lines of a table in Markdown."""
    yield "| stage | workers | shards a second | × one worker | whole stage | processor seconds of workers |"
    yield "|---|---|---|---|---|---|"
    for stage in STAGES:
        subjects: dict[str, Callable[[], Cost]] = {}
        for number in workers:
            for kind in ("local", "Ray nodes"):
                is_ray = kind != "local"
                subjects[f"{number} {kind}"] = partial(
                    cost_in_a_process, cost_of, stage, given, number, is_ray
                )
        taken = in_turn(subjects, runs)
        digests = {cost.proof[0] for costs in taken.values() for cost in costs}
        assert len(digests) == 1, f"{stage}: not the same shards everywhere: {digests}"
        rates = {}
        for name, costs in taken.items():
            rates[name] = statistics.median(cost.proof[1] for cost in costs)
            _, _, kind = name.partition(" ")
            times = rates[name] / rates[f"{workers[0]} {kind}"]
            wall, processor = median(costs, "wall_seconds"), median(costs, "processor_seconds")
            figures = f"{rates[name]:.2f} | {times:.2f} | {wall:.0f} s | {processor:.0f}"
            yield f"| `{stage}` | {name} | {figures} |"


def main(words: list[str]) -> None:
    """Measure, and print the table."""
    said = {"workers": "1,2,4", "runs": "3", "prompts": "320"} | dict(word.split("=", 1) for word in words)
    generation.NUM_PROMPTS = int(said["prompts"])
    with tempfile.TemporaryDirectory() as name:
        given = Path(name)
        generation.make_model(given / "model")
        generation.make_prompts(given / "prompts.parquet")
        scoring.make_judge(given / "judge", scoring.JUDGES["20M"])
        for line in table(given, [int(number) for number in said["workers"].split(",")], int(said["runs"])):
            print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
