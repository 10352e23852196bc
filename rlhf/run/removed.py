"""Files of a finished stage that were removed to make room, and the record that says so.

`removed.json` stands beside the manifest, sealed, and is written before the first file goes. A file that it
names may be missing: the stage stays finished, and so does all that was made of it. Whoever has to read a
file that is missing is refused. One that is there, because it has been brought back or the removal was
killed, is read like any other: its checksum is still in the manifest.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.config.overrides import pasted
from rlhf.data.digest import sealed
from rlhf.data.shards import write_atomic
from rlhf.errors import FilesRemoved
from rlhf.run.commit import damaged, read_sealed

if TYPE_CHECKING:
    from rlhf.run.artifact import Artifact

RECORD = "removed.json"
"""In the folder of a finished stage of which something was removed."""


def removed_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
    """The names of files of a finished stage that were removed, and are not there.

    Args:
        folder: the stage's.
        files: of its manifest.

    Raises:
        RunChanged: the record is damaged, or is of another stage than the manifest.
    """
    recorded = _read(folder, files)
    return frozenset(name for name in recorded if not os.path.lexists(folder / name))


def record_removal(
    folder: Path, files: Mapping[str, Mapping[str, Any]], names: Iterable[str], why: str
) -> None:
    """Write down that files are going to be removed, beside those that were before.

    Args:
        folder: of the finished stage.
        files: of its manifest.
        names: of those that will go.
        why: for people, such as `keep=best_and_last`.
    """
    gone = _read(folder, files)
    for name in names:
        gone[name] = dict(files[name])
    record = {"files": gone, "why": why}
    write_atomic(folder / RECORD, sealed(record))


def _read(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The entries of all files that were recorded as removed; {} without a record."""
    path = folder / RECORD
    if not os.path.lexists(path):
        return {}
    recorded = read_sealed(path).get("files")
    if not isinstance(recorded, dict):
        raise damaged(path, "it has no files", folder)
    for name, entry in recorded.items():
        # Only what the manifest vouches for: no record may excuse what another stage lacks.
        if files.get(name) != entry:
            raise damaged(path, f"it names {name!r}, which the manifest does not, or otherwise", folder)
    return recorded


def removed_text(folder: Path, names: Iterable[str]) -> str:
    """What to say in a line of a stage whose files were removed.

    Example:
        "model/model.safetensors was removed to make room (python -m rlhf.gc), as removed.json says"
    """
    shown = sorted(names)
    more = f" and {len(shown) - 1} more" if len(shown) > 1 else ""
    verb = "were" if more else "was"
    return f"{folder / shown[0]}{more} {verb} removed to make room (python -m rlhf.gc), as {RECORD} says"


def files_removed(reader: str, gone: Sequence[tuple[Path, Iterable[str]]]) -> FilesRemoved:
    """The error of something that has to read removed files.

    Args:
        reader: what has to read them, such as `iteration_003/dpo`.
        gone: folders of finished stages, and the names of the removed files in each.
    """
    lines = [f"{reader}: what has to be read was removed to make room, and nothing was run."]
    lines += [f"  {removed_text(folder, names)}" for folder, names in gone]
    folders = pasted("rm", "-r", *(str(folder) for folder, _ in gone))
    lines += [
        "Ways out:",
        "  bring the files back from a copy of the run: they are held against their checksums, and used;",
        "  make them again, by deleting what they belong to and giving the run's own command once more (what",
        "  comes out the same leaves all that was made of it as it is):",
        f"    {folders}",
        "  or take another policy, one whose weights are there.",
    ]
    return FilesRemoved("\n".join(lines))


def require_present(name: str, inputs: Iterable[Artifact], made: Collection[Artifact]) -> None:
    """Raise FilesRemoved for a stage whose inputs were removed to make room.

    Named is all that would have to be made again, since what those were made of may be gone too.

    Args:
        name: of the stage.
        inputs: what it reads.
        made: the run's finished stages.
    """
    gone: dict[Path, list[str]] = {}
    waiting = list(inputs)
    while waiting:
        artifact = waiting.pop(0)
        if artifact.root is None or artifact.root in gone or not artifact.lacks:
            continue
        gone[artifact.root] = artifact.lacks
        digests = set(artifact.record["identity"]["inputs"].values())
        waiting += [part for part in _removed_parts(made) if part.digest in digests]
    if gone:
        raise files_removed(name, list(gone.items()))


def _removed_parts(made: Iterable[Artifact]) -> list[Artifact]:
    """The folders of finished stages that lack a file, such as the model of a policy."""
    parts = []
    for artifact in made:
        for folder in {Path(name).parts[0] for name in artifact.lacks}:
            parts.append(artifact.part(folder))
    return parts
