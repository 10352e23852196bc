"""Records of JSON, JSONL, CSV and Parquet files, whatever is in them; all but the last also packed with gzip.

JSONL, CSV and Parquet are read as a stream; a JSON list is read whole, so memory grows with it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

from rlhf.errors import ConfigError, DataError, one_line

if TYPE_CHECKING:
    import pyarrow as pa

Record = dict[str, Any]


class Line(NamedTuple):
    """A line of JSONL as it stands in its file, numbered from 1."""

    path: Path
    number: int
    data: bytes

    def record(self) -> Record | None:
        """Its row; None of a blank line.

        Raises:
            DataError: it holds no row.
        """
        where = f"{self.path}, line {self.number}"
        try:
            text = self.data.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(self.path, self.number, error) from None
        # Blank lines are common at the end of files joined by hand.
        if not text.strip():
            return None
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: invalid JSON ({one_line(error)}). Mend that line.") from None
        return _object(row, where)


_BATCH_ROWS = 256
_NUM_NAMES = 5
"""How many files of a folder a message names."""
_PACKED = (".json", ".jsonl", ".csv")
_BOM = b"\xef\xbb\xbf \t\r\n"
_MAX_FIELD = 2**31 - 1

# RLHFlow and LMFlow write {"type": …, "instances": […]}.
_WRAPPERS = ("instances", "data", "rows", "examples", "train")
_NO_WRAPPER = ("prompt", "messages", "conversations", "instruction", "question", "responses")
_ABOUT = ("metadata", "meta", "info", "config")
_WRAPPER_HEAD = 4096


def resolved(path: str, key: str) -> Path:
    """The absolute path a value names, be something there or not.

    Raises:
        ConfigError: nothing at all, a loop of links, or a name that is too long.
    """
    if not path:
        # As of a shell variable that is not set; to Python it is the folder that one stands in.
        raise ConfigError(f"{key}=: is empty. Name a path; the folder that you are in is {key}=. with a dot.")
    try:
        absolute = Path(path).expanduser().resolve()
        # `resolve` forgives a name that is too long, and since Python 3.13 a loop of links. Only a look at
        # the disk finds them, and not by `exists`, which may take either for a file that is not there.
        with suppress(FileNotFoundError, NotADirectoryError):
            absolute.stat()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{key}={path}: leads nowhere ({error}). Give another path, or mend the links.",
        ) from None
    return absolute


def read_records(path: Path | str) -> Iterator[Record]:
    """Rows of a file, one mapping each, in the file's order.

    Raises:
        DataError: at once when there is no such file or its kind is unknown; while reading when a row
            cannot be used, naming the file and the line (JSONL), row (JSON list, Parquet) or line of
            the mistake (JSON); at the end when the file holds no row.

    Example:
        {"prompt": "What is 2+2?", "source": "quiz"}
    """
    # No `yield` stands here: a generator would raise for a missing file only when its first row is asked for.
    return _parsed(Path(path), read_unparsed(path))


def _parsed(path: Path, records: Iterator[Record | Line]) -> Iterator[Record]:
    empty = True
    for record in records:
        row = record.record() if isinstance(record, Line) else record
        if row is not None:
            empty = False
            yield row
    if empty:
        raise no_rows(path)


def no_rows(path: Path | str) -> DataError:
    """What is said of a file without any row."""
    return DataError(f"{path} holds no rows. Put some in, or name another file.")


def read_unparsed(path: Path | str) -> Iterator[Record | Line]:
    """As `read_records`, but lines of JSONL as they stand, for who can read most of them faster.

    A file of blank lines gives these, and one without any row nothing: the caller refuses both.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    kinds = ", ".join(READERS)
    if path.is_dir():
        names = _readable_names(path)
        content = ", ".join(names) or f"none here is {kinds}"
        raise DataError(f"{path} is a folder. Name one file in it ({one_line(content)}).")
    if not path.exists():
        raise DataError(f"{path} does not exist. Check the spelling; relative paths start at {Path.cwd()}.")
    if reader is None:
        raise DataError(
            f"{path} has the suffix {path.suffix!r}; known are {kinds}. Convert it, or rename it to fit.",
        )
    return _can_be_read(path, reader(path))


