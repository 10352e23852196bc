"""How a stage's folder becomes an artifact, and how damage to it is found: fsync, checksums, seals, one
rename.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlhf.config.fields import plain
from rlhf.config.overrides import pasted
from rlhf.data.digest import digest_files, digest_of_files, list_files, sealed, unsealed
from rlhf.data.shards import fsync_dir, fsync_folders, make_folders, not_as_written, write_atomic
from rlhf.errors import RunChanged
from rlhf.run.job import Job

MANIFEST = "artifact.json"
"""In the folder of every finished stage; written last."""
VERSIONS = ("torch", "transformers", "trl", "deepspeed", "accelerate")


class ShardsDamaged(Exception):
    """Shards of a stage that is to be committed are not what was written."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__(", ".join(map(str, paths)))
        self.paths = paths


def is_working_file(name: str) -> bool:
    """Whether a file, by its name within a stage's folder, is needed only until the stage is finished."""
    parts = Path(name).parts
    return parts[0].startswith("checkpoint-") or any(part.startswith(".") for part in parts)


def read_sealed(path: Path) -> dict[str, Any]:
    """A manifest or another sealed record; RunChanged when it is missing or damaged."""
    try:
        return unsealed(path.read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(path, str(error), path.parent) from error


def damaged(path: Path, how: str, folder: Path) -> RunChanged:
    """The error that names a damaged file and the ways out."""
    return RunChanged(
        f"{path} is damaged ({how}), and nothing was used. Restore the file, or delete the folder "
        "to redo it: "
        f"{pasted('rm', '-r', str(folder))}"
    )


def check_files(
    folder: Path, files: dict[str, dict[str, Any]], names: list[str], read: Path | None = None
) -> None:
    """Hold files of a finished stage, or copies of them in `read`, against its manifest; RunChanged names
    one.
    """
    check_all([(folder, files, names)], read)


def check_all(
    wanted: Sequence[tuple[Path, Mapping[str, Mapping[str, Any]], Sequence[str]]], read: Path | None = None
) -> None:
    """Hold files of several finished stages against their manifests, all of them side by side.

    Args:
        wanted: a stage's folder, the files of its manifest, and the names of those that are looked at.
        read: a folder with copies of them, which are looked at in their place.

    Raises:
        RunChanged: a file is not what its manifest says; the first one is named.
    """
    of_path = {}
    for folder, files, names in wanted:
        for name in names:
            of_path[str((read or folder) / name)] = (folder, name, files[name])
    try:
        digests = digest_files(Path(), list(of_path))
    except OSError as error:  # gone since the folder was looked at, or on a bad sector
        first = wanted[0][0]  # a bad sector comes without the file's name
        folder, _, _ = of_path.get(str(error.filename), (first, "", {}))
        path = Path(error.filename or folder)
        raise damaged(path, f"cannot be read: {error.strerror}", folder) from None
    for place, (folder, name, entry) in of_path.items():
        if digests[place] != entry:
            actual = digests[place]["sha256"][:12]
            recorded = entry["sha256"][:12]
            raise damaged(
                folder / name, f"its SHA-256 is {actual}…, but the manifest says {recorded}…", folder
            )


def commit(
    partial: Path,
    final: Path,
    identity: dict[str, Any],
    job: Job[Any],
    counts: dict[str, int],
    metrics: dict[str, Any],
    seconds: float,
    known: Callable[[], Mapping[tuple[int, int], dict[str, Any]]] = dict,
    require_ours: Callable[[], None] = lambda: None,
) -> None:
    """Seal a stage's folder: files to disk, manifest last, then the rename that makes it an artifact.

    What resuming needs (checkpoints, digests of shards) is removed after the rename: until then it may be
    needed.

    Raises:
        ShardsDamaged: the bytes of some shards on the disk are not those that were written.
    """
    (partial / MANIFEST).unlink(missing_ok=True)  # of a commit that was killed before its rename
    names = [name for name in list_files(partial) if not is_working_file(name)]
    umask = os.umask(0)  # there is no way to read it but to set it
    os.umask(umask)
    for name in names:
        os.chmod(partial / name, 0o666 & ~umask)  # safetensors writes for the owner alone
        with open(partial / name, "rb") as file:
            os.fsync(file.fileno())
    # Only now are the files' names on the disk too: a manifest must never name what a power cut can take
    # away.
    fsync_folders(partial, names)
    files = _entries(partial, names, known)
    damaged_shards = not_as_written(partial, files)
    if damaged_shards:
        raise ShardsDamaged(damaged_shards)
    record = {
        "identity": identity,
        "digest": digest_of_files(files),
        "counts": counts,
        "metrics": metrics,
        "seconds": round(seconds, 3),
        "config": plain(job.config),
        "compute": plain(job.compute),
        "versions": installed_versions(),
        "files": files,
    }
    require_ours()  # raises where another driver has the run folder by now: checksums may have taken long
    write_atomic(partial / MANIFEST, sealed(record))
    # The one moment in which the stage becomes finished: before it nothing has the final name, after it
    # everything.
    os.rename(partial, final)
    fsync_dir(final.parent)
    tidy(final)


def _entries(
    folder: Path, names: list[str], known: Callable[[], Mapping[tuple[int, int], dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file, by its name.

    A second name (a hard link) of a file of another stage is not hashed again where `known` has it, by device
    and inode.
    """
    stats = {name: (folder / name).stat() for name in names}
    entries = {}
    if any(stat.st_nlink > 1 for stat in stats.values()):
        by_inode = known()
        for name, stat in stats.items():
            entry = by_inode.get((stat.st_dev, stat.st_ino))
            if entry is not None and entry["bytes"] == stat.st_size:
                entries[name] = entry
    unknown = [name for name in names if name not in entries]
    entries |= digest_files(folder, unknown)
    return {name: entries[name] for name in names}


def installed_versions() -> dict[str, str]:
    """Versions of the packages that make a difference; one that is not installed has none.

    Example:
        {"torch": "2.13.0+cpu", "transformers": "5.19.0"}
    """
    versions = {}
    for package in VERSIONS:
        # Most stages need no torch: what does need it says so.
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def take(source: Path, record: dict[str, Any], final: Path) -> None:
    """Copy a finished artifact, whole or not at all; on one file system its files are shared, not doubled.

    Raises:
        RunChanged: the source is damaged.
        FileNotFoundError: it is being deleted.
    """
    partial = final.with_name(f".{final.name}.taken")
    shutil.rmtree(partial, ignore_errors=True)  # of a copy that was killed
    make_folders(final.parent)
    names = [*record["files"], MANIFEST]
    for name in names:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(source / name, partial / name)
        with open(partial / name, "rb") as file:
            os.fsync(file.fileno())
    fsync_folders(partial, names)
    # The copies are hashed, not the source: what counts is what this run will read.
    check_files(source, record["files"], list(record["files"]), partial)
    os.rename(partial, final)
    fsync_dir(final.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file of a finished artifact a second name, or where there are no hard links, a copy."""
    # Not the file's own name: where that is a link itself, another folder's second name would be of the link.
    real = source.resolve(strict=True)
    try:
        os.link(real, target)
    except OSError:  # another file system, one without links, too many of them, or another user's file
        shutil.copyfile(real, target)


def discard(folder: Path) -> None:
    """Remove a folder; killed half-way, nothing of it has its old name."""
    gone = folder.with_name(f".{folder.name.removeprefix('.')}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(folder, gone)
    shutil.rmtree(gone)


def tidy(final: Path) -> None:
    """Remove what a stage needed only while it was unfinished: hidden files and checkpoints."""
    leftovers = [*final.rglob(".*"), *final.glob("checkpoint-*")]
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
