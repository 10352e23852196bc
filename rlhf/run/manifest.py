"""What a manifest says of a finished stage: held against the types it must have, and against the folder."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.data.json_text import json_text
from rlhf.errors import RunChanged
from rlhf.run.commit import MANIFEST, damaged, is_working_file, read_sealed
from rlhf.run.removed import RECORD, removed_files

_KINDS: dict[type, str] = {dict: "an object", str: "a text", int: "a whole number"}
_IDENTITY: dict[str, type] = {"schema": int, "stage": str, "seed": int, "config": dict, "inputs": dict}
_MANIFEST: dict[str, type] = {"identity": dict, "digest": str, "files": dict}
# These only tell people and gates something, so a manifest may do without.
_OF_PEOPLE: dict[str, type] = {
    "counts": dict,
    "metrics": dict,
    "config": dict,
    "compute": dict,
    "versions": dict,
}
_SHA256 = re.compile("[0-9a-f]{64}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `rlhf.run.commit.commit` wrote.

    Raises:
        RunChanged: it is damaged, a field has another type than it must, or a file's name leads out of the
            folder. Whoever made a run can seal anything, so a seal that fits proves no types.
    """
    path = folder / MANIFEST
    record = read_sealed(path)
    absent = [name for name in _MANIFEST if record.get(name) is None]
    if absent:
        raise damaged(path, f"it has no {', '.join(absent)}", folder)
    _check_types(record, _MANIFEST, path)
    _check_types(record, {name: kind for name, kind in _OF_PEOPLE.items() if name in record}, path)
    _check_types(record["identity"], _IDENTITY, path, "identity.")
    _check_values(record["identity"]["inputs"], str, path, "identity.inputs.")
    _check_values(record.get("counts", {}), int, path, "counts.")
    seconds = record.get("seconds", 0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise _wrong_type(path, "seconds", seconds, "a number")
    _check_files(record["files"], path)
    return record


def read_identity(folder: Path) -> dict[str, Any]:
    """What the unfinished work in a folder is to become; RunChanged as of `read_manifest`."""
    path = folder / ".identity.json"
    identity = read_sealed(path)
    _check_types(identity, _IDENTITY, path)
    return identity


def _check_types(record: Mapping[str, Any], kinds: Mapping[str, type], path: Path, prefix: str = "") -> None:
    for name, kind in kinds.items():
        value = record.get(name)
        # JSON's true is a whole number to Python.
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _wrong_type(path, f"{prefix}{name}", value, _KINDS[kind])


def _check_values(record: Mapping[str, Any], kind: type, path: Path, prefix: str) -> None:
    _check_types(record, dict.fromkeys(record, kind), path, prefix)


def _check_files(files: Mapping[str, Any], path: Path) -> None:
    """Raise RunChanged for a file without size and SHA-256, and for one outside of the folder."""
    # A manifest of another person's run must not make us hash, link or remove files elsewhere.
    outside = [name for name in files if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise damaged(path, f"it names files outside its folder: {outside}", path.parent)
    _check_values(files, dict, path, "files.")
    incomplete = [name for name, entry in files.items() if set(entry) != {"bytes", "sha256"}]
    if incomplete:
        raise damaged(path, f"it has no size or checksum of {incomplete}", path.parent)
    for name, entry in files.items():
        _check_types(entry, {"bytes": int, "sha256": str}, path, f"files.{name}.")
        if not _SHA256.fullmatch(entry["sha256"]):
            raise _wrong_type(path, f"files.{name}.sha256", entry["sha256"], "64 hex digits")


def _wrong_type(path: Path, field: str, value: Any, wanted: str) -> RunChanged:
    shown = json_text(value, ascii_only=False)
    if len(shown) > 80:
        shown = f"{shown[:80]}…"
    return damaged(path, f"its {field} is {shown}, and must be {wanted}", path.parent)


def check_folder(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
    """Hold a finished stage's folder against its manifest, without reading a file.

    Returns:
        The names of files that were removed to make room (`rlhf.run.removed`), and may be missing.

    Raises:
        RunChanged: a file is missing or of another size, or one is there that the manifest does not name.
    """
    removed = removed_files(folder, files)
    for name, entry in files.items():
        if name in removed:
            continue
        path = folder / name
        if not path.is_file():
            raise damaged(path, f"missing, but the manifest says {entry['bytes']} bytes", folder)
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise damaged(path, f"{size} bytes, but the manifest says {entry['bytes']} bytes", folder)
    strangers = unlisted(folder, files)
    if strangers:
        first = folder / strangers[0]
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise RunChanged(
            f"{first}{more}: no part of this finished stage, whose {MANIFEST} does not name it, and nothing "
            "was used: readers would take it for one. Move it out of the folder, or, if it belongs there and "
            f"the manifest is the wrong one, delete the folder to redo it: rm -r {shlex.quote(str(folder))}"
        )
    return removed


def unlisted(folder: Path, files: Mapping[str, Any]) -> list[str]:
    """What lies in a finished stage's folder and is not in its manifest; hidden names are nobody's."""
    known_folders = {Path()}
    for name in files:
        known_folders |= set(Path(name).parents)
    strangers = []
    # Folder by folder, not `rglob`: one of them may be a link to another disk.
    for known in sorted(known_folders):
        for entry in os.scandir(folder / known):
            name = str(known / entry.name)
            if name in files or Path(name) in known_folders or is_working_file(name):
                continue
            if name in (MANIFEST, RECORD):
                continue
            is_empty_folder = entry.is_dir(follow_symlinks=False) and not _holds_files(entry.path)
            if not is_empty_folder:
                strangers.append(name)
    return sorted(strangers)


def _holds_files(folder: str) -> bool:
    return any(names for _, _, names in os.walk(folder))
