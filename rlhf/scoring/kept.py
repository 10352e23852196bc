"""What a judge has answered, kept on the disk as soon as it came, so that nothing is asked twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from rlhf.data.digest import digest_of
from rlhf.data.json_text import json_text
from rlhf.data.shards import fsync_dir
from rlhf.errors import writing
from rlhf.run.job import KEPT_ANSWERS

_GROUP = 16
"""Answers of one fsync. A killed process loses none of them, a power cut at most so many."""
_SEAL_DIGITS = 16


class KeptAnswers:
    """Records by key, in an append-only file: one line each, behind the digest of its JSON.

    Opened again, it holds all whole lines. A last line that was not written to its end is cut off, and others
    that are not what was written are left out (`num_damaged`). One process writes it. Without a path nothing
    outlives this process.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._records: dict[str, dict[str, Any]] = {}
        self._file: Any = None
        self._num_unsynced = 0
        self.num_damaged = 0
        if path is not None and path.is_file():
            self._read(path)

    def __enter__(self) -> KeptAnswers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError) if error[0] is not None else contextlib.nullcontext():
                os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def get(self, key: str) -> dict[str, Any] | None:
        """What was kept under a key; None for nothing."""
        return self._records.get(key)

    def add(self, key: str, record: dict[str, Any]) -> None:
        """Keep a record; when this returns, a kill of the process takes it no more.

        Raises:
            StorageError: the disk is full.
        """
        self._records[key] = record
        if self._path is None:
            return
        with writing(self._path):
            if self._file is None:
                self._path.parent.mkdir(exist_ok=True)
                # Without a buffer: a line is handed to the system at once.
                self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
                fsync_dir(self._path.parent)
            line = json_text({"key": key, **record}, sort_keys=True).encode()
            left = memoryview(_seal(line) + b" " + line + b"\n")
            # A disk that becomes full may take a part.
            while left:
                left = left[self._file.write(left) :]
            self._num_unsynced += 1
            if self._num_unsynced == _GROUP:
                os.fsync(self._file.fileno())
                self._num_unsynced = 0

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        whole, _, torn = content.rpartition(b"\n")
        # Of a kill or a power cut in the middle of a line; the next one must not be written behind it.
        if torn:
            os.truncate(path, len(content) - len(torn))
        for line in whole.split(b"\n") if whole else []:
            seal, _, text = line.partition(b" ")
            if seal != _seal(text):
                self.num_damaged += 1
                continue
            record = json.loads(text)
            self._records[record.pop("key")] = record


def _seal(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_SEAL_DIGITS].encode()


def kept_path(out: Path, index: int) -> Path:
    """Where the answers of a shard are kept while its stage is unfinished."""
    return out / KEPT_ANSWERS / f"{index:05d}.jsonl"


def key_of(*parts: Any) -> str:
    """The key of what was asked: a digest of everything that its answer depends on."""
    return digest_of(list(parts))
