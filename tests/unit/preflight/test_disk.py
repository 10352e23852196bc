"""What a run is going to write, in bytes: one setting after the other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf.config.limits import value_at
from rlhf.config.schema import Config
from rlhf.preflight import hardware
from rlhf.preflight.findings import Level

OK, WARNING, ERROR = Level.ok, Level.warning, Level.error


def changed(settings):
    """The default config with other values at dotted keys."""
    cfg = Config()
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        setattr(value_at(cfg, section) if section else cfg, name, value)
    return cfg


def disk(monkeypatch, settings, sizes, free=100e9):
    """The one finding about a disk with so much room."""
    monkeypatch.setattr(hardware.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    # Of folders without weights nobody knows the dtype: 2 bytes a parameter are taken for it.
    (found,) = hardware.disk(changed(settings), sizes, dict.fromkeys(sizes, Path("no-such-folder")))
    return found


NO_TEXT = {"prompts.num_per_iteration": 0, "num_iterations": 1}


@pytest.mark.parametrize(
    ("settings", "sizes", "gigabytes"),
    [
        # One iterate and the export of 4 bytes a parameter, and two checkpoints of 14.
        (NO_TEXT, {"model.path": 1e9}, "36 GB"),
        (NO_TEXT | {"num_iterations": 2}, {"model.path": 1e9}, "40 GB"),
        (NO_TEXT | {"dpo.lora.rank": 1}, {"model.path": 1e9}, "8 GB"),
        (NO_TEXT | {"dpo.lora.rank": 1, "sft.data": "d"}, {"model.path": 1e9}, "40 GB"),
        (NO_TEXT | {"sft.data": "d"}, {"model.path": 1e9}, "40 GB"),
        (NO_TEXT, {"model.path": 1e9, "reward_model.path": 2e9}, "36 GB"),
        (NO_TEXT | {"reward_model.data": "d"}, {"model.path": 1e9, "reward_model.path": 2e9}, "72 GB"),
        (NO_TEXT | {"reward_model.data": "d", "dpo.lora.rank": 1}, {"reward_model.path": 1e9}, "32 GB"),
        (NO_TEXT | {"reward_model.data": "d"}, {"model.path": 1e9, "reward_model.path": 1e6}, "36 GB"),
        # 1000 prompts with 8 responses of 1024 tokens of 8 bytes.
        ({"prompts.num_per_iteration": 1000, "num_iterations": 2}, {}, "0.131 GB"),
        (NO_TEXT, {}, "0 GB"),
    ],
)
def test_bytes_to_write(tmp_path, monkeypatch, settings, sizes, gigabytes):
    found = disk(monkeypatch, {"run_dir": str(tmp_path)} | settings, sizes)
    assert found.text == f"disk, to be written: {gigabytes} of 100 GB"


@pytest.mark.parametrize(
    ("free", "level"), [(36e9 / 0.8, OK), (36e9 / 0.8 - 1, WARNING), (36e9, WARNING), (36e9 - 1, ERROR)]
)
def test_a_disk_that_nearly_fits_gets_a_warning(tmp_path, monkeypatch, free, level):
    found = disk(monkeypatch, {"run_dir": str(tmp_path)} | NO_TEXT, {"model.path": 1e9}, free)
    assert found.level is level
