"""What of a run could go to make room, what could not be done then, and what stays and why."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlhf.config.choices import KeptPolicies
from rlhf.config.overrides import override, pasted
from rlhf.errors import DiskFull, RunChanged, one_line, writing
from rlhf.loop.figures import best, measured
from rlhf.loop.retention import trained_policies
from rlhf.run.artifact import Artifact
from rlhf.run.commit import is_working_file
from rlhf.run.other_runs import needed_beside
from rlhf.run.removal import Leaving, Size, obstacle, size_text, sizes_of
from rlhf.view.run_folder import RunFolder, iteration_of, open_run
from rlhf.view.sound import sound

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(gone|taken)")
_HALF_WRITTEN = re.compile(r"\..+\.tmp")
_HOLDERS = ("judge", "data", "iteration_*", "iteration_*/held_out")
"""Folders of a run in which stages lie, besides the run itself, as patterns."""


@dataclass(frozen=True)
class Removable:
    """What could go of a run, the size of each, and a line for everything that one might expect to go and
    that stays.
    """

    run: Path
    keep: KeptPolicies
    leaving: list[Leaving]
    sizes: list[Size]
    staying: list[str]

    @property
    def freed(self) -> int:
        """Bytes that would be free."""
        return sum(size.freed for size in self.sizes)


def gc_command(run: Path, **settings: object) -> str:
    """The command that says what could go of a run, or removes it."""
    words = [override(key, value) for key, value in {"run_dir": str(run), **settings}.items()]
    return pasted("python", "-m", "rlhf.gc", *words)


def removable(run: RunFolder, keep: KeptPolicies) -> Removable:
    """What could go of a run.

    Raises:
        RunChanged: something of the run is damaged: what is left may be needed to mend it.
    """
    # By their content: figures of damaged scores could call another policy the best.
    run = sound(run, _read_for_figures)
    if run.damaged:
        lines = [f"{run.path} is damaged, and nothing of it was removed: what is left may help to mend it."]
        lines += [f"  {one_line(name)}: {how}" for name, how in run.damaged.items()]
        raise RunChanged("\n".join(lines))
    staying: list[str] = []
    wanted = [*_policies(run, keep, staying), *_exports(run, staying)]
    wanted += [*_leftovers(run), *_beyond_the_settings(run)]
    leaving = []
    for each in wanted:
        reason = obstacle(run.path, each)
        if reason is None:
            leaving.append(each)
        else:
            staying.append(f"{each.name}: {reason}")
    return Removable(run.path, keep, leaving, sizes_of(leaving), staying)


def _read_for_figures(run: RunFolder) -> Iterator[Artifact]:
    for evaluation in run.evaluations:
        for artifact in measured(evaluation):
            if artifact is not None:
                yield artifact


def _policies(run: RunFolder, keep: KeptPolicies, staying: list[str]) -> Iterator[Leaving]:
    staying.append("π0, whether given or made by sft: the anchor of every iteration")
    for policy in trained_policies(run.path, run.artifacts, run.rows, keep):
        leaving = policy.leaving()
        if not leaving.paths:
            staying.append(f"{policy.name}: its record; the weights of π{policy.iteration} are gone already")
        elif policy.kept is not None:
            staying.append(f"{policy.name}: π{policy.iteration}, {policy.kept}")
        else:
            yield leaving


def _exports(run: RunFolder, staying: list[str]) -> Iterator[Leaving]:
    """Exports of policies that were the best once; RUN/best leads to another by now."""
    target = Path(os.path.realpath(run.path / "best"))
    for name, artifact in run.artifacts.items():
        if not name.endswith("/export") or not run.rows:
            continue
        # The link may lag behind the figures, where the run was killed in between.
        is_best = run.rows[best(run.rows)].iteration == iteration_of(name)
        if is_best or target.is_relative_to(artifact.path):
            staying.append(f"{name}: what {run.path / 'best'} leads to")
            continue
        needed = needed_beside(run.path, name)
        if needed is not None:
            staying.append(f"{name}: {needed}")
            continue
        then = (f"load or serve {artifact.path / 'model'}, the best policy of then",)
        yield Leaving(name, "an export that is not the best policy any more", (artifact.path,), then=then)


def _leftovers(run: RunFolder) -> Iterator[Leaving]:
    """What attempts that were killed have left, and nobody reads again."""
    what = "left by an attempt that was killed"
    for folder in _holders(run.path):
        for path in sorted(folder.iterdir()):
            # Of a link nobody knows who made it.
            if path.is_symlink():
                continue
            pattern = _LEFTOVER if path.is_dir() else _HALF_WRITTEN
            if pattern.fullmatch(path.name):
                yield Leaving(path.relative_to(run.path).as_posix(), what, (path,))
    for name, artifact in run.artifacts.items():
        for path in _working_files(artifact.path):
            within = path.relative_to(artifact.path).as_posix()
            yield Leaving(f"{name}/{within}", "needed only until the stage was finished", (path,))


def _holders(run: Path) -> list[Path]:
    """The folders of a run in which stages lie; a link is another place."""
    folders = [run]
    for pattern in _HOLDERS:
        folders += sorted(run.glob(pattern))
    return [folder for folder in folders if folder.is_dir() and not folder.is_symlink()]


def _working_files(folder: Path) -> list[Path]:
    """What a commit that was killed has not tidied: hidden files, checkpoints; of folders the topmost."""
    found: list[Path] = []
    for path in sorted(folder.rglob("*")):
        is_working = is_working_file(path.relative_to(folder).as_posix())
        if is_working and not any(path.is_relative_to(above) for above in found):
            found.append(path)
    return found


def _beyond_the_settings(run: RunFolder) -> Iterator[Leaving]:
    """Unfinished work of iterations that the run's settings do not ask for (any more)."""
    number = run.config.get("num_iterations")
    if not isinstance(number, int):
        return
    for name in run.unfinished:
        if (iteration_of(name) or 0) <= number:
            continue  # what the same command goes on from
        final = run.path / name
        partial = final.with_name(f".{final.name}.partial")
        then = (f"go on in it: with a num_iterations above {number} it begins again",)
        what = f"unfinished work beyond num_iterations={number}"
        yield Leaving(name, what, (partial,), then=then)


