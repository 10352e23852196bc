"""How far a run is, as plain data: what the terminal shows, and what `logs/progress.json` holds for those who
look from elsewhere.

Times are those of the clock on the wall (seconds since 1970), since another process may read them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from rlhf.data.json_text import json_text

FILE = "logs/progress.json"
"""In a run's folder."""
_ITERATION = re.compile(r"iteration_\d{3,}/")
_APART = 3
"""Steps that the reports of a training's ranks may be apart."""
_MOST_WARNINGS = 20
"""Kept of a run; all of them are counted, and stand in the log."""


class State(Enum):
    """What is known of a stage."""

    to_do = "to do"
    running = "running"
    done = "done"
    unfinished = "unfinished"
    damaged = "damaged"


_LEAST_SECONDS = 0.5
"""Between the first and the last thing counted, from which a pace is told."""


@dataclass
class Counted:
    """What was counted of a stage at some moment: shards or steps `done`, and what these held."""

    at: float
    done: float = 0.0
    responses: int = 0
    tokens: int = 0


@dataclass
class StageProgress:
    """A stage of the plan.

    `seconds` are those of all attempts, of a finished stage. `start` is what was counted when counting began,
    `first` when it had gone on for the first time, `last` now: rates are taken from `first` on, since the
    time before also went into loading.

    Example:
        StageProgress("iteration_001/dpo", State.running, began_at=1.7e9, total=36, unit="loss 0.6931",
        start=Counted(1.7e9), first=Counted(1.7e9 + 9, 1), last=Counted(1.7e9 + 17, 5))
    """

    name: str
    state: State = State.to_do
    seconds: float = 0.0
    began_at: float = 0.0
    total: float = 0.0
    unit: str = ""
    start: Counted | None = None
    first: Counted | None = None
    last: Counted | None = None

    def count(self, now: float, done: float, total: float, unit: str) -> bool:
        """Take note of how far the stage is; returns whether it has gone on."""
        if self.last is not None and (total != self.total or done < self.last.done - _APART):
            self.start = self.first = self.last = None  # another attempt, from what the one before has kept
        self.total, self.unit = total, unit
        if self.start is None or self.last is None:
            # What an earlier attempt has done took none of the time that is counted here.
            self.start = Counted(now if done else self.began_at, done)
            self.last = Counted(now, done)
            return True
        if done <= self.last.done:
            return False
        self.last = Counted(now, done, self.last.responses, self.last.tokens)
        if self.first is None:
            self.first = self.last
        return True

    def hold(self, responses: int, tokens: int) -> None:
        """Add what the shard held that was just counted."""
        if self.last is not None:
            self.last.responses += responses
            self.last.tokens += tokens

    def rate(self, what: str) -> float | None:
        """`done`, `responses` or `tokens` a second; None where nothing tells yet."""
        if self.start is None or self.last is None:
            return None
        since = self.start
        if self.first is not None and self.last.done > self.first.done:
            since = self.first
        seconds = self.last.at - since.at
        # Shards that end together say nothing of a pace.
        if seconds < _LEAST_SECONDS:
            return None
        number = getattr(self.last, what) - getattr(since, what)
        return number / seconds if number > 0 else None

    def remaining(self, now: float) -> float | None:
        """Seconds to its end by its own pace, of a running stage; None where it has none yet."""
        rate = self.rate("done")
        if rate is None or self.last is None:
            return None
        return max(0.0, (self.total - self.last.done) / rate - (now - self.last.at))


@dataclass
class Progress:
    """A run as its driver sees it.

    `stages` are those of the plan in order. `phase` is what goes on where nothing can be counted, `""` where
    something can. `figures` are the last lines of figures, `warnings` the last ones said and `num_warnings`
    all of them. `ended` says how the driver came to its end, `""` while it works.
    """

    pid: int = 0
    host: str = ""
    pid_space: str = ""
    began_at: float = 0.0
    written_at: float = 0.0
    stages: list[StageProgress] = field(default_factory=list)
    phase: str = ""
    phase_at: float = 0.0
    figures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    num_warnings: int = 0
    ended: str = ""

    @property
    def running(self) -> StageProgress | None:
        """The stage that is made now."""
        return next((stage for stage in self.stages if stage.state is State.running), None)

    @property
    def num_done(self) -> int:
        """How many stages are finished."""
        return sum(stage.state is State.done for stage in self.stages)

    def stage(self, name: str) -> StageProgress:
        """A stage by name; one that was not planned (`export`, whose iterate the run finds out) is added."""
        found = next((stage for stage in self.stages if stage.name == name), None)
        if found is None:
            found = StageProgress(name)
            self.stages.append(found)
        return found

    def warn(self, text: str) -> None:
        """Keep a warning."""
        self.num_warnings += 1
        self.warnings = [*self.warnings, text][-_MOST_WARNINGS:]


