"""The runs that a command names: folders, folders that hold runs, and patterns."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase

from rlhf.data.files import resolved
from rlhf.errors import ConfigError
from rlhf.loop.figures import measured
from rlhf.run.artifact import Artifact
from rlhf.view.run_folder import RunFolder, is_file, open_run
from rlhf.view.sound import sound

KEY = "runs"
_WAYS = (
    "Name runs (python -m rlhf.compare runs/a runs/b, or runs=[runs/a,runs/b]), a folder that holds them, or "
    "a pattern such as runs/sweep/*."
)


@dataclass(frozen=True)
class NamedRun:
    """A run with a letter for narrow columns, and as much of its path as tells it from the others.

    Example:
        NamedRun("B", "dpo.beta=0.1", …)
    """

    letter: str
    name: str
    folder: RunFolder


@dataclass
class _Found:
    """Folders of runs in the order named, none twice, and what was said on the way."""

    folders: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, folder: Path) -> None:
        if folder in self.folders:
            self.notes.append(f"{folder} is named twice, and shown once.")
        else:
            self.folders.append(folder)


def runs_of(paths: Sequence[str]) -> tuple[list[NamedRun], list[str]]:
    """The runs, and what must be said of the paths: what a pattern matched that is no run, what came twice.

    Raises:
        ConfigError: a path leads to no run.
    """
    if not paths:
        raise ConfigError(f"{KEY}=[]: names no run. {_WAYS}")
    found = _Found()
    for path in paths:
        # A folder may have such a name itself: Hydra names those of a sweep after their settings.
        if glob.has_magic(path) and not os.path.lexists(os.path.expanduser(path)):
            _add_matches(found, path)
        else:
            _add_path(found, path)
    runs = []
    names = _short_names(found.folders)
    for number, (folder, name) in enumerate(zip(found.folders, names, strict=True)):
        runs.append(NamedRun(letter(number), name, sound(open_run(str(folder), KEY), _measured)))
    return runs, found.notes


def _add_path(found: _Found, path: str) -> None:
    """What a path without a pattern names; the error that nothing is there comes from `open_run`."""
    folder = resolved(path, KEY)
    inside = _runs_inside(folder)
    if _is_run(folder) or not inside:
        found.add(open_run(path, KEY).path)
    else:
        for run in inside:
            found.add(run)


def _add_matches(found: _Found, pattern: str) -> None:
    num_before = len(found.folders)
    matches = sorted(glob.glob(os.path.expanduser(pattern)))
    passed_over = []
    for match in matches:
        runs = []
        with contextlib.suppress(ConfigError):  # a link that leads nowhere
            folder = resolved(match, KEY)
            runs = [folder] if _is_run(folder) else _runs_inside(folder)
        for run in runs:
            found.add(run)
        if not runs:
            passed_over.append(match)
    if passed_over:
        found.notes.append(f"{KEY}={pattern}: no run, and passed over: {', '.join(passed_over)}")
    if len(found.folders) == num_before:
        what = f"matches {len(matches)} things, and none is another run" if matches else "matches nothing"
        raise ConfigError(f"{KEY}={pattern}: {what}. {_WAYS}")


def _is_run(folder: Path) -> bool:
    return is_file(folder / "config.yaml")


def _runs_inside(folder: Path) -> list[Path]:
    """The runs that lie in a folder, by name."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []  # `open_run` says what it is
    return [folder / name for name in names if not name.startswith(".") and _is_run(folder / name)]


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Each folder from where their ways part."""
    if len(folders) == 1:
        return [folders[0].name]
    common = Path(os.path.commonpath(folders))
    if common in folders:
        common = common.parent  # a run in another one's folder
    return [folder.relative_to(common).as_posix() for folder in folders]


def letter(number: int) -> str:
    """A, B, …, Z, A1, B1, …"""
    rounds, place = divmod(number, len(ascii_uppercase))
    return ascii_uppercase[place] + (str(rounds) if rounds else "")


def _measured(run: RunFolder) -> Iterator[Artifact]:
    for evaluation in run.evaluations:
        yield from filter(None, measured(evaluation))
