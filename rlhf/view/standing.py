"""How a run stands, as its folder, its driver's lock and the driver's own notes tell: without a lock."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from rlhf.config.overrides import iterate_command, override, pasted
from rlhf.data.shards import shard_paths
from rlhf.errors import one_line
from rlhf.loop.table import headline
from rlhf.run.attempt_folder import unfinished_checkpoints
from rlhf.run.file_system import file_system_of
from rlhf.run.lock import Driver, driver_of
from rlhf.run.progress import Progress, State, pid_space, read_progress
from rlhf.run.stopwatch import duration, seconds_so_far
from rlhf.view.run_folder import RunFolder, iteration_of

_FRESH_SECONDS = 15.0
"""A driver writes every second; a busy disk or machine may hold it up."""


@dataclass
class Standing:
    """What is known of a run.

    `lines` say how it stands, `progress` is its view for the time `at`, and `notes` tell what is unfinished
    or damaged.
    """

    lines: list[str]
    progress: Progress
    at: float
    notes: list[str] = field(default_factory=list)


def standing_of(run: RunFolder) -> Standing:
    """How a run stands now."""
    now = time.time()
    noted = read_progress(run.path)
    driver = driver_of(run.path)
    # A record of an older version does not tell another container of the same host name.
    is_old = driver is not None and not driver.started
    if driver is not None and is_old and noted is not None and noted.pid_space not in ("", pid_space()):
        driver = replace(driver, is_alive=None)
    is_working = _is_working(driver, noted, now)
    lines = _lines(run, driver, noted, is_working, now)
    progress = noted if noted is not None else Progress()
    if not is_working or not _is_of(noted, driver):
        for stage in progress.stages:
            if stage.state is State.running:
                stage.state = State.unfinished
        progress.phase = ""
        progress.ended = progress.ended or "died"
    _take_the_folder_in(run, progress)
    if not progress.figures:
        progress.figures = _last_figures(run.path)
    at = now if is_working or noted is None else noted.written_at
    notes = _unfinished(run) if not is_working else []
    for name, what in run.damaged.items():
        notes.append(f"✗ {one_line(name)} cannot be used: {one_line(what.partition(chr(10))[0])}")
    for name, what in run.removed.items():
        notes.append(f"− {one_line(name)} is finished; {one_line(what)}")
    gone = lacking(run)
    if gone:
        notes.append(f"✗ gone from the folder: {one_line(', '.join(gone))}")
    return Standing(lines, progress, at, notes)


def _is_of(noted: Progress | None, driver: Driver | None) -> bool:
    """Whether notes are those of a driver: what an earlier one has left says nothing of it."""
    return noted is not None and driver is not None and driver.pid == str(noted.pid)


def _is_working(driver: Driver | None, noted: Progress | None, now: float) -> bool:
    """Whether a driver is at work, as far as can be seen from here."""
    if driver is None:
        return False
    if driver.is_alive is not None:
        return driver.is_alive
    # On another machine, or in another container: only its notes can tell.
    return noted is not None and not noted.ended and now - noted.written_at < _FRESH_SECONDS


def _take_the_folder_in(run: RunFolder, progress: Progress) -> None:
    """Let what lies in the folder decide: stages are finished, damaged or gone whatever was noted of them."""
    planned = {stage.name for stage in progress.stages}
    for stage in progress.stages:
        if stage.state is State.done and stage.name not in run.artifacts:
            stage.state = State.to_do
    for name, artifact in run.artifacts.items():
        stage = progress.stage(name)
        stage.state = State.done
        stage.seconds = float(artifact.record.get("seconds", 0.0))
    for name in run.unfinished:
        if progress.stage(name).state is State.to_do:
            progress.stage(name).state = State.unfinished
    for name in run.damaged:
        progress.stage(name).state = State.damaged
    if not planned:
        # Of a run that has no plan on file: the order in which a loop makes them.
        places = {name: place for place, name in enumerate([*run.artifacts, *run.unfinished, *run.damaged])}
        progress.stages.sort(key=lambda stage: places[stage.name])


def _lines(
    run: RunFolder, driver: Driver | None, noted: Progress | None, is_working: bool, now: float
) -> list[str]:
    """What a person wants to know first: does it go on, and what to type where it does not."""
    goes_on = f"What goes on from there: {iterate_command(run.path)}"
    title = one_line(run.path)
    sign = "" if noted is None else f", last sign {_ago(now - noted.written_at)}"
    if driver is not None and is_working:
        unseen = ", which cannot be seen from here" if driver.is_alive is None else ""
        if not _is_of(noted, driver):
            sign = ", which has not begun a stage yet"
        return [f"{title}: goes on, {_named(driver)}{unseen}{sign}"]
    if noted is None:
        if _is_finished(run):
            return [f"{title}: finished"]
        return [f"{title}: nobody works on it, and its last driver has left no notes", goes_on]
    if noted.ended == "finished":
        if _is_finished(run):
            return [f"{title}: finished {_ago(now - noted.written_at)}"]
        return [f"{title}: finished what it was asked for {_ago(now - noted.written_at)}", goes_on]
    if noted.ended:
        return [f"{title}: {one_line(noted.ended).rstrip('.')} ({_ago(now - noted.written_at)})", goes_on]
    if driver is not None and driver.is_alive is None:
        command = iterate_command(run.path)
        if not file_system_of(run.path).is_local:
            command += f" {pasted(override('take_over', f'{driver.host}:{driver.pid}'))}"
        return [
            f"{title}: {_named(driver)} cannot be seen from here{sign}",
            f"It writes every second while it lives. If it is gone there too: {command}",
        ]
    where = "" if noted.running is None else f" in {one_line(noted.running.name)}"
    return [f"{title}: died{where}{sign}; process {noted.pid} on {one_line(noted.host)} is gone", goes_on]


def _named(driver: Driver) -> str:
    since = f" (started {driver.started})" if driver.started else ""
    return f"process {driver.pid} on {driver.host}{since}"


def _is_finished(run: RunFolder) -> bool:
    """Whether the loop has come to its end: it links the best policy last."""
    if run.unfinished or run.damaged or lacking(run):
        return False
    if not (run.path / "best").is_symlink():
        return False
    number = run.config.get("num_iterations")
    return isinstance(number, int) and run.artifact(number, "held_out/score") is not None


def lacking(run: RunFolder) -> list[str]:
    """Stages that are gone: other iterations have them, and the run has come past theirs.

    Example:
        ["iteration_002/pair"] of a run of three iterations in which somebody has removed it
    """
    there = [*run.artifacts, *run.damaged, *run.unfinished]
    last = max((iteration_of(name) or 0 for name in there), default=0)
    # Iteration 0 is π0's evaluation, and an export is of one iteration only.
    of_one = {name.partition("/")[2] for name in there if iteration_of(name)} - {"export"}
    gone = []
    # The last one may be under way still, until the best policy is linked.
    is_over = (run.path / "best").is_symlink()
    for number in range(1, last + is_over):
        for stage in sorted(of_one):
            name = f"iteration_{number:03d}/{stage}"
            if name not in there:
                gone.append(name)
    return gone


def _unfinished(run: RunFolder) -> list[str]:
    """What is kept of the stages that were begun."""
    lines = []
    for name in run.unfinished:
        final = run.path / name
        partial = final.with_name(f".{final.name}.partial")
        kept = []
        num_shards = len(shard_paths(partial))
        if num_shards:
            kept.append(f"{num_shards} shards")
        checkpoints = sorted(unfinished_checkpoints(partial), key=lambda path: (len(path.name), path.name))
        if checkpoints:
            kept.append(checkpoints[-1].name)
        seconds = seconds_so_far(partial)
        lines.append(f"… {one_line(name)}: {duration(seconds)} of work, kept: {', '.join(kept) or 'nothing'}")
    return lines


def _last_figures(folder: Path) -> list[str]:
    """The newest policy's, as the run's summary has them; none where it has none."""
    try:
        rows = json.loads((folder / "summary.json").read_bytes())["iterations"]
        return [headline(rows[-1])]
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return []


def _ago(seconds: float) -> str:
    return f"{duration(max(0.0, seconds))} ago"
