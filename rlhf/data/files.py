"""Records of JSON, JSONL and Parquet files, whatever is in them.

JSONL and Parquet are read as a stream; a JSON list is read whole, so memory grows with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf.errors import ConfigError, DataError

Record = dict[str, Any]

_BATCH_ROWS = 256
_NUM_NAMES = 5
"""How many files of a folder a message names."""


def resolved(path: str, key: str) -> Path:
    """The absolute path a value names, be something there or not.

    Raises:
        ConfigError: a loop of links, or a name that is too long.
    """
    try:
        absolute = Path(path).expanduser().resolve()
        # `resolve` forgives a name that is too long; only a look at the disk finds it.
        absolute.exists()
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
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    kinds = ", ".join(READERS)
    if path.is_dir():
        names = _readable_names(path)
        content = ", ".join(names) or f"none here is {kinds}"
        raise DataError(f"{path} is a folder. Name one file in it ({content}).")
    if not path.exists():
        raise DataError(f"{path} does not exist. Check the spelling; relative paths start at {Path.cwd()}.")
    if reader is None:
        raise DataError(
            f"{path} has the suffix {path.suffix!r}; known are {kinds}. Convert it, or rename it to fit.",
        )
    return _not_empty(path, reader(path))


def _readable_names(folder: Path) -> list[str]:
    names = []
    for path in folder.iterdir():
        if path.suffix.lower() in READERS:
            names.append(path.name)
    names.sort()
    return names[:_NUM_NAMES]


def _not_empty(path: Path, records: Iterator[Record]) -> Iterator[Record]:
    empty = True
    try:
        for record in records:
            empty = False
            yield record
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error}). Check its rights and the disk, or name a copy.",
        ) from None
    if empty:
        raise DataError(f"{path} holds no rows. Put some in, or name another file.")


def _read_json(path: Path) -> Iterator[Record]:
    data = path.read_bytes()
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
        raise DataError(f"{path}, line {line}: invalid JSON ({error}). Mend the file.{hint}") from None
    if not isinstance(rows, list):
        raise DataError(
            f"{path} holds {_kind(rows)}; a .json file must hold one list of objects. Wrap it in [ ].",
        )
    for number, row in enumerate(rows, start=1):
        yield _object(row, f"{path}, row {number}")


def _read_jsonl(path: Path) -> Iterator[Record]:
    # Binary lines end at b"\n" alone; text lines and splitlines() would also cut at U+2028 and U+0085.
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            encoding = "utf-8-sig" if number == 1 else "utf-8"
            try:
                text = line.decode(encoding)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, error) from None
            # Blank lines are common at the end of files joined by hand.
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                opens_a_list = number == 1 and text.strip() == "["
                hint = " One list over many lines? Then name it .json." if opens_a_list else ""
                raise DataError(
                    f"{path}, line {number}: invalid JSON ({error}). Mend that line.{hint}",
                ) from None
            yield _object(row, f"{path}, line {number}")


def _read_parquet(path: Path) -> Iterator[Record]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                yield from batch.to_pylist()
    # A UnicodeDecodeError too: a column of text need not hold UTF-8, whatever its type says.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is no Parquet file that can be read ({error}). Copy or download it anew.",
        ) from None


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
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
