"""A full disk, a quota or a limit: who says it in what words, and what a person is told."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest

from rlhf import errors
from rlhf.errors import USER_ERRORS, DiskFull, mount_of, writing, writing_by_libraries

NO_SPACE = "Error while serializing: I/O error: No space left on device (os error 28)"
TORCH = "[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/3: file write failed"


@pytest.fixture
def free(monkeypatch):
    def set_free(num_bytes):
        monkeypatch.setattr(errors.shutil, "disk_usage", lambda path: SimpleNamespace(free=num_bytes))

    return set_free


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_the_system_says_it(tmp_path, number):
    with pytest.raises(DiskFull) as full, writing():
        raise OSError(number, "whatever", str(tmp_path / "a" / "file"))
    for part in (
        str(tmp_path / "a" / "file"),
        os.strerror(number),
        f"on the file system of {mount_of(tmp_path)}",
    ):
        assert part in str(full.value)
    assert full.value.exit_code == 2 and USER_ERRORS["DiskFull"] is DiskFull


@pytest.mark.parametrize(
    ("message", "num_free", "why"),
    [
        (NO_SPACE, 1e6, "No space left on device"),
        (TORCH, 1e6, "No space left on device"),
        (NO_SPACE, 50e9, None),  # of another place, such as /dev/shm
        (TORCH, 50e9, None),
        ("I/O error: Disk quota exceeded (os error 122)", 50e9, "Disk quota exceeded"),
        ("I/O error: File too large (os error 27)", 50e9, "File too large"),
        ("CUDA error: out of memory", 1e6, None),
    ],
)
def test_a_library_says_it_in_its_own_words(tmp_path, free, message, num_free, why):
    free(num_free)
    with pytest.raises(RuntimeError if why is None else DiskFull) as raised, writing_by_libraries(tmp_path):
        raise RuntimeError(message)
    assert why is None or f"cannot be written: {why}" in str(raised.value)


def test_a_mount_is_a_folder_above(tmp_path):
    assert os.path.ismount(mount_of(tmp_path / "not" / "there"))
