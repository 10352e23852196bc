"""Finished stages of other runs, looked for while those may be at work, or somebody deletes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rlhf.data.digest import digest_of
from rlhf.data.files import resolved
from rlhf.errors import RunChanged
from rlhf.run.commit import MANIFEST
from rlhf.run.manifest import read_manifest
from rlhf.run.removed import RECORD


def finished_stages(run: Path) -> Iterator[Path]:
    """The folders of a run that hold a manifest, in order; hidden ones are unfinished, or on their way out.

    A folder that vanishes meanwhile is no error: `os.walk` passes over it, which `glob` does not.
    """
    for folder, names, files in os.walk(run):
        if MANIFEST in files:
            yield Path(folder)
            names.clear()  # an artifact holds no other
        names[:] = sorted(name for name in names if not name.startswith("."))


def reusable_stages(runs: Sequence[str], say: Callable[[str], None]) -> dict[str, Path]:
    """The finished stages of some runs, by the digest of their identity; of equal ones the first run's.

    What is half deleted, or has a manifest that cannot be read, is left out and said.
    """
    stages: dict[str, Path] = {}
    for run in runs:
        for folder in finished_stages(resolved(run, "reuse")):
            try:
                manifest = read_manifest(folder)
            except RunChanged as error:
                say(f"  ! reuse: nothing is taken from {folder}: {error}")
                continue
            missing = [name for name in manifest["files"] if not (folder / name).is_file()]
            if missing:
                what = f"{missing[0]} is missing, as of a stage that is being deleted"
                if (folder / RECORD).is_file():
                    what = f"{missing[0]} was removed to make room (python -m rlhf.gc); it is made here"
                say(f"  ! reuse: nothing is taken from {folder}: {what}")
                continue
            stages.setdefault(digest_of(manifest["identity"]), folder)
    return stages


def has_gone(folder: Path, fingerprint: str) -> bool:
    """Whether a stage of another run is no longer what was found: deleted, or made anew as another."""
    try:
        manifest = read_manifest(folder)
    except RunChanged:
        return not (folder / MANIFEST).exists()
    is_whole = all((folder / name).is_file() for name in manifest["files"])
    return not is_whole or digest_of(manifest["identity"]) != fingerprint
