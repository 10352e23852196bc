"""Content digests: what makes two artifacts the same."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rlhf.data.json_text import finite, json_text

_BLOCK_BYTES = 1 << 20


def canonical(value: Any) -> str:
    """JSON text that is equal for equal values."""
    # NaN passes here alone: records of old runs hold it, and their seals were taken of this very text.
    return json.dumps(
        value,
        sort_keys=True,
        ensure_ascii=False,
        separators=(",", ":"),
    )


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, 64 hex digits."""
    text = canonical(value)
    digest = hashlib.sha256(text.encode())
    return digest.hexdigest()


def sealed(record: Mapping[str, Any]) -> bytes:
    """A record as JSON with its own digest in it, so that damage shows; null for numbers that are not finite.

    Example:
        {"state": "running", "seal": "9f86…"}
    """
    # A round trip turns tuples into lists and keys into text, as whoever checks the seal will read them.
    plain = json.loads(json_text(record))
    plain["seal"] = digest_of(plain)
    text = json_text(plain, indent=1, ascii_only=False)
    return text.encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """The record that `sealed` wrote, or wrote before it had null for NaN; ValueError when it is damaged."""
    try:
        record = json.loads(data)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
    # `pop` comes before the digest is taken: the seal is no part of what it seals.
    if not isinstance(record, dict) or record.pop("seal", None) != digest_of(record):
        raise ValueError("its seal does not fit")
    return dict(finite(record))


def digest_file(path: Path, stop: threading.Event | None = None) -> str:
    """SHA-256 of a file's bytes, 64 hex digits; given up when `stop` is set."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                if stop is not None and stop.is_set():
                    break
                digest.update(block)
    except OSError as error:
        # Python names the file where one cannot be opened, not where a disk cannot read it.
        error.filename = error.filename or str(path)
        raise
    return digest.hexdigest()


def list_files(folder: Path) -> list[str]:
    """Relative names of all files below a folder, sorted; names that begin with a dot are left out."""
    names = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        # Parts of the relative path only: the folder itself may well lie below a hidden one.
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden:
            names.append(str(relative))
    return sorted(names)


def digest_files(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each named file below a folder.

    Example:
        {"model/config.json": {"bytes": 712, "sha256": "e3b0…"}}
    """
    paths = [folder / name for name in names]
    stop = threading.Event()
    # Threads are enough: hashing leaves the interpreter lock, and weights are large.
    with ThreadPoolExecutor(8) as pool:
        try:
            digests = list(pool.map(digest_file, paths, itertools.repeat(stop)))
        finally:
            # Ctrl-C does not wait for the rest of a large file.
            stop.set()
    files = {}
    for name, path, digest in zip(names, paths, digests, strict=True):
        files[name] = {"bytes": path.stat().st_size, "sha256": digest}
    return files


def digest_of_files(files: Mapping[str, Mapping[str, Any]], below: str = "") -> str:
    """One digest of several files: of those below a folder, names relative to it, when `below` is given.

    Args:
        files: what `digest_files` gives.
        below: a folder among the names, or one file: then it is that file's own digest.
    """
    if below in files:
        return str(files[below]["sha256"])
    prefix = f"{below}/" if below else ""
    digests = {}
    for name, entry in files.items():
        if name.startswith(prefix):
            digests[name.removeprefix(prefix)] = entry["sha256"]
    return digest_of(digests)
