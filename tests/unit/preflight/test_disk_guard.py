"""Before a stage: whether the disk has room for it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rlhf.config.schema import Config
from rlhf.errors import ConfigError
from rlhf.preflight import disk_guard
from rlhf.preflight.disk_guard import DiskGuard
from rlhf.preflight.stage_costs import StageForecast


@pytest.fixture
def look(tmp_path, monkeypatch):
    """What is said of a stage that writes 100 bytes and 200 of checkpoints, with so many bytes free."""
    stages = [StageForecast("iteration_001/dpo", disk=100, checkpoints=200)]
    monkeypatch.setattr(disk_guard, "forecast_of", lambda *arguments: SimpleNamespace(stages=stages))
    partial = tmp_path / ".dpo.partial"
    partial.mkdir()

    def said(free, name="iteration_001/dpo", written=0):
        (partial / "weights").write_bytes(bytes(written))
        monkeypatch.setattr(disk_guard.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        lines = []
        DiskGuard(Config(), tmp_path, lines.append).look(name, partial)
        return lines

    return said


def test_a_stage_that_will_not_fit_is_named(look):
    (line,) = look(free=299)
    for part in (
        "iteration_001/dpo is going to write about 300 bytes more",
        "(200 bytes of it only while it goes on)",
        "299 bytes",
    ):
        assert part in line
    assert "python -m rlhf.gc run_dir=" in line


def test_what_fits_is_not(look):
    assert look(free=300) == []
    assert look(free=250, written=50) == [], "what an earlier attempt has written is there already"
    assert look(free=0, name="iteration_001/other") == [], "of what is not forecast nobody knows"


def test_a_run_without_a_forecast_goes_on(look, monkeypatch):
    def refuse(*arguments):
        raise ConfigError("no shape")

    monkeypatch.setattr(disk_guard, "forecast_of", refuse)
    assert look(free=0) == []
