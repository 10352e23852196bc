"""What the driver does with what workers say, wherever they are: shards, progress, errors, silence."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf.data.shards import read_counts, shard_name
from rlhf.errors import USER_ERRORS, WorkerFailed, one_line
from rlhf.launch.handout import LATER
from rlhf.launch.node import KEPT
from rlhf.run.job import Job, Outcome

QUIET_SECONDS = 600.0
"""Of a worker, until a line says so; then twice as long, and so on."""


@dataclass
class Told:
    """Who hears of a stage while it runs: by default nobody."""

    progress: Callable[[float, float, str], None] = lambda done, total, note: None
    """How far it is: done, total, and of what."""
    say: Callable[[str], None] = lambda text: None
    """Lines for the person who watches."""
    shard: Callable[[Mapping[str, int]], None] = lambda counts: None
    """What was counted in each shard that has been made."""


@dataclass
class Watched:
    """A worker as the driver sees it.

    One that `is_leaving` has said all that it will. `heard_at` is the time of its last message and
    `last_report` what that said; `patience` is how many seconds of silence may pass until the next line about
    it. `where` names the node, "" on this machine.
    """

    name: str
    rank: int
    log: str
    patience: float
    state: Callable[[], str]
    where: str = ""
    outcome: Outcome | None = None
    is_open: bool = True
    is_leaving: bool = False
    heard_at: float = field(default_factory=time.monotonic)
    last_report: str = "starting or loading"

    def silence(self) -> float:
        """Seconds since it said something."""
        return time.monotonic() - self.heard_at

    def whereabouts(self) -> str:
        """What is known of it, for a person who looks for it."""
        return (
            f"worker {self.name} ({self.state()}{self.where}), silent for {self.silence():.0f} s, last heard "
            f"of: {self.last_report}; log: {self.log}"
        )


Asked = tuple[Literal["next", "made"], Any]
"""What a message asks of who hands out shards; None where it asks nothing."""


def take_in(job: Job[Any], worker: Watched, kind: str, body: Any, told: Told) -> Asked | None:
    """Take in one message of a worker.

    Returns:
        ("next", None) of a worker that wants another shard, ("made", 3) of one that has written one.

    Raises:
        UserError: it found the user's input wrong.
        WorkerFailed: it raised, or died without an outcome.
    """
    worker.heard_at = time.monotonic()
    worker.patience = patience_of(job)
    if kind == "next":
        return "next", None
    if kind == "made":
        return "made", body
    if kind == "progress":
        done, total, note = body
        worker.last_report = f"{done:g} of {total:g} {note}" if total else note
        told.progress(done, total, note)
    elif kind == "say":
        told.say(body)
    elif kind == "outcome":
        worker.outcome = body
        worker.is_leaving = True
    elif kind == "error":
        worker.is_leaving = True
        raise failure(job, worker, body)
    else:
        worker.is_open = False
        if worker.outcome is None:
            raise WorkerFailed(f"{job.name}: {body} {KEPT} Log: {worker.log}")
    return None


def note_answer(worker: Watched, shard: int | Literal["later"] | None) -> None:
    """Keep in mind what a worker was answered, for who asks where it is."""
    if shard is None:
        worker.last_report = "finishing"
    elif shard != LATER:
        worker.last_report = f"shard {shard} begun"


def note_made(job: Job[Any], worker: Watched, shard: int, told: Told) -> None:
    """A worker has made a shard, which lies under its final name."""
    worker.last_report = f"shard {shard} made"
    told.shard(_counts_of(job, shard))


def watch(job: Job[Any], working: list[Watched], told: Told) -> None:
    """Say who is silent for long, and again after twice as long.

    Raises:
        WorkerFailed: one was so for `compute.hang_seconds`.
    """
    limit = float(job.compute.hang_seconds)
    hangs = limit > 0 and any(worker.silence() >= limit for worker in working)
    is_quiet = any(worker.silence() >= worker.patience for worker in working)
    if not hangs and not is_quiet:
        return
    # All of them: ranks wait for each other, and the one that hangs may be another than the silent one.
    waited_for = "\n".join(f"  {worker.whereabouts()}" for worker in working)
    if hangs:
        raise WorkerFailed(
            f"{job.name} hangs:\n"
            f"{waited_for}\n"
            f"It was stopped after compute.hang_seconds={limit:g}. {KEPT} If the work is only slow, "
            "raise compute.hang_seconds (0 waits for ever)."
        )
    told.say(f"  ? {job.name} waits for\n{waited_for}")
    for worker in working:
        worker.patience = max(worker.patience, 2 * worker.silence())


def patience_of(job: Job[Any]) -> float:
    """Seconds of silence before the first line about it."""
    hang_seconds = float(job.compute.hang_seconds)
    if hang_seconds == 0:
        return QUIET_SECONDS
    # A quarter: a line, and another after twice as long, before the stage is stopped.
    return min(QUIET_SECONDS, hang_seconds / 4)


def failure(job: Job[Any], worker: Watched, body: tuple[str, str, str]) -> Exception:
    """What a worker raised: an error of ours as it was, anything else with the end of its traceback."""
    kind, message, text = body
    if kind in USER_ERRORS:
        return USER_ERRORS[kind](message)
    # Raised on purpose, such as of a server that is not waited for any longer: it says what to do.
    if kind == WorkerFailed.__name__:
        return WorkerFailed(f"{job.name}: {message}\nThe whole log: {worker.log}")
    # The traceback has the others.
    first, _, _ = message.strip().partition("\n")
    lines = text.strip().split("\n")
    # Set off, since the text of an error may come from anywhere, and its lines look like ours.
    last = "\n".join(f"  | {line}" for line in lines[-12:])
    return WorkerFailed(f"{job.name} failed: {one_line(first)}\n{last}\n{KEPT}\nThe whole log: {worker.log}")


def _counts_of(job: Job[Any], shard: int) -> dict[str, int]:
    """What was counted in a shard; it is only shown, so that no failure to read it is one of the run."""
    try:
        return read_counts(job.out_path / shard_name(shard))
    except (OSError, ValueError):
        return {}
