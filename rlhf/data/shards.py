"""Parquet shards that appear whole or not at all, and are read as a stream.

Arrow is imported by the first that reads or writes one: a command that does neither need not wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rlhf.data.digest import digest_files, sealed, unsealed
from rlhf.data.json_text import json_text
from rlhf.errors import writing

if TYPE_CHECKING:
    import pyarrow as pa

_COUNTS = b"rlhf.counts"
TOKENS = "tokens.json"
"""Beside the shards of candidates: how their turns end."""
MOST_SHARDS = 5000
"""In a folder: with the notes that lie beside them until a stage is finished, these are 10,000 files. File
systems and people grow slow in larger ones."""
_BATCH_ROWS = 256
NO_FSYNC_OF_FOLDERS = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""What some network file systems say to it; their names are durable when their server says so."""
_DIGEST_LENGTH = 64
"""Hex digits of a SHA-256."""


def shard_name(index: int) -> str:
    """File name of a shard: `shard_00003.parquet`."""
    return f"shard_{index:05d}.parquet"


def fewest_rows(num_rows: int) -> int:
    """How many of so many rows a shard must have at least, so that there are no more than `MOST_SHARDS`."""
    return math.ceil(num_rows / MOST_SHARDS)


def rows_of_shard(index: int, usual: int) -> int:
    """Rows of a shard of a stream, whose end nobody knows: twice as many after each quarter of `MOST_SHARDS`.

    So `MOST_SHARDS` are enough for 4.8 million rows where 256 are usual.
    """
    num_doublings = index // (MOST_SHARDS // 4)
    return usual << num_doublings


def shard_paths(folder: Path) -> list[Path]:
    """All finished shards of an artifact, in order."""
    # An unfinished one is named `.shard_….parquet.tmp`, which the pattern does not match.
    paths = folder.glob("shard_*.parquet")
    # Shorter names first: shard_100000 comes after shard_99999.
    return sorted(paths, key=lambda path: (len(path.name), path.name))


def fsync_dir(path: Path) -> None:
    """Make the names in a folder durable, where the file system lets folders be synced."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FSYNC_OF_FOLDERS:
            raise
    finally:
        os.close(descriptor)


def fsync_folders(folder: Path, names: Iterable[str]) -> None:
    """Make the names of files below a folder durable, and those of all folders on the way to them."""
    folders = {folder}
    for name in names:
        folders |= {folder / parent for parent in Path(name).parents}
    for each in folders:
        fsync_dir(each)


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it that are missing, with durable names.

    Returns:
        Those that were missing, the topmost first.
    """
    missing = []
    above = folder
    while not above.exists():
        missing.append(above)
        above = above.parent
    missing.reverse()
    for each in missing:
        each.mkdir(exist_ok=True)  # another job of a sweep may make it at this very moment
        # A power cut takes what lies in a folder, as long as the folder has no durable name itself.
        with contextlib.suppress(PermissionError):  # a folder of others may be written in and not read
            fsync_dir(each.parent)
    folder.mkdir(exist_ok=True)  # for its error where a file has that name
    return missing


def write_atomic(path: Path, data: bytes | pa.Buffer) -> None:
    """Write a file so that its name never shows half of it, and survives power loss."""
    with writing(path):
        _give_name(_written_whole(path, data), path)


def _written_whole(path: Path, data: bytes | pa.Buffer) -> Path:
    """Write a file that has its name yet to get, and return where it lies meanwhile."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            # Before the rename: else the name could outlive a power loss and its bytes not.
            os.fsync(file.fileno())
    except OSError:
        # A disk that is full would stay so by what could not be written whole.
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return temporary


def _give_name(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    fsync_dir(path.parent)


def note_path(path: Path) -> Path:
    """Where it stands what was written of an unfinished stage's shard; hidden, so no part of the artifact."""
    name = f".{path.name}.sha256"
    return path.with_name(name)


def _noted(path: Path) -> dict[str, Any]:
    """What stands beside a shard of unfinished work; {} where nothing does, or nothing that can be read.

    Example:
        {"sha256": "9f86…", "stamp": [48211, 1795000000000000000, 3145], "counts": {"prompts": 256}}
    """
    try:
        data = note_path(path).read_bytes()
    except OSError:
        return {}
    # The digest alone is what earlier versions wrote.
    if len(data) == _DIGEST_LENGTH:
        return {"sha256": data.decode(errors="replace")}
    try:
        return unsealed(data)
    except ValueError:
        return {}


def _stamp(path: Path) -> list[int]:
    """Size in bytes, time of the last change in nanoseconds, inode: one differs where a file was written
    again, by whomever.
    """
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def damaged_shards(folder: Path, are_read: bool = True) -> list[Path]:
    """The shards of an unfinished stage that are not what `write_shard` wrote, or of which nobody knows.

    Args:
        folder: of the stage.
        are_read: whether the stage reads shards that it has made. Where it does not, those that nobody has
            written to since are not hashed here: the commit, which hashes all of them, holds each against
            its note (`not_as_written`).
    """
    damaged = []
    unsure: dict[str, str] = {}
    for path in shard_paths(folder):
        noted = _noted(path)
        if not noted:
            damaged.append(path)
        elif are_read or noted.get("stamp") != _stamp(path):
            unsure[path.name] = noted["sha256"]
    files = digest_files(folder, list(unsure))
    damaged += [folder / name for name, digest in unsure.items() if files[name]["sha256"] != digest]
    return sorted(damaged)


