"""Removing what a run does not need any more: weights of finished stages, and whole folders.

The caller holds the run (`rlhf.run.lock`). Nothing outside of the run is ever removed: what is reached
through a link, or lies on another file system, is left.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhf.errors import StorageError
from rlhf.run.artifact import Artifact
from rlhf.run.commit import discard
from rlhf.run.removed import record_removal

_WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class Leaving:
    """Something of a run that may go.

    Attributes:
        name: in the run, such as `iteration_001/dpo`.
        what: for people, such as "the weights of π1".
        paths: its files; or one folder or hidden file, which goes whole.
        artifact: the finished stage whose files they are; None of a folder that goes whole.
        then: what cannot be done any more when it is gone, a line each.
    """

    name: str
    what: str
    paths: tuple[Path, ...]
    artifact: Artifact | None = None
    then: tuple[str, ...] = ()


@dataclass
class Size:
    """Of something that may go, in bytes: what it holds, and what of it would be free then.

    `others` are the files that keep bytes from becoming free: they have further names (hard links) that stay.
    """

    held: int = 0
    freed: int = 0
    others: list[Path] = field(default_factory=list)


def weights_of(artifact: Artifact) -> tuple[Path, ...]:
    """The files of a finished stage's weights that are there."""
    assert artifact.root is not None, "a finished stage has a folder"
    paths = []
    for name in sorted(artifact.record["files"]):
        if name.endswith(_WEIGHTS) and name not in artifact.removed:
            paths.append(artifact.root / name)
    return tuple(paths)


def sizes_of(leaving: Sequence[Leaving]) -> list[Size]:
    """What each holds and would free if all of them went together.

    A file's bytes are free when its last name goes: they count for the one that brings it about.
    """
    # How many names of each file go: where there are more in all, others keep its bytes.
    leaving_names: Counter[tuple[int, int]] = Counter()
    for each in leaving:
        for _, stat in _files(each):
            leaving_names[stat.st_dev, stat.st_ino] += 1
    sizes = []
    counted = set()
    for each in leaving:
        size = Size()
        for path, stat in _files(each):
            inode = stat.st_dev, stat.st_ino
            size.held += stat.st_size
            if leaving_names[inode] < stat.st_nlink:
                size.others.append(path)
            elif inode not in counted:
                counted.add(inode)
                size.freed += stat.st_size
        sizes.append(size)
    return sizes


def obstacle(run: Path, leaving: Leaving) -> str | None:
    """Why something cannot or must not be removed; None where it can.

    Args:
        run: the folder of the run, without links in its path.
        leaving: what is to go.
    """
    for path in leaving.paths:
        # A link at any place of the path leads to where the run is not.
        if os.path.realpath(path) != str(path) or not path.is_relative_to(run):
            return f"{path} is, or lies behind, a link: what it leads to is left alone"
        if not os.access(path.parent, os.W_OK | os.X_OK):
            return f"{path.parent} may not be written by you"
    # A mount within a folder would be emptied with it.
    device = run.stat().st_dev
    for path in _everything(leaving):
        if path.lstat().st_dev != device:
            return f"{path} lies on another file system than the run, and is left alone"
    return None


def remove(leaving: Leaving, why: str) -> None:
    """Remove something; killed at any moment, a stage is what it was, or known to lack what has gone.

    Args:
        leaving: what goes; `obstacle` has found nothing against it.
        why: is written down beside the stage, for people.

    Raises:
        StorageError: the system does not let it go.
    """
    try:
        if leaving.artifact is not None:
            _remove_files(leaving.artifact, leaving.paths, why)
            return
        for path in leaving.paths:
            _remove_whole(path)
    except OSError as error:
        raise StorageError(
            f"{error.filename or leaving.paths[0]} cannot be removed: {error.strerror}. It may be another "
            "user's, or protected. What was removed before it is recorded; get the right to remove it, and "
            "give the same command again."
        ) from error


def _remove_files(artifact: Artifact, paths: Sequence[Path], why: str) -> None:
    assert artifact.root is not None, "a finished stage has a folder"
    names = [path.relative_to(artifact.root).as_posix() for path in paths]
    # First the record: a file that is missing without one is damage.
    record_removal(artifact.root, artifact.record["files"], names, why)
    for path in paths:
        path.unlink(missing_ok=True)


def _remove_whole(path: Path) -> None:
    if not path.is_dir():
        path.unlink(missing_ok=True)
    elif path.name.endswith(".gone"):
        shutil.rmtree(path)
    else:
        discard(path)


def _files(leaving: Leaving) -> Iterator[tuple[Path, os.stat_result]]:
    """Every file that goes, but no folder."""
    for path in _everything(leaving):
        stat = path.lstat()
        if not path.is_dir() or path.is_symlink():
            yield path, stat


def _everything(leaving: Leaving) -> Iterator[Path]:
    """All that goes, folders first; a link is a thing of its own, and not what it leads to."""
    for path in leaving.paths:
        yield path
        if path.is_symlink() or not path.is_dir():
            continue
        for parent, folders, names in os.walk(path):
            for name in (*folders, *names):
                yield Path(parent) / name


def size_text(num_bytes: int) -> str:
    """For people.

    Example:
        `size_text(2_612_345)` gives "2.61 MB"
    """
    size = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
