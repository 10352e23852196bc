"""Reading JSON, JSONL and Parquet, and what is said when it cannot be done."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.data.files import read_records, resolved
from rlhf.errors import ConfigError, DataError

ROWS = [{"prompt": "a"}, {"prompt": "b\u2028c\u0085d"}, {"prompt": "é"}]


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def jsonl(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_json(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps(ROWS, ensure_ascii=False))
    assert list(read_records(path)) == ROWS
    assert list(read_records(str(path))) == ROWS


def test_jsonl_splits_at_line_feeds_only(tmp_path: Path) -> None:
    assert list(read_records(write(tmp_path / "a.jsonl", jsonl(ROWS)))) == ROWS


def test_jsonl_with_bom_blank_lines_carriage_returns_and_no_last_line_feed(tmp_path: Path) -> None:
    text = "\ufeff" + '{"prompt": "a"}\r\n\n  \n{"prompt": "b"}'
    assert list(read_records(write(tmp_path / "a.jsonl", text))) == [{"prompt": "a"}, {"prompt": "b"}]


def test_json_with_bom(tmp_path: Path) -> None:
    assert list(read_records(write(tmp_path / "a.json", '\ufeff[{"prompt": "a"}]'))) == [{"prompt": "a"}]


def test_suffix_in_capitals(tmp_path: Path) -> None:
    assert list(read_records(write(tmp_path / "a.JSONL", '{"prompt": "a"}'))) == [{"prompt": "a"}]


def test_parquet_with_nested_columns(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": str(i)}]} for i in range(600)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert list(read_records(tmp_path / "a.parquet")) == rows


def test_jsonl_is_a_stream(tmp_path: Path) -> None:
    """A row is given before a later mistake is seen."""
    records = read_records(write(tmp_path / "a.jsonl", '{"prompt": "a"}\n{broken\n'))
    assert next(records) == {"prompt": "a"}
    with pytest.raises(DataError, match="line 2: invalid JSON"):
        next(records)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", "", "holds no rows"),
        ("a.json", "[]", "holds no rows"),
        ("a.jsonl", "\n\n", "holds no rows"),
        ("a.json", '[\n{"a": 1},\n{"a": }\n]', "line 3: invalid JSON"),
        ("a.json", '{"a": 1}\n{"a": }\n', "line 2: invalid JSON"),
        ("a.json", '{\n"a": 1}\n{"a": 2}\n', r"name it \.jsonl"),
        ("a.json", '{"data": []}', "holds no rows"),
        ("a.json", '{"prompt": "a", "data": []}', "holds an object; a .json file must hold one list"),
        ("a.json", '{"instances": [1]}', "holds an object; a .json file must hold one list"),
        ("a.json", '[{"a": 1}, "b"]', "row 2: found text"),
        ("a.jsonl", '{"a": 1}\n\n[1]\n', "line 3: found a list"),
        ("a.jsonl", '{"a": 1}\nnull\n', "line 2: found null"),
        ("a.jsonl", "true\n", "line 1: found true or false"),
        # Python 3.13 points at the comma, earlier ones behind it.
        ("a.jsonl", '[\n{"a": 1},\n]', "line [23]: invalid JSON"),
        ("a.jsonl", '{"a": 1}\n{"a": 1\n', "line 2: invalid JSON"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}", "line 1: invalid JSON"),
        ("a.jsonl", b'{"a": "x"}\n{"a": "\xe9"}\n', "line 2: not UTF-8 .*0xe9"),
        ("a.json", b'[{"a": "x"},\n{"a": "\xe9"}]\n', "line 2: not UTF-8 .*0xe9"),
        ("a.parquet", b"PAR1 or not", "no Parquet file"),
        ("a.parquet", b"", "no Parquet file"),
        ("a.tsv", "a\tb\n", r"suffix '\.tsv'; known are \.json, \.jsonl, \.parquet, \.csv, \.gz.*Convert"),
        ("a.csv", "a,b\n", "holds no rows"),
        ("a.csv", "a,b\n1,2\n3\n", "line 3: 1 fields, and the header has 2"),
        ("a.csv", "a,b\n1,2,3\n", "line 2: 3 fields"),
        ("a.csv", 'a,b\n1,"2\n', "invalid CSV"),
        ("a.csv", "a,a\n1,2\n", "names 'a' twice"),
        ("a.csv", b"a,b\nx,\xe9\n", "not UTF-8 .*0xe9"),
        ("a.jsonl.gz", b"no gzip", "cannot be (unpacked|read)"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-12], "cannot be unpacked"),
        (
            "a.parquet.gz",
            gzip.compress(b"x", mtime=0),
            r"packed with gzip may be \.json, \.jsonl, \.csv\. Unpack it: gunzip",
        ),
    ],
)
def test_refused(tmp_path: Path, name: str, data: bytes | str, message: str) -> None:
    path = write(tmp_path / name, data)
    with pytest.raises(DataError, match=message) as caught:
        list(read_records(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lines.json", jsonl(ROWS)),
        ("blank.json", "\n" + jsonl(ROWS)),
        ("wrapped.json", json.dumps({"type": "text_only", "instances": ROWS}, indent=1)),
        ("data.json", json.dumps({"version": "1", "data": ROWS})),
        ("list.jsonl", json.dumps(ROWS)),
        ("pretty.jsonl", json.dumps(ROWS, indent=1)),
        ("wrapped.jsonl", json.dumps({"type": "text_only", "instances": ROWS})),
        ("table.csv", '\ufeffprompt\r\na\r\n"b\u2028c\u0085d"\r\né\r\n\r\n'),
    ],
)
def test_files_of_others_packed_and_not(tmp_path: Path, name: str, text: str) -> None:
    assert list(read_records(write(tmp_path / name, text))) == ROWS
    assert list(read_records(write(tmp_path / f"{name}.gz", gzip.compress(text.encode(), mtime=0)))) == ROWS


def test_one_row_is_no_wrapper(tmp_path: Path) -> None:
    row = {"instruction": "a", "instances": [{"input": "b", "output": "c"}]}
    assert list(read_records(write(tmp_path / "a.jsonl", json.dumps(row)))) == [row]
    rows: list[dict[str, Any]] = [
        {"data": [{"role": "user", "content": "a"}]},
        {"data": [{"a": 1}]},
        {"data": []},
    ]
    for first in rows[::2]:
        assert list(read_records(write(tmp_path / "a.jsonl", json.dumps(first)))) == [first]
    text = "".join(json.dumps(each) + "\n" for each in rows[1:])
    assert list(read_records(write(tmp_path / "a.jsonl", text))) == rows[1:]


def test_csv_with_long_cells_line_ends_and_commas(tmp_path: Path) -> None:
    text = "x" * 200_000
    path = write(tmp_path / "a.csv", f'prompt,chosen\n"a, ""b""\nc",{text}\n')
    assert list(read_records(path)) == [{"prompt": 'a, "b"\nc', "chosen": text}]


def test_times_that_python_does_not_hold_are_text(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a"], "when": pa.array([2**31 - 1], pa.date32())})
    pq.write_table(table, tmp_path / "a.parquet")
    (row,) = read_records(tmp_path / "a.parquet")
    assert row["prompt"] == "a" and isinstance(row["when"], str)


def test_empty_parquet_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="holds no rows"):
        list(read_records(tmp_path / "a.parquet"))


def test_missing_file_is_refused_before_reading(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_records(tmp_path / "a.json")


def test_folder_is_refused_with_what_is_in_it(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", "{}")
    with pytest.raises(DataError, match=r"is a folder.*b\.jsonl"):
        read_records(tmp_path)


def forgiving(path: Path, strict: bool = False) -> Path:
    """`Path.resolve` as Python 3.13 has it, as far as loops go."""
    return Path(os.path.abspath(path))


@pytest.mark.parametrize("path", ["loop", "loop/run", "one/run", "x" * 300])
@pytest.mark.parametrize("is_forgiven", [False, True])
def test_what_leads_nowhere_is_refused_by_every_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, is_forgiven: bool
) -> None:
    os.symlink("loop", tmp_path / "loop")
    os.symlink("two", tmp_path / "one")
    os.symlink("one", tmp_path / "two")
    if is_forgiven:
        monkeypatch.setattr(Path, "resolve", forgiving)
    with pytest.raises(ConfigError, match=r"run_dir=.*: leads nowhere .* or mend the links"):
        resolved(f"{tmp_path}/{path}", "run_dir")


def test_what_is_not_there_yet_leads_somewhere(tmp_path: Path) -> None:
    os.symlink("missing", tmp_path / "dangling")
    (tmp_path / "file").write_text("")
    assert resolved(f"{tmp_path}/dangling", "run_dir") == tmp_path / "missing"
    assert resolved(f"{tmp_path}/file/run", "run_dir") == tmp_path / "file" / "run"
    assert resolved(f"{tmp_path}/a/b", "run_dir") == tmp_path / "a" / "b"
