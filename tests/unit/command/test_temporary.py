"""The folder for temporary files: long, missing, closed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.command.temporary import LONGEST

ROOT = Path(__file__).resolve().parents[3]
# What the libraries do: sockets of multiprocessing, and such as vLLM's with a UUID behind the folder.
SOCKETS = """
import os, socket, tempfile, uuid
from multiprocessing.connection import Listener
from rlhf.command.line import guarded
from rlhf.run.output import show
def main():
    with Listener(family="AF_UNIX"):
        pass
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{tempfile.gettempdir()}/{uuid.uuid4()}")
    with tempfile.NamedTemporaryFile() as file:
        show(os.path.realpath(file.name))
    show(os.environ["TMPDIR"])
guarded(main)
"""


def run(code=SOCKETS, **variables):
    environment = {key: value for key, value in os.environ.items() if key not in ("TMPDIR", "TEMP", "TMP")}
    environment |= {"PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("variable", ["TMPDIR", "TEMP", "TMP"])
def test_a_long_name_is_no_obstacle_and_files_stay_where_they_are_wanted(tmp_path, variable):
    folder = tmp_path / ("x" * 150)
    folder.mkdir()
    done = run(**{variable: str(folder)})
    assert done.returncode == 0, done.stderr
    file, short = done.stdout.splitlines()
    assert file.startswith(f"{folder}/")
    assert len(short) <= LONGEST
    # Neither the short name nor multiprocessing's own folder is left.
    assert not Path(short).parent.exists()
    assert [path for path in folder.iterdir() if path.is_dir()] == []


def test_a_short_name_is_left_alone(tmp_path):
    place = Path("/tmp") / f"rlhf-test-{os.getpid()}"
    place.mkdir()
    try:
        done = run(TMPDIR=str(place))
        assert done.stdout.splitlines()[1] == str(place)
    finally:
        for path in place.iterdir():
            path.unlink()
        place.rmdir()


@pytest.mark.parametrize("variable", ["TMPDIR", "TEMP", "TMP"])
def test_a_folder_that_is_not_there_is_refused(variable, tmp_path):
    done = run(**{variable: str(tmp_path / "missing")})
    assert done.returncode == 2
    assert f"{variable}={tmp_path / 'missing'}: temporary files cannot be written there" in done.stderr
    assert "No such file or directory" in done.stderr and f"set {variable} to another" in done.stderr


def test_a_file_and_a_folder_that_cannot_be_written_are_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, "/proc"):
        done = run(TMPDIR=str(folder))
        assert done.returncode == 2
        assert f"TMPDIR={folder}: temporary files cannot be written there" in done.stderr
        assert "Traceback" not in done.stderr