def lines_of(found: Removable) -> list[str]:
    """What could go and what stays, for people."""
    # Counted over all of them: names of one file that go together make its bytes free.
    would = f"{len(found.leaving)} things could go, and {size_text(found.freed)} would be free then"
    lines = [f"{one_line(found.run)}: {would} (keep={found.keep.value})"]
    for leaving, size in zip(found.leaving, found.sizes, strict=True):
        lines += ["", f"{one_line(leaving.name)}: {leaving.what}, {size_text(size.held)}"]
        lines += [f"  {line}" for line in _links(size)]
        lines.append("  What could not be done then:" if leaving.then else "  Nobody reads it again.")
        lines += [f"    {line}" for line in leaving.then]
    lines += ["", "What stays:"]
    lines += [f"  {one_line(line)}" for line in found.staying]
    lines += ["  all figures, responses, scores, pairs and log-probabilities"]
    lines += ["Runs in other folders that reuse this one, or name a model of it, cannot be seen from here."]
    return lines


def _links(size: Size) -> list[str]:
    """Which bytes would not be free, and why."""
    if not size.others:
        return []
    names = ", ".join(one_line(path.name) for path in size.others[:3])
    more = ", …" if len(size.others) > 3 else ""
    free = f"of it {size_text(size.freed)} would be free" if size.freed else "nothing of it would be free"
    return [f"{free}: further names (hard links, as reuse and export make them) stay of {names}{more}"]


@contextmanager
def telling_of_room(folder: Path) -> Iterator[None]:
    """Put behind the error of a full disk what could go of the run that met it.

    Raises:
        DiskFull: with that line.
    """
    try:
        with writing():
            yield
    except DiskFull as error:
        raise DiskFull(f"{error}\n{_room_in(folder)}") from error


def _room_in(folder: Path) -> str:
    command = gc_command(folder)
    try:
        found = removable(open_run(str(folder)), KeptPolicies.best_and_last)
    except Exception as error:  # whatever it is: the full disk is what has to be told
        return f"What of this run could go is not known ({one_line(error)}): {command}"
    if found.freed == 0:
        return f"Of this run nothing could go that would make room: {command}"
    return (
        f"Of this run {size_text(found.freed)} could go: {command} says what, and dry_run=false removes it."
    )
