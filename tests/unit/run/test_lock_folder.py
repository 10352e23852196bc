"""The folder that a driver holds: made where it is not there, refused where it cannot be."""

from __future__ import annotations

import json
import os

import pytest

from rlhf.errors import ConfigError, WorkerFailed
from rlhf.run.lock import DRIVER_LOCK, hold_run, join_run


def test_folders_above_are_made_too(tmp_path):
    folder = tmp_path / "a" / "b" / "run"
    with hold_run(folder, print) as token:
        holder = json.loads((folder / DRIVER_LOCK).read_text())
    assert holder["token"] == token and holder["pid"] == str(os.getpid())
    # What an earlier driver wrote is gone.
    with hold_run(folder, print) as other:
        assert json.loads((folder / DRIVER_LOCK).read_text())["token"] == other != token


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "a").write_text("")
    with (
        pytest.raises(ConfigError, match="run_dir=elsewhere"),
        hold_run(tmp_path / "a", print, "run_dir=elsewhere"),
    ):
        pass


def test_only_the_drivers_own_workers_join(tmp_path):
    with hold_run(tmp_path, print) as token:
        join_run(tmp_path, token).close()
        with pytest.raises(WorkerFailed, match="too late"):
            join_run(tmp_path, "another")
        (tmp_path / DRIVER_LOCK).write_text("{half")
        with pytest.raises(WorkerFailed, match="too late"):
            join_run(tmp_path, token)
