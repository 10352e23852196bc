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
from rlhf.data.digest import digest_files, digest_of_files, list_files, sealed, unsealed
from rlhf.data.shards import fsync_dir, write_atomic
from rlhf.errors import RunChanged
from rlhf.run.job import Job

VERSIONS = ("torch", "transformers", "trl", "deepspeed", "accelerate")


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
        f"rm -r {folder}"
    )


def check_files(
    folder: Path, files: dict[str, dict[str, Any]], names: list[str], read: Path | None = None
) -> None:
    """Hold files of a finished stage, or copies of them in `read`, against its manifest; RunChanged names
    one.
    """
    for name, entry in digest_files(read or folder, names).items():
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
    (partial / "artifact.json").unlink(missing_ok=True)  # of a commit that was killed before its rename
    names = [name for name in list_files(partial) if not name.startswith("checkpoint-")]
    umask = os.umask(0)  # there is no way to read it but to set it
    os.umask(umask)
    for name in names:
        os.chmod(partial / name, 0o666 & ~umask)  # safetensors writes for the owner alone
        with open(partial / name, "rb") as file:
            os.fsync(file.fileno())
    # Only now are the files' names on the disk too: a manifest must never name what a power cut can take
    # away.
    for parent in {(partial / name).parent for name in names}:
        fsync_dir(parent)
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
    write_atomic(partial / "artifact.json", sealed(record))
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
    """
    partial = final.with_name(f".{final.name}.taken")
    shutil.rmtree(partial, ignore_errors=True)  # of a copy that was killed
    for name in [*record["files"], "artifact.json"]:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, partial / name)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source / name, partial / name)
            with open(partial / name, "rb") as file:
                os.fsync(file.fileno())
    for parent in {(partial / name).parent for name in [*record["files"], "artifact.json"]}:
        fsync_dir(parent)
    # The copies are hashed, not the source: what counts is what this run will read.
    check_files(source, record["files"], list(record["files"]), partial)
    os.rename(partial, final)
    fsync_dir(final.parent)


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
