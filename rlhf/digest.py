"""Content digests: what makes two artifacts the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def canonical(value: Any) -> str:
    """JSON text that is equal for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, 64 hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> list[str]:
    """Relative names of all files below a folder, sorted; names that begin with a dot are left out."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not any(part.startswith(".") for part in path.parts))


def digest_files(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each named file below a folder."""
    with ThreadPoolExecutor(8) as pool:  # hashing leaves the interpreter lock, and weights are large
        digests = pool.map(lambda name: digest_file(folder / name), names)
        return {
            name: {"bytes": (folder / name).stat().st_size, "sha256": digest}
            for name, digest in zip(names, digests, strict=True)
        }


def digest_of_files(files: Mapping[str, Mapping[str, Any]], below: str = "") -> str:
    """One digest of several files: of those below a folder, names relative to it, when `below` is given."""
    if below in files:
        return str(files[below]["sha256"])
    prefix = f"{below}/" if below else ""
    inside = {name.removeprefix(prefix): files[name]["sha256"] for name in files if name.startswith(prefix)}
    return digest_of(inside)
