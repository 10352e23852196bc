"""Who may work on a run folder that machines share: where locks do not reach, the record decides."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from rlhf.errors import ConfigError, RunInUse, UserError, WorkerFailed
from rlhf.run import file_system_probe, holder, lock
from rlhf.run.file_system import FileSystem
from rlhf.run.holder import DRIVER_LOCK, Here, Holder, holder_in, read_holder, started_at, write_holder
from rlhf.run.lock import WORKERS_LOCK, driver_of, hold_run, join_run, require_ours, still_ours
from rlhf.run.progress import here, write_progress

ROOT = Path(__file__).resolve().parents[3]
NODE7 = Here("node7", "another-boot", "pid:[1]")
DRIVER = """
import sys
from pathlib import Path
from rlhf.run import lock
from rlhf.run.file_system import FileSystem
lock.file_system_of = lambda folder: FileSystem("nfs4", "/mnt")
with lock.hold_run(Path(sys.argv[1]), print) as token:
    print(token, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def shared(monkeypatch):
    """Every folder lies on NFS."""
    for module in (lock, file_system_probe):
        monkeypatch.setattr(module, "file_system_of", lambda folder: FileSystem("nfs4", "/mnt"))


@pytest.fixture
def without_locks(monkeypatch):
    """No file system has locks; returns the error it gives, which a test may change."""
    said = [errno.ENOLCK]

    def flock(file, operation):
        raise OSError(said[0], os.strerror(said[0]))

    monkeypatch.setattr(fcntl, "flock", flock)
    return said


def left_by(folder, **changes):
    """A record of a driver of node7 that has not ended."""
    values = asdict(
        Holder("4711", "node7", "old", "2026-11-27 05:14:50 UTC", "another-boot", "pid:[1]", "88")
    )
    (folder / DRIVER_LOCK).write_text(json.dumps(values | changes))


def take(folder, **arguments):
    """What is said while a folder is taken and given back."""
    said = []
    with hold_run(folder, said.append, **arguments) as token:
        assert still_ours(folder, token)
    return said


def refused(folder, **arguments):
    before = (folder / DRIVER_LOCK).read_bytes()
    with pytest.raises(RunInUse) as refusal:
        take(folder, **arguments)
    assert (folder / DRIVER_LOCK).read_bytes() == before, "the record of the other one was touched"
    return str(refusal.value)


def test_a_driver_of_another_host_is_not_taken_over_without_a_word(tmp_path, shared):
    left_by(tmp_path)
    text = refused(tmp_path)
    assert f"{tmp_path} is held by process 4711 on node7, started 2026-11-27 05:14:50 UTC, no sign of" in text
    assert "(nfs4)" in text and "take_over=node7:4711" in text and "run_dir=<a new folder>" in text


def test_its_last_sign_of_life_is_told(tmp_path, shared):
    left_by(tmp_path)
    (tmp_path / "logs").mkdir()
    noted = here([], {}, time.time())
    noted.pid, noted.host, noted.written_at = 4711, "node7", time.time() - 7200
    write_progress(tmp_path, noted)
    assert ", last sign of life 2.0 h ago" in refused(tmp_path)
    noted.host = "node8"
    write_progress(tmp_path, noted)
    assert ", no sign of life." in refused(tmp_path), "these notes are another driver's"


def test_on_a_disk_of_this_machine_the_kernel_decides(tmp_path):
    left_by(tmp_path)
    assert take(tmp_path) == []


def test_the_explicit_word_takes_over(tmp_path, shared):
    left_by(tmp_path)
    said = take(tmp_path, take_over="node7:4711")
    assert said[0].startswith(f"{tmp_path}: taken over from process 4711 on node7, started 2026")
    assert read_holder(tmp_path).pid == str(os.getpid())


@pytest.mark.parametrize("word", ["node8:4711", "node7:471", "node7", "", ":", "node7:4711\x1b[2J"])
def test_a_word_that_names_another_is_refused(tmp_path, shared, word):
    left_by(tmp_path)
    text = refused(tmp_path, take_over=word)
    assert "names another one" in text and "take_over=node7:4711" in text and "\x1b" not in text


@pytest.mark.parametrize("word", ["node7:4711", "anything"])
def test_where_nobody_has_it_the_word_does_no_harm(tmp_path, shared, word):
    assert f"take_over={word}: nobody has" in take(tmp_path / "new", take_over=word)[0]
    assert f"take_over={word}: nobody has" in take(tmp_path / "new", take_over=word)[0]  # ended in order
    left_by(tmp_path, ended="2026-11-27 06:00:00 UTC")
    assert "nothing to take over" in take(tmp_path, take_over=word)[0]


def test_a_clean_end_is_never_stale(tmp_path, shared, monkeypatch):
    monkeypatch.setattr(holder, "here", lambda: NODE7)
    take(tmp_path)
    assert read_holder(tmp_path).host == "node7" and read_holder(tmp_path).ended.endswith("UTC")
    monkeypatch.undo()
    monkeypatch.setattr(lock, "file_system_of", lambda folder: FileSystem("nfs4", "/mnt"))
    assert take(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, WorkerFailed, SystemExit])
