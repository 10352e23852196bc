"""Finished artifacts: what a stage left, held against its manifest when it is opened."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.data.digest import digest_of, digest_of_files
from rlhf.errors import RunChanged
from rlhf.run.commit import damaged, read_sealed


@dataclass(frozen=True)
class Artifact:
    """A finished stage's folder, or a file or folder inside it, or something from outside the run.

    `digest` is None while a plan is made and the stage has yet to run; `stale` says that a plan found it, or
    what it was made of, changed. `root` is the finished stage's folder, None of something from outside.

    Example:
        Artifact(Path("runs/x/iteration_001/pair"), "9f86d081884c7d65…", {"counts": {"prompts": 320, "pairs":
        319}, …})
    """

    path: Path
    digest: str | None
    record: dict[str, Any] = field(default_factory=dict, repr=False)
    stale: bool = False
    root: Path | None = None

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
    """A finished artifact; RunChanged where its manifest is damaged, or a file is missing or of another size.

    What the files hold is looked at by `rlhf.run.plan.Run.verify`, before they are read: hashing weights
    takes time.
    """
    record = read_manifest(folder)
    for name, entry in record["files"].items():
        path = folder / name
        if not path.is_file():
            raise damaged(path, f"missing, but the manifest says {entry['bytes']} bytes", folder)
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise damaged(path, f"{size} bytes, but the manifest says {entry['bytes']} bytes", folder)
    return Artifact(folder, record["digest"], record, root=folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `rlhf.run.commit.commit` wrote; damage, and file names that lead out of the folder, are
    refused.
    """
    path = folder / "artifact.json"
    record = read_sealed(path)
    files = record.get("files")
    if not isinstance(files, dict) or not {"identity", "digest"} <= record.keys():
        raise damaged(path, "it has no files, identity or digest", folder)
    incomplete = [name for name, entry in files.items() if set(entry or ()) != {"bytes", "sha256"}]
    if incomplete:
        raise damaged(path, f"it has no size or checksum of {incomplete}", folder)
    # A manifest of another person's run must not make us hash, link or remove files elsewhere.
    outside = [name for name in files if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise damaged(path, f"it names files outside its folder: {outside}", folder)
    return record


def fingerprint_of(manifest: Path) -> str:
    """What identifies a finished artifact's recipe and inputs; empty where the manifest cannot be read."""
    try:
        return digest_of(read_manifest(manifest.parent)["identity"])
    except RunChanged:
        return ""
