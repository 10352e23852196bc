"""The small finished run of `tests/data`, and what may be changed in a copy of it so that it still fits."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf.data.digest import digest_files, digest_of_files, sealed, unsealed
from rlhf.data.shards import read_counts, read_rows, shard_paths, write_shard

ARCHIVE = Path(__file__).resolve().parents[1] / "data" / "old_run.tar.gz"
HELD_OUT = "iteration_001/held_out"


def old_run(folder: Path, name: str = "run") -> Path:
    """A copy of the run: π0 to π2, two judges that are summed, a second judge, gold, 5 held-out prompts."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder / f".{name}", filter="data")
    return (folder / f".{name}" / "run").rename(folder / name)


def remake(stage: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the record of a finished stage, and bring its checksums and seal in order."""
    manifest = stage / "artifact.json"
    record = unsealed(manifest.read_bytes())
    change(record)
    record["files"] = digest_files(stage, list(record["files"]))
    record["digest"] = digest_of_files(record["files"])
    manifest.write_bytes(sealed(record))


def rewrite(stage: Path, schema: Any, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the rows of a finished stage's shards; what a row becomes None of is left out."""
    for path in shard_paths(stage):
        counts = read_counts(path)
        rows = [changed for row in read_rows(path) if (changed := change(row)) is not None]
        write_shard(path, schema, rows, counts)
        path.with_name(f".{path.name}.sha256").unlink()
    remake(stage, lambda record: None)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