def test_every_end_but_a_kill_is_one_in_order(tmp_path, shared, error):
    (tmp_path / "work").write_text("")
    with pytest.raises(error), hold_run(tmp_path, print):
        raise error
    assert read_holder(tmp_path).ended


def start(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, folder],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline()
    return process


def test_a_driver_that_was_killed_here_is_taken_over_at_once(tmp_path, shared):
    process = start(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not read_holder(tmp_path).ended
    assert take(tmp_path) == []


def test_a_driver_that_lives_here_is_never_taken_over(tmp_path, shared, without_locks):
    process = start(tmp_path)  # locked for itself, and nobody sees it
    text = refused(tmp_path, take_over=read_holder(tmp_path).word)
    assert f"is in use by process {process.pid} on " in text and "does not help" in text
    process.communicate("\n")
    assert "has no locks" in take(tmp_path)[0]


def test_a_number_that_is_another_processs_by_now(tmp_path, shared):
    process = start(tmp_path)
    process.kill()
    process.communicate()
    record = json.loads((tmp_path / DRIVER_LOCK).read_text())
    (tmp_path / DRIVER_LOCK).write_text(json.dumps(record | {"pid": str(os.getppid())}))
    assert take(tmp_path) == []
    born = started_at(os.getppid())
    (tmp_path / DRIVER_LOCK).write_text(json.dumps(record | {"pid": str(os.getppid()), "born": born}))
    assert "in use" in refused(tmp_path)


@pytest.mark.parametrize("changes", [{"boot": "b"}, {"pid_space": "pid:[1]"}, {"host": "node7"}])
def test_another_boot_container_or_name_is_another_machine(tmp_path, shared, changes):
    process = start(tmp_path)
    process.kill()
    process.communicate()
    record = json.loads((tmp_path / DRIVER_LOCK).read_text())
    (tmp_path / DRIVER_LOCK).write_text(json.dumps(record | changes))
    assert driver_of(tmp_path).is_alive is None
    assert "take_over=" in refused(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EIO])
def test_a_file_system_without_locks_is_told_of(tmp_path, shared, without_locks, number):
    without_locks[0] = number
    said = []
    with hold_run(tmp_path, said.append) as token:
        assert said == [f"{tmp_path}: its file system (nfs4) has no locks; {DRIVER_LOCK} alone decides"]
        join_run(tmp_path, token).close()
        assert "in use" in refused(tmp_path)
        with pytest.raises(WorkerFailed):
            join_run(tmp_path, "another")
    left_by(tmp_path)
    assert "take_over=node7:4711" in refused(tmp_path)
    take(tmp_path, take_over="node7:4711")


def test_a_local_disk_without_locks_is_held_by_the_record_too(tmp_path, without_locks):
    left_by(tmp_path)
    assert "take_over=node7:4711" in refused(tmp_path)


def test_another_error_of_a_lock_is_no_lack_of_locks(tmp_path, without_locks):
    without_locks[0] = errno.EBADF
    with pytest.raises(OSError, match="Bad file"):
        take(tmp_path)


def test_a_lock_that_a_server_keeps_for_a_dead_machine_is_left_to_it(tmp_path, shared):
    left_by(tmp_path)
    with open(tmp_path / DRIVER_LOCK, "r+") as server:
        fcntl.flock(server, fcntl.LOCK_EX)
        assert "take_over=node7:4711" in refused(tmp_path)
        with hold_run(tmp_path, print, take_over="node7:4711") as token:
            assert still_ours(tmp_path, token)
            assert not os.path.samestat(os.fstat(server.fileno()), (tmp_path / DRIVER_LOCK).stat())
            with open(tmp_path / DRIVER_LOCK) as new, pytest.raises(BlockingIOError):
                fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert sorted(path.name for path in tmp_path.iterdir()) == [DRIVER_LOCK, WORKERS_LOCK]


