"""Content digests: what makes two artifacts the same."""

from __future__ import annotations

import hashlib
import json
import threading
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


def sealed(record: Mapping[str, Any]) -> bytes:
    """A record as JSON with its own digest in it, so that damage shows."""
    plain = json.loads(json.dumps(record))
    return json.dumps(plain | {"seal": digest_of(plain)}, indent=1, ensure_ascii=False).encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """The record that `sealed` wrote; ValueError when it is damaged."""
    record = json.loads(data)
    if not isinstance(record, dict) or record.pop("seal", None) != digest_of(record):
        raise ValueError("its seal does not fit")
    return record


def digest_file(path: Path, stop: threading.Event | None = None) -> str:
    """SHA-256 of a file's bytes, 64 hex digits; given up when `stop` is set."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while (block := file.read(1 << 20)) and not (stop and stop.is_set()):
            digest.update(block)
    return digest.hexdigest()


def list_files(folder: Path) -> list[str]:
    """Relative names of all files below a folder, sorted; names that begin with a dot are left out."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not any(part.startswith(".") for part in path.parts))


def digest_files(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each named file below a folder."""
    stop = threading.Event()
    with ThreadPoolExecutor(8) as pool:  # hashing leaves the interpreter lock, and weights are large
        try:
            digests = list(pool.map(lambda name: digest_file(folder / name, stop), names))
        finally:
            stop.set()  # Ctrl-C does not wait for the rest of a large file
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
