"""How a stage's folder becomes an artifact, and how damage to it is found: fsync, checksums, seals, one
rename.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlhf.config.fields import plain
from rlhf.config.overrides import pasted
from rlhf.data.digest import digest_files, digest_of_files, list_files, sealed, unsealed
from rlhf.data.shards import fsync_dir, fsync_folders, make_folders, write_atomic
from rlhf.errors import RunChanged
from rlhf.run.job import Job

MANIFEST = "artifact.json"
"""In the folder of every finished stage; written last."""
VERSIONS = ("torch", "transformers", "trl", "deepspeed", "accelerate")


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
    try:
        digests = digest_files(read or folder, names)
    except OSError as error:  # gone since the folder was looked at, or on a bad sector
        raise damaged(Path(error.filename or folder), f"cannot be read: {error.strerror}", folder) from None
    for name, entry in digests.items():
        if entry != files[name]:
            actual = entry["sha256"][:12]
            recorded = files[name]["sha256"][:12]
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
) -> None:
    """Seal a stage's folder: files to disk, manifest last, then the rename that makes it an artifact.

    What resuming needs (checkpoints, digests of shards) is removed after the rename: until then it may be
    needed.
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
    files = digest_files(partial, names)
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
    write_atomic(partial / MANIFEST, sealed(record))
    # The one moment in which the stage becomes finished: before it nothing has the final name, after it
    # everything.
    os.rename(partial, final)
    fsync_dir(final.parent)
    tidy(final)


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
