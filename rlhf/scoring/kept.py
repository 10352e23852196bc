"""What a judge has answered, kept on the disk as soon as it came, so that nothing is asked twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
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

    Args:
        path: of the file.
        others: files of other writers, which are read and never touched: one of them may still be at work.
    """

    def __init__(self, path: Path | None = None, others: Iterable[Path] = ()) -> None:
        self._path = path
        self._records: dict[str, dict[str, Any]] = {}
        self._file: Any = None
        self._num_unsynced = 0
        self.num_damaged = 0
        for other in others:
            self._read(other)
        if path is not None and path.is_file():
            num_torn = self._read(path)
            # Of a kill or a power cut in the middle of a line; the next one must not be written behind it.
            if num_torn:
                os.truncate(path, path.stat().st_size - num_torn)

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

    def _read(self, path: Path) -> int:
        """Take in the whole lines of a file; returns the bytes of the one that was not written to its end."""
        whole, _, torn = path.read_bytes().rpartition(b"\n")
        for line in whole.split(b"\n") if whole else []:
            seal, _, text = line.partition(b" ")
            if seal != _seal(text):
                self.num_damaged += 1
                continue
            record = json.loads(text)
            self._records[record.pop("key")] = record
        return len(torn)


def _seal(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_SEAL_DIGITS].encode()


def kept_path(out: Path, index: int, writer: str = "") -> Path:
    """Where the answers of a shard are kept while its stage is unfinished.

    Args:
        out: the stage's unfinished folder.
        index: of the shard.
        writer: the worker, where one of an earlier attempt may still be at work (`Job.writer`).
    """
    name = f"{index:05d}.{writer}.jsonl" if writer else f"{index:05d}.jsonl"
    return out / KEPT_ANSWERS / name


def kept_answers(out: Path, index: int, writer: str = "") -> KeptAnswers:
    """What all attempts have been answered in a shard, and room for more; arguments as of `kept_path`.

    Who sleeps through the end of its attempt (`rlhf.run.attempt_folder`) and wakes adds to its own file
    alone: answers to these very questions, for a key holds all that an answer depends on.
    """
    own = kept_path(out, index, writer)
    others = sorted(path for path in own.parent.glob(f"{index:05d}.*jsonl") if path != own)
    return KeptAnswers(own, others)


def key_of(*parts: Any) -> str:
    """The key of what was asked: a digest of everything that its answer depends on."""
    return digest_of(list(parts))
