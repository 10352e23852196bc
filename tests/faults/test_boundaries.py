"""Kills at the boundaries of the commit protocol, the order of its system calls, and a disk that fills up at
them."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.faults.conftest import IN_MEMORY
from tests.faults.tally import damaged_files

ROOT = Path(__file__).resolve().parents[2]


def test_kills_at_boundaries_leave_no_trace(memory):
    command = [
        sys.executable,
        "-m",
        "tests.faults.boundaries",
        memory,
        os.environ.get("FAULT_KILLS", "20"),
        "7",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith(" lost=0 doubled=0 corrupt_accepted=0 orphans=0 redone_max=1"), (
        done.stdout
    )


RECORD = """
import json, sys
from pathlib import Path
from tests.faults import hooks, subject
folder, seen = Path(sys.argv[1]), []
subject.prepare(folder)
hooks.install(folder, lambda what, path: seen.append((what, path.removeprefix(str(folder) + "/"))))
subject.whole(folder)
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def events():
    """Every boundary of an undisturbed run, in order."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        done = subprocess.run(
            [sys.executable, "-c", RECORD, folder], cwd=ROOT, capture_output=True, text=True, check=True
        )
    return [tuple(event) for event in json.loads(done.stdout.strip().splitlines()[-1])]


def test_bytes_reach_the_disk_before_their_name_and_the_name_before_what_builds_on_it(events):
    replaced = [index for index, (what, _) in enumerate(events) if what == "before replace"]
    assert len(replaced) > 20
    for index in replaced:
        path = Path(events[index][1])
        temporary = str(path.with_name(f".{path.name}.tmp"))
        wrote = max(i for i in range(index) if events[i] == ("half a write", temporary))
        assert ("after fsync", temporary) in events[wrote:index], (
            f"{path}: renamed before its bytes were on disk"
        )
        assert events[index + 2 : index + 4] == [
            ("before fsync", str(path.parent)),
            ("after fsync", str(path.parent)),
        ], f"{path}: the folder was not flushed after the rename"


@pytest.mark.parametrize("name", ["read", "score", "pair"])
def test_a_stage_counts_only_after_its_files_and_its_manifest_are_on_disk(events, name):
    renamed = events.index(("before rename", f"run/{name}"))
    manifest = events.index(("half a write", f"run/.{name}.partial/.artifact.json.tmp"))
    shards = {
        path for what, path in events[:renamed] if what == "after replace" and path.endswith(".parquet")
    }
    shards = {path for path in shards if path.startswith(f"run/.{name}.partial/")}
    assert len(shards) == 3
    last_written = max(events.index(("after replace", path)) for path in shards)
    for path in shards:  # once more, by the driver: files of other libraries come without
        assert ("after fsync", path) in events[last_written:manifest], path
    assert manifest < events.index(("after replace", f"run/.{name}.partial/artifact.json")) < renamed
    assert ("after fsync", "run") in events[renamed : renamed + 4], "the stage's name was not flushed"


def test_a_copy_from_another_run_is_flushed_before_it_counts(events):
    for name in ("read", "score", "pair"):
        renamed = events.index(("before rename", f"again/{name}"))
        linked = [
            i
            for i in range(renamed)
            if events[i][0] == "after link" and f"again/.{name}.taken" in events[i][1]
        ]
        assert len(linked) > 3
        flushed = {path for what, path in events[max(linked) : renamed] if what == "after fsync"}
        assert {str(Path(events[i][1]).parent) for i in linked} <= flushed


FULL = """
import errno, os, sys
from pathlib import Path
from tests.faults import hooks, subject
folder, at = Path(sys.argv[1]), int(sys.argv[2])
seen = [0]
def event(what, path):
    if what.startswith("after") or "unlink" in what:
        return
    seen[0] += 1
    if seen[0] == at:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
subject.prepare(folder)
print(subject.attempt(folder, event), subject.attempt(folder))
"""


@pytest.mark.parametrize("at", [1, 5, 30, 43, 62, 91])
def test_a_disk_that_fills_up_is_said_and_the_same_command_goes_on(memory, at):
    done = subprocess.run(
        [sys.executable, "-c", FULL, memory / "f", str(at)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == ["2", "0"], done.stdout + done.stderr
    assert damaged_files(memory) == []
