"""Files that are nearly of a kind: wrappers, lines under another name, gzip, and what a message names."""

from __future__ import annotations

import gzip
import json

import pytest

from rlhf.data.files import read_records
from rlhf.errors import DataError


def write(folder, name, content):
    path = folder / name
    data = content
    if not isinstance(content, bytes):
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


ROWS = [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        (ROWS, ROWS),
        ({"instances": ROWS}, ROWS),
        ({"type": "text", "data": ROWS, "metadata": {"x": 1}}, ROWS),
        ({"data": ROWS, "other": {"x": 1}}, None),
        ({"data": ROWS, "more": [1]}, None),
        ({"mine": ROWS}, None),
        ({"data": [{"role": "user"}]}, None),
        ({"data": [{"from": "user"}]}, None),
        ({"data": [1]}, None),
        ({"data": ROWS, "prompt": "q"}, None),
    ],
)
def test_an_object_may_hold_the_rows(tmp_path, value, rows):
    """In JSON that is no list it is the whole file; in lines it is one row."""
    path = write(tmp_path, "a.json", json.dumps(value, indent=1))
    if rows is None:
        with pytest.raises(DataError, match=r"holds an object; a \.json file must hold one list"):
            list(read_records(path))
    else:
        assert list(read_records(path)) == rows
    assert list(read_records(write(tmp_path, "a.jsonl", value))) == (rows or [value])


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('{"a": 1}\n{"a": 2}', ROWS),
        ('\n {"a": 1}\n\n{"a": 2}\n', ROWS),
        ('{"data": []}\n', []),
        ('[{"a": 1},\n{"a": 2}]', ROWS),
    ],
)
def test_lines_under_the_name_of_json(tmp_path, text, rows):
    path = write(tmp_path, "a.json", text)
    if rows:
        assert list(read_records(path)) == rows
    else:
        with pytest.raises(DataError, match="holds no rows"):
            list(read_records(path))


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.jsonl.gz", '{"a": 1}\n{"a": 2}\n', ROWS),
        ("a.json.gz", ROWS, ROWS),
        ("a.csv.gz", "a\n1\n2\n", [{"a": "1"}, {"a": "2"}]),
        ("A.JSONL.GZ", '{"a": 1}\n{"a": 2}\n', ROWS),
    ],
)
def test_packed_files(tmp_path, name, content, rows):
    path = write(tmp_path, name.lower(), content).rename(tmp_path / name)
    assert list(read_records(path)) == rows


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.gz", "a.txt.gz", "a.gz.gz"])
def test_what_may_not_be_packed(tmp_path, name):
    with pytest.raises(DataError, match=r"packed with gzip may be \.json, \.jsonl, \.csv"):
        list(read_records(write(tmp_path, name, "{}")))


@pytest.mark.parametrize("cut", [5, -5])
def test_a_packed_file_that_is_damaged_is_named(tmp_path, cut):
    path = write(tmp_path, "a.jsonl.gz", '{"a": 1}\n' * 99)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="cannot be"):
        list(read_records(path))


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        ("a.jsonl", '{"a": 1}\n{"a"\n', "a.jsonl, line 2: invalid JSON"),
        ("a.jsonl", '{"a": 1}\n\n3\n', "a.jsonl, line 3: found a number; each row"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', "a.jsonl, line 2: not UTF-8 (byte 0xe9)"),
        ("a.json", '[{"a": 1},\n"x"]', "a.json, row 2: found text; each row"),
        ("a.json", "[1,\n2,\n", "a.json, line 3: invalid JSON"),
        ("a.json", "true", "holds true or false"),
        ("a.json", "null", "holds null"),
        ("a.json", "1.5", "holds a number"),
        ("a.json", "[[]]", "row 1: found a list"),
        ("a.json", b'[{"a":\n"\xe9"}]', "line 2: not UTF-8 (byte 0xe9)"),
        ("a.csv", "a,b\n1,2\n3\n", "line 3: 1 fields, and the header has 2"),
        ("a.csv", "a,b,a\n", "the header names 'a' twice"),
        ("a.csv", 'a\n"x\n', "invalid CSV"),
        ("a.csv", b"a\n\xe9\n", "not UTF-8 (byte 0xe9)"),
        ("a.csv", "a\n", "holds no rows"),
        ("a.parquet", "x", "is no Parquet file"),
    ],
)
def test_a_mistake_is_told_by_its_place(tmp_path, name, content, phrase):
    with pytest.raises(DataError) as error:
        list(read_records(write(tmp_path, name, content)))
    assert phrase in str(error.value)


def test_a_cell_may_be_long_and_a_line_empty(tmp_path):
    long = "x" * 200_000
    path = write(tmp_path, "a.csv", f"a,b\n\n{long},2\n")
    assert list(read_records(path)) == [{"a": long, "b": "2"}]


@pytest.mark.parametrize(("number", "named"), [(0, "none here is"), (5, "4.csv)"), (6, "4.csv)")])
def test_a_folder_names_five_of_its_files(tmp_path, number, named):
    (tmp_path / "other.txt").write_text("")
    for index in range(number):
        (tmp_path / f"{index}.csv").write_text("")
    with pytest.raises(DataError) as error:
        read_records(tmp_path)
    assert named in str(error.value) and "5.csv" not in str(error.value) and "other" not in str(error.value)