def not_as_written(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """The shards of an unfinished stage whose bytes on the disk are not those that `write_shard` gave it.

    Args:
        folder: of the stage.
        files: size and SHA-256 of its files, as they are on the disk.
    """
    differing = []
    for name, entry in files.items():
        noted = _noted(folder / name)
        if noted and noted["sha256"] != entry["sha256"]:
            differing.append(folder / name)
    return differing


def write_shard(
    path: Path,
    schema: pa.Schema,
    rows: Iterable[Mapping[str, Any]],
    counts: Mapping[str, int] | None = None,
) -> None:
    """Write one shard, after a note of its digest, with what was counted in it; equal rows give equal bytes.

    Args:
        path: the shard's final name.
        schema: its columns; keys of a row that the schema does not name are left out.
        rows: rows such as `{"id": "5f1c…", "scores": [1.5, -0.3]}` for `SCORES_SCHEMA`.
        counts: such as `{"rows": 2, "dropped/empty": 1}`.
    """
    import pyarrow as pa

    write_table(path, pa.Table.from_pylist([dict(row) for row in rows], schema=schema), counts)


def write_table(
    path: Path,
    table: pa.Table,
    counts: Mapping[str, int] | None = None,
    unpacked: Sequence[str] | None = None,
) -> None:
    """Write one shard as `write_shard` does, of columns.

    Args:
        path: the shard's final name.
        table: its columns.
        counts: as for `write_shard`.
        unpacked: of a shard that is read once and thrown away: the columns whose values repeat, by their
            names in Parquet. The rest is written as it stands, in a third of the time.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Sorted keys, for the order of counting may differ between two runs that count the same.
    counts_json = json_text(dict(counts or {}), sort_keys=True)
    table = table.replace_schema_metadata({_COUNTS: counts_json.encode()})
    sink = pa.BufferOutputStream()
    if unpacked is None:
        pq.write_table(table, sink, compression="zstd")
    else:
        pq.write_table(table, sink, compression="none", use_dictionary=list(unpacked))
    data = sink.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    with writing(path):
        temporary = _written_whole(path, data)
        note = {"sha256": digest, "stamp": _stamp(temporary), "counts": json.loads(counts_json)}
        # The note goes first: a shard without one cannot be told from a damaged one and is made again.
        write_atomic(note_path(path), sealed(note))
        _give_name(temporary, path)


class WriteBehind:
    """Writes shards in a thread of its own, one after the other, while the next is made.

    At most one waits, so that memory holds two. The end of the block waits for all, and raises what went
    wrong.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def write(self, *arguments: Any) -> None:
        """Have `write_table` called; raises what an earlier call of it did."""
        earlier = self._last
        self._last = self._thread.submit(write_table, *arguments)
        if earlier is not None:
            earlier.result()

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()
        if self._last is not None and error[0] is None:
            self._last.result()


def read_rows(path: Path, columns: list[str] | None = None, start: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of one shard, a batch in memory at a time; of all columns, or of those named.

    Args:
        path: of the shard.
        columns: names of those that are read.
        start: number of the first row that is given, from 0; those before it are not made rows of.

    Example:
        {"id": "5f1c…", "scores": [1.5, -0.3]}
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        groups, num_before = _groups_from(file.metadata, start)
        num_skipped = start - num_before
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups, columns=columns):
            yield from batch.slice(min(num_skipped, len(batch))).to_pylist()
            num_skipped = max(0, num_skipped - len(batch))


def _groups_from(footer: Any, start: int) -> tuple[list[int], int]:
    """The row groups of a file from the one that has row `start` on, and how many rows lie before them."""
    num_before = 0
    for group in range(footer.num_row_groups):
        num_rows_of_group = footer.row_group(group).num_rows
        if num_before + num_rows_of_group > start:
            return list(range(group, footer.num_row_groups)), num_before
        num_before += num_rows_of_group
    return [], start


def read_all_rows(folder: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of all shards of an artifact, in order."""
    for path in shard_paths(folder):
        yield from read_rows(path, columns)


def read_table(path: Path, leave_out: Sequence[str] = ()) -> pa.Table:
    """All of one shard as columns.

    Args:
        path: of the shard.
        leave_out: names of columns, and of parts of columns wherever they stand, that are not read.
    """
    import pyarrow.parquet as pq

    wanted = []
    with pq.ParquetFile(path) as file:
        for number in range(len(file.schema)):
            name = file.schema.column(number).path
            if set(name.split(".")).isdisjoint(leave_out):
                wanted.append(name)
        return file.read(columns=wanted)


def num_rows(path: Path) -> int:
    """Rows of one shard, from its footer."""
    import pyarrow.parquet as pq

    footer = pq.read_metadata(path)
    return footer.num_rows


def read_counts(path: Path) -> dict[str, int]:
    """What was counted while a shard was made."""
    noted = _noted(path)
    # Of unfinished work: whether the shard itself is as it was written is looked at when it is committed.
    if "counts" in noted:
        return dict(noted["counts"])
    import pyarrow.parquet as pq

    metadata = pq.read_schema(path).metadata or {}
    counts_json = metadata.get(_COUNTS, b"{}")
    return json.loads(counts_json)


def sum_counts(folder: Path) -> dict[str, int]:
    """The counts of all shards of a folder, added up."""
    total = Counter[str]()
    for path in shard_paths(folder):
        # `update` keeps counts of 0, which `+` of two Counters would drop.
        total.update(read_counts(path))
    return dict(total)
