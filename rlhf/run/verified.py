"""Which files of finished stages this process has held against their manifests."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf.run.artifact import Artifact
from rlhf.run.commit import check_all
from rlhf.run.manifest import check_folder
from rlhf.run.removed import files_removed

Entry = dict[str, Any]
"""Size and SHA-256 of a file, as a manifest has them."""


class Verified:
    """Files whose checksums have been taken by this process, so that none is hashed twice."""

    def __init__(self) -> None:
        self._entries: dict[Path, Entry] = {}

    def add(self, artifact: Artifact) -> None:
        """Take an artifact that this process made: it has hashed the files for their manifest."""
        for name, entry in artifact.record["files"].items():
            self._entries[artifact.path / name] = entry

    def check(self, artifacts: Iterable[Artifact | None]) -> None:
        """Hold files against their manifests that have not been before, of all artifacts side by side.

        Raises:
            RunChanged: a file differs, is missing, or is of no manifest.
            FilesRemoved: one was removed to make room.
        """
        wanted = []
        found: dict[Path, Entry] = {}
        for artifact in artifacts:
            if artifact is None or artifact.root is None:
                continue
            files = artifact.record["files"]
            removed = check_folder(artifact.root, files)
            names = []
            for name in sorted(files):
                path = artifact.root / name
                if name in removed and path.is_relative_to(artifact.path):
                    raise files_removed(str(artifact.path), [(artifact.root, removed)])
                # An artifact may be a part of a stage's folder: only what is read has to be hashed.
                if path.is_relative_to(artifact.path) and path not in self._entries and path not in found:
                    names.append(name)
                    found[path] = files[name]
            wanted.append((artifact.root, files, names))
        check_all(wanted)
        self._entries |= found

    def by_inode(self) -> dict[tuple[int, int], Entry]:
        """What is known of each file, by its device and inode: of its other names (hard links) as well."""
        entries = {}
        for path, entry in self._entries.items():
            try:
                stat = os.stat(path)
            except OSError:
                continue  # removed since
            entries[stat.st_dev, stat.st_ino] = entry
        return entries
