"""On what a folder lies, and what is asked of a network file system."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rlhf.data.shards import fsync_dir
from rlhf.errors import ConfigError
from rlhf.run import file_system, file_system_probe, lock
from rlhf.run.file_system import FileSystem, file_system_of
from rlhf.run.file_system_probe import leave_mark, read_mark, require_file_system
from rlhf.run.lock import hold_run

MOUNTS = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
30 27 0:27 / /data rw,relatime shared:1 master:2 - nfs4 server:/x rw
31 30 0:28 / /data/fast rw - lustre mgs:/x rw
32 27 0:29 / /with\040space rw - fuse.sshfs me@host:/ rw
33 27 0:30 / /data rw - xfs /dev/vdb rw
a line of another kind
""".strip()


@pytest.mark.parametrize(
    ("folder", "found"),
    [
        ("/", ("/", "ext4")),
        ("/home/run", ("/", "ext4")),
        ("/data", ("/data", "xfs")),  # mounted over the other
        ("/data/fast/run", ("/data/fast", "lustre")),
        ("/data/faster", ("/data", "xfs")),
        ("/with space/run", ("/with space", "fuse.sshfs")),
    ],
)
def test_the_longest_mount_point_above_it(folder, found):
    assert file_system._found(MOUNTS, None, folder) == found


