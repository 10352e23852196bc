"""Finished artifacts: what a stage left, held against its manifest when it is opened."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.data.digest import digest_of_files
from rlhf.run.commit import MANIFEST
from rlhf.run.manifest import check_folder, read_manifest


@dataclass(frozen=True)
class Artifact:
    """A finished stage's folder, or a file or folder inside it, or something from outside the run.

    `digest` is None while a plan is made and the stage has yet to run; `stale` says that a plan found it, or
    what it was made of, changed. `root` is the finished stage's folder, None of something from outside.
    `removed` are the names of the stage's files that were removed to make room (`rlhf.run.removed`).

    Example:
        Artifact(Path("runs/x/iteration_001/pair"), "9f86d081884c7d65…", {"counts": {"prompts": 320, "pairs":
        319}, …})
    """

    path: Path
    digest: str | None
    record: dict[str, Any] = field(default_factory=dict, repr=False)
    stale: bool = False
    root: Path | None = None
    removed: frozenset[str] = frozenset()

    @property
    def lacks(self) -> list[str]:
        """Those of `removed` that belong to this artifact, which may be a part of the stage; sorted."""
        if self.root is None:
            return []
        return sorted(name for name in self.removed if (self.root / name).is_relative_to(self.path))

    @property
    def counts(self) -> dict[str, int]:
        """What the stage counted."""
        return dict(self.record.get("counts", {}))

    @property
    def metrics(self) -> dict[str, Any]:
        """What the stage measured."""
        return dict(self.record.get("metrics", {}))

    def part(self, name: str) -> Artifact:
        """A file or folder inside this artifact, with a digest of its own."""
        path = self.path / name
        if self.digest is None:
            return dataclasses.replace(self, path=path)
        digest = digest_of_files(self.record["files"], name)
        return dataclasses.replace(self, path=path, digest=digest)


def open_artifact(folder: Path) -> Artifact:
    """A finished artifact.

    What its files hold is looked at by `rlhf.run.plan.Run.verify`, before they are read: hashing weights
    takes time.

    Raises:
        RunChanged: its manifest is damaged, a file is missing (and was not removed to make room) or of
            another size, or one is there that the manifest does not name.
    """
    record = read_manifest(folder)
    removed = check_folder(folder, record["files"])
    return Artifact(folder, record["digest"], record, root=folder, removed=removed)


def artifact_around(path: Path) -> Artifact | None:
    """The part of a finished artifact, of whatever run, that a file or folder is; None where it is of none.

    Raises:
        RunChanged: as `open_artifact`, or its manifest does not name the file.
    """
    for folder in (path, *path.parents):
        if not _is_ours(folder / MANIFEST):
            continue
        artifact = open_artifact(folder)
        return artifact if path == folder else artifact.part(path.relative_to(folder).as_posix())
    return None


def _is_ours(manifest: Path) -> bool:
    """Whether it may be a manifest of this package, damaged or not: others have files of that name too."""
    try:
        record = json.loads(manifest.read_bytes())
    except OSError:
        return False
    except (ValueError, RecursionError):
        return True
    return isinstance(record, dict) and not {"identity", "seal"}.isdisjoint(record)
