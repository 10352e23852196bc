"""What every benchmark gives, and how a cost is taken: subjects in turn, each in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.run.processes import adopt_orphans, children_of


@dataclass(frozen=True)
class Cost:
    """What a piece of work took; `proof` is what must be equal between subjects, or true of each."""

    processor_seconds: float
    wall_seconds: float
    peak_gigabytes: float
    proof: Any = None


@dataclass(frozen=True)
class Row:
    """One claim, measured.

    Example:
        Row("dpo/hh/wall", reached=2.61, bar=2.6, unit="× TRL's best micro-batch")
    """

    name: str
    reached: float
    bar: float
    unit: str
    lower_is_better: bool = False
    detail: str = ""
    """The seconds behind it, for the table."""
    attempts: tuple[str, ...] = field(default=())
    """Of a bar that is missed: what was tried, with its figure."""

    @property
    def met(self) -> bool:
        """Whether the bar is reached."""
        if self.lower_is_better:
            return self.reached <= self.bar
        return self.reached >= self.bar

    def as_json(self) -> dict[str, Any]:
        """The row as `benchmarks/results/latest.json` has it."""
        row: dict[str, Any] = {
            "name": self.name,
            "reached": round(self.reached, 3),
            "bar": self.bar,
            "met": self.met,
            "unit": self.unit,
            "lower_is_better": self.lower_is_better,
            "detail": self.detail,
        }
        if self.attempts:
            row["attempts"] = list(self.attempts)
        return row


class Stopwatch:
    """Processor and wall seconds of this process since it was made."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._processor = time.process_time()

    def cost(self, proof: Any = None) -> Cost:
        """What has passed, and the most memory that this process ever held."""
        # Not `ru_maxrss`: a process begins with that of the one which started it.
        peak = memory_bytes("VmHWM") / 2**30
        return Cost(
            processor_seconds=time.process_time() - self._processor,
            wall_seconds=time.perf_counter() - self._wall,
            peak_gigabytes=peak,
            proof=proof,
        )


def memory_bytes(name: str, process: int | str = "self") -> int:
    """A figure of a process's memory, as Linux calls it.

    Args:
        name: `VmHWM` is the most that it ever held; `RssAnon` what it holds by itself, without pages of
            files, which the system may take back.
        process: its id.
    """
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return 1024 * int(value.split()[0])
    raise ValueError(f"/proc/{process}/status has no {name}: the process has ended")


def cost_in_a_process(work: Callable[..., Cost], *arguments: Any) -> Cost:
    """What `work(*arguments)` gives in a fresh process, so that memory and warm caches are nobody else's.

    Args:
        work: a function of a module; it starts its own `Stopwatch` when what is measured begins.
        arguments: of it, picklable.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_cost, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    try:
        cost: Cost = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{work.__name__}: its process ended with exit code {process.exitcode}") from None
    process.join()
    return cost


def _send_cost(pipe: Any, work: Callable[..., Cost], arguments: tuple[Any, ...]) -> None:
    pipe.send(work(*arguments))
    pipe.close()
    # An engine's threads may hang at exit, and what matters is said.
    os._exit(0)


def cost_of_command(command: Sequence[str], environment: dict[str, str] | None = None) -> Cost:
    """What a command takes, with every process that it starts; its output is the proof.

    Raises:
        RuntimeError: it failed; its output is in the message.
    """
    # What a command leaves behind for a moment (a forkserver) comes here, so that its seconds are counted.
    adopt_orphans()
    earlier = set(children_of(os.getpid()))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = time.perf_counter()
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=os.environ | (environment or {}),
        check=False,
    )
    wall = time.perf_counter() - wall
    if done.returncode != 0:
        raise RuntimeError(
            f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stdout[-3000:]}"
        )
    _wait_for_orphans(earlier)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    return Cost(processor, wall, after.ru_maxrss / 2**20, proof=done.stdout)


def _wait_for_orphans(earlier: set[int]) -> None:
    # Not for children from before, such as Python's resource tracker, which lives as long as this process.
    while True:
        orphans = set(children_of(os.getpid())) - earlier
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not orphans:
            return
        time.sleep(0.01)


def in_turn(subjects: dict[str, Callable[[], Cost]], runs: int) -> dict[str, list[Cost]]:
    """Measure each subject `runs` times, one after the other in each round, so that all share busy hours."""
    taken: dict[str, list[Cost]] = {name: [] for name in subjects}
    for _ in range(runs):
        for name, subject in subjects.items():
            taken[name].append(subject())
    return taken


def median(costs: list[Cost], figure: str) -> float:
    """The median of a figure of `Cost`, such as "wall_seconds"."""
    return statistics.median(getattr(cost, figure) for cost in costs)


def times_faster(theirs: list[Cost], ours: list[Cost], figure: str) -> float:
    """How many times less ours takes than theirs, of medians."""
    return median(theirs, figure) / median(ours, figure)
