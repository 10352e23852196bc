"""Drivers on several hosts and one run folder, with real processes, mounts and commands.

A host of its own is a name and a space of process numbers (`unshare`), which wants root. What does not carry
locks from host to host is a folder that is mounted twice by `bindfs` (FUSE); where that program is missing, a
file system whose type is said to be nfs4.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
AS_NFS = """
from rlhf.run import file_system_probe, lock
from rlhf.run.file_system import FileSystem
lock.file_system_of = file_system_probe.file_system_of = lambda folder: FileSystem("nfs4", "/mnt")
"""
# The test below says why this one is refused.
NOT_REPLACED = """
from rlhf.run import file_system_probe
del file_system_probe._CHECKS["a file is replaced in one step"]
"""
DRIVER = """
import sys
from pathlib import Path
from rlhf.run.lock import hold_run
with hold_run(Path(sys.argv[1]), print) as token:
    print("held", flush=True)
    sys.stdin.readline()
"""
COMMAND = """
import runpy
runpy.run_module("rlhf.iterate", run_name="__main__")
"""


def can_be_another_host():
    made = subprocess.run(
        ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "true"], capture_output=True
    )
    return made.returncode == 0


pytestmark = pytest.mark.skipif(
    shutil.which("unshare") is None or not can_be_another_host(), reason="no right to make namespaces"
)


def mounted(kind, options, target, *words):
    done = subprocess.run(
        ["mount", "-t", kind, "-o", options, *words, target], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no {kind} can be mounted here: {done.stderr.strip()}")


@pytest.fixture(params=["said to be nfs4", "fuse"])
def shared(request, tmp_path):
    """Where a folder lies on one host and on the other, and what makes it one without common locks."""
    if request.param != "fuse":
        (tmp_path / "folder").mkdir()
        yield tmp_path / "folder", tmp_path / "folder", AS_NFS
        return
    if shutil.which("bindfs") is None or not os.path.exists("/dev/fuse"):
        pytest.skip("no bindfs, which mounts a folder twice")
    for name in ("folder", "one", "other"):
        (tmp_path / name).mkdir()
    try:
        for name in ("one", "other"):
            subprocess.run(["bindfs", tmp_path / "folder", tmp_path / name], check=True)
        yield tmp_path / "one", tmp_path / "other", NOT_REPLACED
    finally:
        for name in ("one", "other"):
            subprocess.run(["umount", "-l", tmp_path / name], capture_output=True)


@pytest.fixture(params=["tmpfs", "overlay"])
def local(request, tmp_path):
    """A folder on a file system of this machine that is mounted for the test."""
    place = tmp_path / "place"
    place.mkdir()
    if request.param == "tmpfs":
        mounted("tmpfs", "size=16m", place, "tmpfs")
    else:
        base = tmp_path / "base"
        base.mkdir()
        mounted("tmpfs", "size=16m", base, "tmpfs")
        for name in ("lower", "upper", "work"):
            (base / name).mkdir()
        mounted(
            "overlay", f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work", place, "overlay"
        )
    yield place
    subprocess.run(["umount", "-l", place], check=True)
    if request.param == "overlay":
        subprocess.run(["umount", "-l", tmp_path / "base"], check=True)


def environment():
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return dict(os.environ, PYTHONPATH=path, HF_HUB_OFFLINE="1")


def elsewhere(folder, before=""):
    """A driver at work on a host named node7."""
    there = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(
        [
            *there,
            "sh",
            "-c",
            'hostname node7; exec "$@"',
            "sh",
            sys.executable,
            "-c",
            before + DRIVER,
            folder,
        ],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = process.stdout.readline()
    assert said == "held\n", said + process.stdout.read()
    return process


def kill(process):
    process.kill()
    process.stdout.read()  # until the driver is gone: the end of its input would let it end in order
    process.communicate()


def here(folder, before="", *arguments):
    """Exit code and output of a driver of this host that leaves at once."""
    code = before + DRIVER.replace("print)", f"print, take_over={arguments[0]!r})" if arguments else "print)")
    failing = code + "\n"
    wrapped = f"from rlhf.errors import UserError\ntry:\n{indented(failing)}\nexcept UserError as error:\n    sys.exit(str(error))"
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + wrapped, folder],
        env=environment(),
        input="\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def indented(code):
    return "\n".join(f"    {line}" for line in code.splitlines())


def test_a_driver_of_another_host_is_left_alone_until_the_word(shared):
    one, other, before = shared
    process = elsewhere(one / "run", before)
    word = f"node7:{json.loads((one / 'run' / '.driver.lock').read_text())['pid']}"
    code, said = here(other / "run", before)
    assert code == 1 and f"process {word.split(':')[1]} on node7" in said, said
    kill(process)
    if one == other:  # one mount: the kernel's lock is free now, and the record is not
        code, said = here(other / "run", before)
        assert code == 1 and "cannot be seen from here" in said, said
    assert f"take_over={word}" in here(other / "run", before)[1]
    code, said = here(other / "run", before, "node7:99999")
    assert code == 1 and "take_over=node7:99999 names another one" in said, said
    code, said = here(other / "run", before, word)
    assert code == 0 and f"taken over from process {word.split(':')[1]} on node7" in said, said
    assert here(one / "run", before) == (0, "held\n"), "it has ended in order"


def test_a_clean_end_there_is_none_to_take_over(shared):
    one, other, before = shared
    process = elsewhere(one / "run", before)
    process.communicate("\n")
    assert here(other / "run", before) == (0, "held\n")
    code, said = here(other / "run", before, "node7:1")
    assert code == 0 and "nothing to take over" in said


def test_two_drivers_of_one_host_see_each_other_through_two_mounts(shared):
    one, other, before = shared
    process = subprocess.Popen(
        [sys.executable, "-c", before + DRIVER, one / "run"],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    code, said = here(other / "run", before)
    assert code == 1 and f"in use by process {process.pid} on " in said, said
    kill(process)
    assert here(other / "run", before) == (0, "held\n"), "that it is gone can be seen"


def test_on_a_disk_of_this_machine_a_new_container_takes_over_a_dead_ones_run(local):
    process = elsewhere(local / "run")
    code, said = here(local / "run")
    assert code == 1 and "in use by process" in said and "on node7" in said, said
    kill(process)
    assert here(local / "run") == (0, "held\n")


@pytest.fixture
def given(tmp_path):
    with tarfile.open(ROOT / "tests" / "data" / "old_run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "given"


def typed(given, before, *words):
    """The real command, up to its first stage."""
    done = subprocess.run(
        [
            *(sys.executable, "-c", before + COMMAND, "model.path=policy", "prompts.path=prompts.json"),
            *("reward_model.rule=old_run_rules:num_words", "prompts.num_held_out=5", "until=prompts"),
            *("compute.device=cpu", "num_iterations=1", "prompts.num_per_iteration=5", *words),
        ],
        cwd=given,
        env=environment() | {"PYTHONPATH": f"{ROOT}:{given}:{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def test_the_command(shared, given):
    one, other, before = shared
    run = other / "run"
    process = elsewhere(one / "run", before)
    pid = json.loads((run / ".driver.lock").read_text())["pid"]
    kill(process)
    code, said = typed(given, before, f"run_dir={run}")
    assert code == 2 and f"take_over=node7:{pid}" in said and "Traceback" not in said, said
    assert not (run / "prompts").exists() and not (run / "config.yaml").exists()
    code, said = typed(given, before, f"run_dir={run}", f"take_over=node7:{pid}")
    assert code == 0 and "taken over from" in said and "✓ prompts" in said, said
    assert "take_over: null" in (run / "config.yaml").read_text()
    # A script that is requeued may always say it.
    code, said = typed(given, before, f"run_dir={one / 'run'}", f"take_over=node7:{pid}")
    assert code == 0 and "nothing to take over" in said and "0 to do" in said, said
    names = {path.name for path in run.iterdir()}
    assert not [name for name in names if "probe" in name or "mark" in name], names


def test_a_file_tool_leaves_no_work_folder_behind(shared, tmp_path):
    one, _, before = shared
    row = {"prompt": "a", "responses": ["x", "y"], "rewards": [2, 1]}
    (one / "in.jsonl").write_text(json.dumps(row) + "\n")
    done = subprocess.run(
        [
            *(sys.executable, "-c", before + COMMAND.replace("rlhf.iterate", "rlhf.pair")),
            *("input=in.jsonl", "output=out.jsonl", "pair.truncated=allow"),
        ],
        cwd=one,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert sorted(path.name for path in one.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_file_system_that_loses_what_is_replaced_is_refused(tmp_path):
    """libfuse finds no name any more for a file that was looked up before the rename and is opened after it."""
    if shutil.which("bindfs") is None or not os.path.exists("/dev/fuse"):
        pytest.skip("no bindfs, which mounts a folder twice")
    for name in ("folder", "one"):
        (tmp_path / name).mkdir()
    subprocess.run(["bindfs", tmp_path / "folder", tmp_path / "one"], check=True)
    try:
        code, said = here(tmp_path / "one" / "run")
        assert list((tmp_path / "one").iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", tmp_path / "one"], check=True)
    assert code == 1 and f"(type fuse, mounted at {tmp_path / 'one'})" in said, said
    assert "a file is replaced in one step: while it was replaced, a reader was told: No such file" in said