def test_a_workers_lock_that_a_server_keeps_can_be_removed(tmp_path, shared, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(lock, "holders_of", lambda path: [])
    said = []

    def listen(text):
        said.append(text)
        if len(said) == 2:
            (tmp_path / WORKERS_LOCK).unlink()

    with open(tmp_path / WORKERS_LOCK, "w") as server:
        fcntl.flock(server, fcntl.LOCK_SH)
        with hold_run(tmp_path, listen):
            pass
    assert f"rm {tmp_path / WORKERS_LOCK}" in said[1]


def test_a_driver_that_was_taken_over_stops_and_leaves_the_others_record(tmp_path, shared):
    def work():
        with hold_run(tmp_path / "run", print) as token:
            require_ours(tmp_path / "run", token)
            left_by(tmp_path / "run")
            require_ours(tmp_path / "run", token)

    with pytest.raises(RunInUse, match="taken over by process 4711 on node7, started 2026"):
        work()
    assert read_holder(tmp_path / "run").token == "old" and not read_holder(tmp_path / "run").ended


@pytest.mark.parametrize("content", [None, "", "[]", "{", '{"token": 1}'])
def test_a_record_that_is_gone_is_not_ours(tmp_path, content):
    with hold_run(tmp_path, print) as token:
        if content is None:
            (tmp_path / DRIVER_LOCK).unlink()
        else:
            (tmp_path / DRIVER_LOCK).write_text(content)
        with pytest.raises(RunInUse, match="gone or damaged"):
            require_ours(tmp_path, token)


def test_old_records_are_read(tmp_path, shared):
    """Of a version that wrote pid, host and token, and its end into its notes alone."""
    old = {"pid": "4711", "host": "node7", "token": "5f0c"}
    (tmp_path / DRIVER_LOCK).write_text(json.dumps(old))
    assert "held by process 4711 on node7, no sign of life" in refused(tmp_path)
    (tmp_path / "logs").mkdir()
    noted = here([], {}, time.time())
    noted.pid, noted.host, noted.ended = 4711, "node7", "finished"
    write_progress(tmp_path, noted)
    assert take(tmp_path) == []
    (tmp_path / DRIVER_LOCK).write_text(json.dumps(old | {"host": holder.here().host, "pid": "4194305"}))
    assert take(tmp_path) == []


def test_a_record_is_replaced_in_one_write(tmp_path):
    long, short = Holder("1", "h" * 200, "a"), Holder("22", "host", "b")
    path = tmp_path / DRIVER_LOCK
    path.write_text("")
    with open(path, "r+") as file:
        for each in (short, long, short):
            inode = path.stat().st_ino
            write_holder(file, each, is_local=False)
            assert read_holder(tmp_path) == each == holder_in(path.read_text())
            assert path.stat().st_ino == inode, "the file that is locked"


def test_a_record_of_others_may_hold_anything(tmp_path):
    (tmp_path / DRIVER_LOCK).write_text(json.dumps({"pid": "7", "host": "a\x1b[2J\nb", "token": ["x"]}))
    assert read_holder(tmp_path) == Holder("7", "a\\x1b[2J\\nb")


def test_two_that_begin_at_once_are_one(tmp_path, shared, without_locks, monkeypatch):
    """The other one's record comes right after this one's."""
    write = lock.write_holder

    def late(file, holder, is_local):
        write(file, holder, is_local)
        left_by(tmp_path / "run")

    monkeypatch.setattr(lock, "write_holder", late)
    with pytest.raises(RunInUse, match="taken over by process 4711 on node7"):
        take(tmp_path / "run")
    assert read_holder(tmp_path / "run").token == "old", "what it has made is not removed"


def test_a_record_that_is_about_to_be_written_is_waited_for(tmp_path, shared, without_locks, monkeypatch):
    (tmp_path / DRIVER_LOCK).write_text("")
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: left_by(tmp_path))
    with pytest.raises(RunInUse, match="process 4711 on node7"):
        take(tmp_path)


def test_a_record_that_cannot_be_written_is_said(tmp_path, shared, monkeypatch):
    def pwrite(descriptor, content, place):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(ConfigError, match="No space left"):
        take(tmp_path)
