"""The real command on a disk that is full and in a folder that cannot be written."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "rlhf.pair", "input=in.jsonl", "output=out.jsonl"]


@pytest.fixture
def folder(memory):
    rows = [
        {"prompt": f"{i} " + os.urandom(40).hex(), "responses": ["a", "b"], "rewards": [2, 1]}
        for i in range(300)
    ]
    (memory / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return memory


def pair(folder, limit=resource.RLIM_INFINITY):
    def limits():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(
        COMMAND, cwd=folder, env=environment, capture_output=True, text=True, preexec_fn=limits
    )
    return done.returncode, done.stdout + done.stderr


def test_a_full_disk_ends_with_exit_code_2_and_the_same_command_goes_on(folder):
    code, said = pair(folder, limit=10_000)
    assert code == 2 and "Traceback" not in said, said
    shard = folder / ".out.jsonl.work" / ".read.partial" / "candidates" / "shard_00000.parquet"
    for part in (
        f"{shard} cannot be written: File too large",
        "GB are free there",
        "ulimit -f",
        "goes on from what",
    ):
        assert part in said
    assert not (folder / "out.jsonl").exists()
    code, said = pair(folder)
    assert code == 0 and "300 written" in said, said


def test_a_folder_that_cannot_be_written_is_named(folder):
    in_the_way = folder / ".out.jsonl.work"
    if os.geteuid() == 0:  # nothing is forbidden to root, but a file is no folder even so
        in_the_way.write_text("")
    else:
        in_the_way.mkdir(mode=0o555)
    code, said = pair(folder)
    assert code == 2 and "Traceback" not in said, said
    assert f"{in_the_way}: no folder that can be written" in said and "work elsewhere: output=" in said, said
    in_the_way.unlink() if in_the_way.is_file() else in_the_way.chmod(0o755)
    code, said = pair(folder)
    assert code == 0 and "300 written" in said, said