def test_the_mounts_number_goes_before_names():
    assert file_system._found(MOUNTS, "30", "/data/fast/run") == ("/data", "nfs4")
    assert file_system._found(MOUNTS, "99", "/data") is None, "under another root it may not be listed"


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs", "ext2", "ext3"])
def test_disks_of_this_machine(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(file_system, "_found", lambda *_: ("/mnt", kind))
    assert file_system_of(tmp_path) == FileSystem(kind, "/mnt", is_local=True)


@pytest.mark.parametrize(
    "kind",
    [
        "nfs",
        "nfs4",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "cifs",
        "smb3",
        "9p",
        "virtiofs",
        "fuse",
        "gfs2",
        "new",
    ],
)
def test_all_others_may_be_shared(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(file_system, "_found", lambda *_: ("/mnt", kind))
    assert not file_system_of(tmp_path).is_local


def test_what_is_not_listed_may_be_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(file_system, "_found", lambda *_: None)
    assert file_system_of(tmp_path) == FileSystem("unknown")


def test_without_proc_the_kernel_is_taken_at_its_word(tmp_path, monkeypatch):
    monkeypatch.setattr(file_system, "_PROC", tmp_path / "none")
    assert file_system_of(tmp_path).is_local


def test_here_it_is_what_the_system_says(tmp_path):
    command = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", tmp_path]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert file_system_of(tmp_path).kind == said.stdout.split()[-1]
    assert file_system_of(Path("/dev/shm")).kind == "tmpfs"


def test_a_disk_of_this_machine_can_do_all_of_it(tmp_path):
    assert require_file_system(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def denied(number):
    def deny(*arguments, **keywords):
        raise OSError(number, os.strerror(number))

    return deny


def refused(folder):
    with pytest.raises(ConfigError) as refusal:
        require_file_system(folder)
    assert list(folder.iterdir()) == [], "something of the probe was left"
    text = str(refusal.value)
    assert str(folder) in text and "run_dir=<a new folder>" in text and "docs/file_systems.md" in text
    return text


@pytest.mark.parametrize(
    ("module", "name", "number", "said"),
    [
        (os, "replace", errno.EOPNOTSUPP, "a file is replaced in one step: Operation not supported"),
        (os, "rename", errno.EXDEV, "a folder is renamed: Invalid cross-device link"),
        (os, "fsync", errno.EIO, "a file is on the disk when it was synced: Input/output error"),
        (os, "chmod", errno.EPERM, "permissions are set: Operation not permitted"),
        (mmap, "mmap", errno.ENODEV, "a file is mapped into memory: No such device"),
    ],
)
def test_what_a_run_cannot_do_without(tmp_path, monkeypatch, module, name, number, said):
    monkeypatch.setattr(module, name, denied(number))
    assert f"  {said}" in refused(tmp_path)


def test_what_is_not_exclusive(tmp_path, monkeypatch):
    opened = os.open

    def again(path, flags, *rest, **keywords):
        return opened(path, flags & ~os.O_EXCL, *rest, **keywords)

    monkeypatch.setattr(os, "open", again)
    assert "(O_EXCL): a file that was there was made a second time" in refused(tmp_path)


def copied(source, target):
    """A replacement in two steps, as some file systems make it."""
    os.unlink(target)
    threading.Event().wait(0.02)
    os.rename(source, target)


def half(source, target):
    content = Path(source).read_bytes()
    with open(target, "r+b") as file:
        file.truncate(len(content) // 2)
        file.flush()
        threading.Event().wait(0.02)
        file.seek(0)
        file.write(content)


@pytest.mark.parametrize(
    ("replace", "said"), [(copied, "No such file"), (half, "neither the old file nor the new one")]
)
def test_a_replacement_in_two_steps_is_seen(tmp_path, monkeypatch, replace, said):
    monkeypatch.setattr(os, "replace", replace)
    assert said in refused(tmp_path)


def test_a_replacement_that_is_not_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda source, target: None)
    assert "the old file was read" in refused(tmp_path)


def test_everything_that_it_lacks_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(file_system_probe, "file_system_of", lambda folder: FileSystem("fuse.s3", "/mnt\n"))
    monkeypatch.setattr(os, "rename", denied(errno.ENOTSUP))
    monkeypatch.setattr(os, "chmod", denied(errno.EPERM))
    text = refused(tmp_path)
    assert "(type fuse.s3, mounted at /mnt\\n)" in text
    assert "a folder is renamed" in text and "permissions are set" in text


def test_what_it_may_lack_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", denied(errno.EPERM))
    assert require_file_system(tmp_path) == [
        "hard links: Operation not permitted; what other runs have finished (reuse) is copied"
    ]
    exists = Path.exists
    monkeypatch.setattr(
        Path, "exists", lambda path: exists(path) or exists(path.with_name(path.name.lower()))
    )
    monkeypatch.setattr(file_system_probe.time, "time", lambda: 0.0)
    notes = require_file_system(tmp_path)
    assert any("one name here" in note for note in notes) and any(
        "after this machine's" in note for note in notes
    )


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_synced_is_noted_and_no_error_later(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def files_only(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    (note,) = require_file_system(tmp_path)
    assert note.startswith("a folder is synced: ")
    fsync_dir(tmp_path)


def test_a_folder_whose_sync_fails_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", denied(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        fsync_dir(tmp_path)


def test_what_a_killed_probe_has_left_goes_with_the_next(tmp_path):
    (tmp_path / file_system_probe.PROBE / "replace").mkdir(parents=True)
    leave_mark(tmp_path, "x")
    assert require_file_system(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_run_on_a_network_file_system_is_probed_at_its_start(tmp_path, monkeypatch):
    for module in (lock, file_system_probe):
        monkeypatch.setattr(module, "file_system_of", lambda folder: FileSystem("nfs4", "/mnt"))
    monkeypatch.setattr(os, "link", denied(errno.EPERM))
    said = []
    with hold_run(tmp_path / "run", said.append):
        pass
    assert said == [
        f"  ! {tmp_path / 'run'} (nfs4): hard links: Operation not permitted; what other runs have finished "
        "(reuse) is copied"
    ]
    monkeypatch.setattr(mmap, "mmap", denied(errno.ENODEV))
    with pytest.raises(ConfigError, match="cannot do what a run asks"), hold_run(tmp_path / "other", print):
        pass
    assert not (tmp_path / "other").exists(), "a refused run leaves no trace"


def test_a_run_on_a_disk_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(mmap, "mmap", denied(errno.ENODEV))
    with hold_run(tmp_path, print):
        pass


WRITER = """
import sys, time
from pathlib import Path
from rlhf.run.file_system_probe import leave_mark
sys.stdin.readline()
time.sleep(0.2)
leave_mark(Path(sys.argv[1]), "from there", "there")
"""


def test_marks_are_read_as_soon_as_they_are_there(tmp_path):
    mark = leave_mark(tmp_path, "first")
    assert read_mark(mark, "first", 0.0) >= 0
    assert leave_mark(tmp_path, "one", "name") == leave_mark(tmp_path, "two", "name")
    assert read_mark(tmp_path / ".mark-name", "two", 0.0) >= 0
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path], stdin=subprocess.PIPE, text=True,
        cwd=Path(__file__).resolve().parents[3],
    )  # fmt: skip
    writer.stdin.write("\n")
    writer.stdin.flush()
    assert read_mark(tmp_path / ".mark-there", "from there", 60.0) > 0
    writer.communicate()


def test_a_node_that_sees_another_folder_or_old_content_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"\(\.mark-none: no such file\)"):
        read_mark(tmp_path / ".mark-none", "text", 0.0)
    mark = leave_mark(tmp_path, "old")
    with pytest.raises(ConfigError, match="an older or a half-written one") as refusal:
        read_mark(mark, "new", 0.1)
    assert str(tmp_path) in str(refusal.value) and "Ways out" in str(refusal.value)
    with pytest.raises(ConfigError, match=r"\(not there\).*no such file"):
        read_mark(tmp_path / "gone" / ".mark-x", "text", 0.0)
