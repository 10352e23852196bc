"""What a fault suite counts, looked up in the run folders with nothing of the package."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Tally:
    """The figures of a suite; `missed` says in words what went wrong."""

    kills: int = 0
    lost: int = 0
    doubled: int = 0
    corrupt_accepted: int = 0
    orphans: int = 0
    redone_max: int = 0
    missed: list[str] = field(default_factory=list)

    def ids(self, expected: list[str], found: list[str], where: str) -> None:
        """Hold the prompts of an artifact against those of the undisturbed run."""
        there, now = Counter(expected), Counter(found)
        self.lost += (there - now).total()
        self.doubled += (now - there).total()
        if expected != found:
            self.missed.append(f"{where}: other prompts, or in another order")

    def check(self, holds: bool, what: str) -> None:
        """Something that must hold."""
        if not holds:
            self.missed.append(what)

    def accepted(self, run: Path, where: str) -> None:
        """Every folder that counts as finished must hold what its manifest says."""
        for path in damaged_files(run):
            self.corrupt_accepted += 1
            self.missed.append(f"{where}: {path} is not what its manifest says")

    def line(self) -> str:
        """The one line a suite ends with."""
        return (
            f"kills={self.kills} lost={self.lost} doubled={self.doubled} "
            f"corrupt_accepted={self.corrupt_accepted} "
            f"orphans={self.orphans} redone_max={self.redone_max}"
        )

    def code(self) -> int:
        """1 when a bar is missed."""
        figures = self.lost or self.doubled or self.corrupt_accepted or self.orphans or self.redone_max > 1
        return int(bool(self.missed or figures))


def manifests(run: Path) -> list[Path]:
    """The manifests of all finished stages, also of those below a hidden folder."""
    return sorted(path for path in run.rglob("artifact.json") if not path.parent.name.startswith("."))


def damaged_files(run: Path) -> list[Path]:
    """Files of finished stages that are missing or differ from their manifest."""
    damaged = []
    for manifest in manifests(run):
        for name, entry in json.loads(manifest.read_text())["files"].items():
            path = manifest.parent / name
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
                damaged.append(path)
    return damaged


def contents(run: Path) -> dict[str, str]:
    """Digest of every finished stage, by name."""
    found = {path.parent: json.loads(path.read_text())["digest"] for path in manifests(run)}
    return {str(folder.relative_to(run)): digest for folder, digest in found.items()}


def redone(begun: Path) -> int:
    """Shards that were begun more than once, of lines that name one each."""
    lines = begun.read_text().splitlines() if begun.is_file() else []
    return len(lines) - len(set(lines))
