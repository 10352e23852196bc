"""Folders of attempts: on a cluster an attempt writes only into its own, and the driver moves what is whole.

File locks do not reach every node, and a process that was given up may wake hours later. So no worker of a
cluster writes under a name that another attempt reads: it writes below `.attempts/<attempt>/` in the stage's
unfinished folder, and only the driver, which there is one of (`rlhf.run.lock`), renames from there. When an
attempt has ended its folder is removed, and whoever still belongs to it finds no place to write.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from rlhf.data.shards import fsync_dir, make_folders, note_path, shard_name

ATTEMPTS = ".attempts"
"""In a stage's unfinished folder; hidden, so that it is no part of the artifact."""
SEAL = "sealed.json"
"""In a training checkpoint that is whole (`rlhf.training.checkpoints`)."""
_PATIENCE_SECONDS = 30.0
"""So long another node's file may take to be seen here: NFS keeps what it knows of a folder for seconds."""


def attempt_folder(partial: Path, attempt: str) -> Path:
    """Make the folder of one attempt.

    Args:
        partial: the stage's unfinished folder.
        attempt: a name that no other attempt has.
    """
    folder = partial / ATTEMPTS / attempt
    make_folders(folder)
    return folder


def stage_folder(out: Path) -> Path:
    """The unfinished folder of a stage, of its own or of one of its attempts' folders."""
    if out.parent.name == ATTEMPTS:
        return out.parent.parent
    return out


def unfinished_checkpoints(partial: Path) -> Iterator[Path]:
    """Checkpoints of a stage that was interrupted, wherever its attempts have left them."""
    yield from partial.glob("checkpoint-*")
    yield from partial.glob(f"{ATTEMPTS}/*/checkpoint-*")


def take_shard(partial: Path, folder: Path, index: int, beside: tuple[str, ...] = ()) -> None:
    """Give a shard that a worker has written its final name.

    Args:
        partial: the stage's unfinished folder.
        folder: the worker's.
        index: of the shard.
        beside: folders in it that hold another shard of that name (`stage_table.folders_beside`).

    Raises:
        FileNotFoundError: it is not to be seen here.
    """
    name = shard_name(index)
    # The stage's own shard comes last: it says that all of it is made.
    for place in (*beside, "."):
        source = folder / place / name
        final = partial / place / name
        final.parent.mkdir(exist_ok=True)
        # The note first, as the worker wrote them: a shard without one would count as damaged.
        _take(note_path(source), note_path(final))
        _take(source, final)
        fsync_dir(final.parent)


def take_file(partial: Path, folder: Path, name: str) -> None:
    """Give a file that a worker has written beside its shards its final name.

    Raises:
        FileNotFoundError: it is not to be seen here.
    """
    _take(folder / name, partial / name)
    fsync_dir(partial)


def _take(source: Path, final: Path) -> None:
    _wait_for(source)
    os.replace(source, final)


def take_checkpoints(source: Path, target: Path) -> None:
    """Move the whole checkpoints of a folder to another one; torn ones stay."""
    for checkpoint in sorted(source.glob("checkpoint-*")):
        if (checkpoint / SEAL).is_file() and not (target / checkpoint.name).exists():
            os.rename(checkpoint, target / checkpoint.name)
    fsync_dir(target)


def take_all(source: Path, partial: Path) -> None:
    """Move everything that a finished training has written to the stage's folder.

    Checkpoints go along: they may be needed until the stage is committed, which removes them.
    """
    for path in sorted(source.iterdir()):
        target = partial / path.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)  # of an attempt whose driver was killed while it moved
        os.replace(path, target)
    fsync_dir(partial)


def end_attempts(partial: Path) -> None:
    """Keep the whole checkpoints of earlier attempts, and remove all else of them."""
    attempts = partial / ATTEMPTS
    if not attempts.is_dir():
        return
    for folder in sorted(attempts.iterdir()):
        take_checkpoints(folder, partial)
    # Who still writes there while it is emptied may put back what was just removed: the folder goes under
    # another name first, which its path does not lead to.
    gone = partial / ".attempts.gone"
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(attempts, gone)
    shutil.rmtree(gone, ignore_errors=True)


def pinned_ranks(partial: Path) -> int | None:
    """The number of ranks that a begun training can only go on with; None where none has a checkpoint."""
    from rlhf.data.digest import unsealed

    for checkpoint in sorted(partial.glob("checkpoint-*"), reverse=True):
        try:
            return int(unsealed((checkpoint / SEAL).read_bytes())["world_size"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a torn one, which the training removes
    return None


def _wait_for(path: Path) -> None:
    """Wait until a file that another node has written is seen on this one."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not path.exists() and time.monotonic() < deadline:
        # Listing the folder anew makes an NFS client ask the server.
        list(path.parent.iterdir())
        time.sleep(0.1)