def _readable_names(folder: Path) -> list[str]:
    names = []
    for path in folder.iterdir():
        if path.suffix.lower() in READERS:
            names.append(path.name)
    names.sort()
    return names[:_NUM_NAMES]


def _can_be_read(path: Path, records: Iterator[Record | Line]) -> Iterator[Record | Line]:
    try:
        yield from records
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error}). Check its rights and the disk, or name a copy.",
        ) from None


def _opened(path: Path) -> IO[bytes]:
    """A file as bytes, unpacked where its name ends in .gz."""
    if path.suffix.lower() == ".gz":
        # Its type is a union of several; it gives bytes like any other.
        return cast(IO[bytes], gzip.open(path, "rb"))
    return open(path, "rb")


def _read_json(path: Path) -> Iterator[Record | Line]:
    """One list of objects, an object that holds one, or lines under another name."""
    if _is_lines(path):
        yield from _read_jsonl(path)
        return
    yield from _read_whole(path)


def _is_lines(path: Path) -> bool:
    """Whether a file holds an object on its first line and more behind it."""
    with _opened(path) as file:
        first = _next_line(file)
        try:
            is_object = isinstance(json.loads(first.decode("utf-8-sig")), dict)
        # Of a list or object over many lines the first line is no JSON.
        except (ValueError, RecursionError):
            return False
        return is_object and bool(_next_line(file))


def _next_line(file: IO[bytes]) -> bytes:
    """The next line that is not blank; nothing at the end."""
    for line in file:
        if line.strip():
            return line
    return b""


def _read_whole(path: Path) -> Iterator[Record]:
    with _opened(path) as file:
        data = file.read()
    try:
        # "utf-8-sig" drops the byte order mark that editors on Windows put in front.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _not_utf8(path, line, error) from None
    if not text.strip():
        return
    try:
        rows = json.loads(text)
    # ValueError is more than a JSONDecodeError: Python refuses to read numbers of thousands of digits.
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        hint = " One object per line? Then name it .jsonl." if "Extra data" in str(error) else ""
        raise DataError(
            f"{path}, line {line}: invalid JSON ({one_line(error)}). Mend the file.{hint}"
        ) from None
    wrapped = _wrapped_rows(rows)
    if wrapped is not None:
        rows = wrapped
    if not isinstance(rows, list):
        raise DataError(
            f"{path} holds {_kind(rows)}; a .json file must hold one list of objects. Wrap it in [ ].",
        )
    for number, row in enumerate(rows, start=1):
        yield _object(row, f"{path}, row {number}")


def _wrapped_rows(value: Any) -> list[Any] | None:
    """The rows of an object that is a wrapper around them, and no row itself.

    Example:
        {"type": "text_only", "instances": [{"prompt": "2+2?", "responses": ["4", "5"]}]}
    """
    if not isinstance(value, dict):
        return None
    lists = [key for key, element in value.items() if isinstance(element, list)]
    # Beside the rows only what is said of all of them: a row would hold more text, or another list.
    if len(lists) != 1 or lists[0] not in _WRAPPERS or any(key in _NO_WRAPPER for key in value):
        return None
    if any(isinstance(element, dict) and key not in _ABOUT for key, element in value.items()):
        return None
    rows = value[lists[0]]
    return rows if all(_may_be_row(row) for row in rows) else None


def _may_be_row(value: Any) -> bool:
    """Whether this may be a row: an object, and no turn of a conversation."""
    if not isinstance(value, dict):
        return False
    return "role" not in value and "from" not in value