def here(names: Sequence[str], seconds: Mapping[str, float], now: float) -> Progress:
    """The progress of a driver that begins.

    Args:
        names: of the planned stages, in order.
        seconds: of those that are finished, by name.
        now: the time.
    """
    progress = Progress(os.getpid(), socket.gethostname(), pid_space(), now, now)
    for name in names:
        state = State.done if name in seconds else State.to_do
        progress.stages.append(StageProgress(name, state, seconds.get(name, 0.0)))
    return progress


def pid_space() -> str:
    """What numbers of processes mean here: two containers may have one host name. "" where not known."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def kind_of_stage(name: str) -> str:
    """A stage's name without its iteration: what it has in common with its like.

    Example:
        "iteration_002/held_out/score" gives "held_out/score"
    """
    return _ITERATION.sub("", name, count=1)


def expected(progress: Progress, name: str) -> float | None:
    """Seconds that a stage will take: what its like took in the last iteration that has it; None without."""
    kind = kind_of_stage(name)
    if kind == name:
        return None  # what stands before the iterations has no like
    found = None
    for stage in progress.stages:
        if stage.state is State.done and stage.seconds > 0 and kind_of_stage(stage.name) == kind:
            found = stage.seconds
    return found


@dataclass(frozen=True)
class TimeLeft:
    """Seconds to an end; `estimated` where stages are in it that have not begun to count themselves, and
    `unknown` is how many stages are not in it, for they have no like yet.
    """

    seconds: float
    estimated: bool = False
    unknown: int = 0


def left_of_stage(progress: Progress, stage: StageProgress, now: float) -> TimeLeft | None:
    """What is left of the running stage: by its own pace, else by its like; None where neither tells."""
    own = stage.remaining(now)
    if own is not None:
        return TimeLeft(own)
    like = expected(progress, stage.name)
    # One that takes longer than its like did: nothing is known of its end.
    if like is None or like <= now - stage.began_at:
        return None
    return TimeLeft(like - (now - stage.began_at), estimated=True)


def left_of_run(progress: Progress, now: float) -> TimeLeft | None:
    """What is left of all stages; None where nothing is known of any of them."""
    seconds = 0.0
    num_known = num_unknown = 0
    estimated = False
    for stage in progress.stages:
        if stage.state is State.done:
            continue
        if stage.state is State.running:
            left = left_of_stage(progress, stage, now)
        else:
            like = expected(progress, stage.name)
            left = None if like is None else TimeLeft(like, estimated=True)
        if left is None:
            num_unknown += 1
            continue
        num_known += 1
        seconds += left.seconds
        estimated = estimated or left.estimated
    return TimeLeft(seconds, estimated, num_unknown) if num_known else None


def write_progress(folder: Path, progress: Progress) -> None:
    """Write it for those who look from elsewhere; where it cannot be written, they see less.

    The name never shows half of it. It need not outlive a power cut, so nothing waits for the disk.
    """
    path = folder / FILE
    temporary = path.with_name(f".{path.name}.tmp")
    record = asdict(progress)
    for stage in record["stages"]:
        stage["state"] = stage["state"].value
    with contextlib.suppress(OSError):
        temporary.write_text(json_text(record), encoding="utf-8")
        os.replace(temporary, path)


def read_progress(folder: Path) -> Progress | None:
    """What a driver has written last; None where none has, or it is damaged: it only tells people more."""
    try:
        record = json.loads((folder / FILE).read_bytes())
        stages = [_stage_of(each) for each in record.pop("stages")]
        progress = _filled(Progress(), record)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    progress.stages = stages
    return progress


def _stage_of(record: dict[str, Any]) -> StageProgress:
    moments = {}
    for name in ("start", "first", "last"):
        moment = record.pop(name)
        moments[name] = None if moment is None else _filled(Counted(0.0), moment)
    state = State(record.pop("state"))
    stage = _filled(StageProgress(""), record)
    stage.state = state
    stage.start, stage.first, stage.last = moments["start"], moments["first"], moments["last"]
    return stage


def _filled(section: Any, record: dict[str, Any]) -> Any:
    """A section with the values of a record; TypeError for one of another type than the section has.

    Keys that it does not know are of a later version.
    """
    for each in fields(section):
        if each.name not in record:
            continue
        value = record[each.name]
        default = getattr(section, each.name)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(default):
            raise TypeError(f"{each.name} is {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{each.name} is {value!r}")
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            raise TypeError(f"{each.name} is {value!r}")
        setattr(section, each.name, value)
    return section
