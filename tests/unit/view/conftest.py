"""Runs to look at: made by the loop, without a model."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from rlhf.view.report_library import LIBRARY
from scripts.synthetic_run import make_run

OLD_RUN = Path(__file__).resolve().parents[2] / "data" / "old_run.tar.gz"


@pytest.fixture(autouse=True)
def _no_library(monkeypatch):
    """Pages without the script that draws plots, which takes a second to make."""
    monkeypatch.setattr(LIBRARY, "begin", lambda: None)
    monkeypatch.setattr(LIBRARY, "_script", "/* the library */")


@pytest.fixture(scope="session")
def _made_up(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "made_up"
    LIBRARY._script = "/* the library */"
    make_run(folder, prompts=12, n=4, held_out=10, iterations=3, hostile=True)
    LIBRARY._script = ""
    return folder


@pytest.fixture
def made_up(_made_up, tmp_path):
    """A finished run of three iterations with three judges, some of whose responses are hostile."""
    return shutil.copytree(_made_up, tmp_path / "made_up", symlinks=True)


@pytest.fixture
def run(tmp_path):
    """A finished run of an older version, which has no notes."""
    with tarfile.open(OLD_RUN) as archive:
        archive.extractall(tmp_path, filter="data")
    (config,) = tmp_path.rglob("config.yaml")
    return config.parent
