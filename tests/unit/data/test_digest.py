"""Content digests: equal for equal content, another one for any change."""

from __future__ import annotations

import errno
import hashlib
import threading

import pytest

from rlhf.data import digest

TEXT = b"some bytes"


def write(path, data=TEXT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_the_order_of_keys_is_no_difference_and_letters_stay_as_they_are():
    assert digest.canonical({"b": [1, 2], "a": "é"}) == '{"a":"é","b":[1,2]}'
    assert digest.digest_of({"a": 1, "b": 2}) == digest.digest_of({"b": 2, "a": 1})
    assert digest.digest_of([1, 2]) == hashlib.sha256(b"[1,2]").hexdigest()


def test_a_seal_fits_what_it_seals_and_nothing_else():
    record = {"state": "é", "pair": (1, 2), 3: None}
    data = digest.sealed(record)
    assert digest.unsealed(data) == {"state": "é", "pair": [1, 2], "3": None}
    assert data.startswith(b'{\n "state": "\xc3\xa9",')
    for damaged in (data.replace(b"1", b"4"), b"[]", b"{}", data[:-1]):
        with pytest.raises(ValueError):  # noqa: PT011  JSON's own error is one
            digest.unsealed(damaged)


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 2**21 + 5])
def test_a_file_of_any_size_is_hashed_whole(tmp_path, size):
    data = bytes(range(256)) * (size // 256 + 1)
    path = write(tmp_path / "file", data[:size])
    assert digest.digest_file(path) == hashlib.sha256(data[:size]).hexdigest()
    assert digest.digest_file(path, threading.Event()) == hashlib.sha256(data[:size]).hexdigest()


def test_hashing_is_given_up_when_it_is_told_to_stop(tmp_path):
    stop = threading.Event()
    stop.set()
    assert digest.digest_file(write(tmp_path / "file"), stop) == hashlib.sha256(b"").hexdigest()


def test_hidden_files_and_folders_are_no_content(tmp_path):
    folder = tmp_path / ".below_a_hidden_one"
    for name in ("b.txt", "a/c.txt", ".hidden", "a/.hidden", ".cache/d.txt"):
        write(folder / name)
    assert digest.list_files(folder) == ["a/c.txt", "b.txt"]


def test_files_are_told_by_size_and_digest(tmp_path):
    for name in ("b.txt", "a/c.txt"):
        write(tmp_path / name, name.encode())
    files = digest.digest_files(tmp_path, ["b.txt", "a/c.txt"])
    assert files == {
        name: {"bytes": len(name), "sha256": hashlib.sha256(name.encode()).hexdigest()}
        for name in ("b.txt", "a/c.txt")
    }


FILES = {name: {"bytes": 1, "sha256": name * 2} for name in ("a/b", "a/c", "ab", "d")}


@pytest.mark.parametrize(
    ("below", "of"),
    [
        ("", {"a/b": "a/ba/b", "a/c": "a/ca/c", "ab": "abab", "d": "dd"}),
        ("a", {"b": "a/ba/b", "c": "a/ca/c"}),
        ("nothing", {}),
    ],
)
def test_a_folder_is_told_by_the_files_below_it(below, of):
    assert digest.digest_of_files(FILES, below) == digest.digest_of(of)


def test_one_file_is_told_by_its_own_digest():
    assert digest.digest_of_files(FILES, "d") == "dd"


def test_a_disk_that_cannot_read_names_the_file(tmp_path, monkeypatch):
    path = write(tmp_path / "file")

    class Broken:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def read(self, size):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("builtins.open", lambda *arguments: Broken())
    with pytest.raises(OSError, match="Input/output error") as raised:
        digest.digest_file(path)
    assert raised.value.filename == str(path)