def _read_jsonl(path: Path) -> Iterator[Record | Line]:
    with _opened(path) as file:
        first = _next_line(file)
        is_alone = not _next_line(file)
    # One list, or one object that holds all rows, under the name of lines.
    if first.lstrip(_BOM).startswith(b"[") or (is_alone and _is_wrapper(first)):
        yield from _read_whole(path)
        return
    yield from _lines(path)


def _is_wrapper(line: bytes) -> bool:
    # Only a line that says so at its beginning is parsed twice.
    if not any(f'"{name}"'.encode() in line[:_WRAPPER_HEAD] for name in _WRAPPERS):
        return False
    try:
        # Of no rows it is a row with an empty list.
        return bool(_wrapped_rows(json.loads(line.decode("utf-8-sig"))))
    except (ValueError, RecursionError):
        return False


def _lines(path: Path) -> Iterator[Line]:
    # Binary lines end at b"\n" alone; text lines and splitlines() would also cut at U+2028 and U+0085.
    with _opened(path) as file:
        for number, data in enumerate(file, start=1):
            yield Line(path, number, data)


def _read_csv(path: Path) -> Iterator[Record]:
    """Rows of a table whose first line names the columns; every value is text."""
    # A prompt may be longer than the 128 KiB that the module allows.
    csv.field_size_limit(_MAX_FIELD)
    with _opened(path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            names = next(reader, [])
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise DataError(
                    f"{path}: the header names {twice[0]!r:.80} twice. Rename one of the columns."
                )
            for values in reader:
                # A line without anything is one that was left at the end.
                if not values:
                    continue
                if len(values) != len(names):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(values)} fields, and the header has "
                        f"{len(names)}. "
                        "Quote text that holds commas, and name the columns in the first line."
                    )
                yield dict(zip(names, values, strict=True))
        except csv.Error as error:
            raise DataError(
                f"{path}, line {reader.line_num}: invalid CSV ({one_line(error)}). Mend that line."
            ) from None
        except UnicodeDecodeError as error:
            raise _not_utf8(path, reader.line_num + 1, error) from None


def _read_parquet(path: Path) -> Iterator[Record]:
    # Here, as below: a command that reads no Parquet need not wait for Arrow.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                yield from _rows_of(batch)
    # A ValueError is a UnicodeDecodeError, too: a column of text need not hold UTF-8, whatever its type says.
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path} is no Parquet file that can be read ({one_line(error)}). Copy or download it anew.",
        ) from None


def _rows_of(batch: pa.RecordBatch) -> list[Record]:
    try:
        return batch.to_pylist()
    # Python's own times end in the year 9999, and without pandas they hold no nanoseconds.
    except (ValueError, OverflowError):
        return _plain_times(batch).to_pylist()


def _plain_times(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows with times as text."""
    import pyarrow as pa

    columns = []
    for column in batch.columns:
        columns.append(column.cast(pa.string()) if pa.types.is_temporal(column.type) else column)
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _read_gz(path: Path) -> Iterator[Record | Line]:
    kind = Path(path.stem).suffix.lower()
    reader = READERS.get(kind)
    if kind not in _PACKED or reader is None:
        raise DataError(f"{path}: packed with gzip may be {', '.join(_PACKED)}. Unpack it: gunzip {path}")
    try:
        yield from reader(path)
    # Not only an OSError: a file that is cut short ends in an EOFError, a damaged one in one of zlib's.
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} cannot be unpacked ({error}). Copy or download it anew.") from None


READERS: dict[str, Callable[[Path], Iterator[Record | Line]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".gz": _read_gz,
}


def _object(row: Any, where: str) -> Record:
    if not isinstance(row, dict):
        raise DataError(f'{where}: found {_kind(row)}; each row must be an object, such as {{"prompt": …}}.')
    return row


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> DataError:
    byte = error.object[error.start]
    return DataError(
        f"{path}, line {line}: not UTF-8 (byte 0x{byte:02x}). Save the file as UTF-8, or mend that line.",
    )
