"""When trackers are told, and what becomes of one that cannot be."""

from __future__ import annotations

import json
import signal

import pytest

from rlhf.config.schema import Config
from rlhf.errors import Stopped, UserError, WorkerFailed
from rlhf.run.job import Outcome
from rlhf.view import trackers
from rlhf.view.history import Unit
from rlhf.view.trackers import TOLD, Trackers

UNITS = [
    Unit("config 1", "c", "config", [(0, {"config": "{}"})]),
    Unit("iteration_001/dpo", "d", "dpo", [(1, {"dpo/loss": 0.5})]),
]


class Telling:
    """A launcher that tells at once, or fails."""

    def __init__(self, folder):
        self.folder, self.jobs, self.error = folder, [], None

    def launch(self, job, kind, shards):
        self.jobs.append(job)
        if self.error is not None:
            raise self.error
        place = self.folder / "logs" / job.config.tracker
        place.mkdir(parents=True, exist_ok=True)
        (place / TOLD).write_text(
            json.dumps({"units": {unit["name"]: unit["digest"] for unit in job.config.units}})
        )
        return Outcome(metrics={"notes": ["a note"]})


@pytest.fixture
def units(monkeypatch):
    """What there is to tell."""
    units = list(UNITS)
    monkeypatch.setattr(trackers, "history", lambda run: list(units))
    return units


@pytest.fixture
def told(tmp_path, units):
    """Trackers of a run, their launcher, and what was said."""
    (tmp_path / "config.yaml").write_text("seed: 42")
    launcher, said = Telling(tmp_path), []
    cfg = Config(report_to=["tensorboard", "wandb"])
    return Trackers(tmp_path, cfg, launcher, said.append), launcher, said


def test_each_is_told_once_and_again_when_there_is_more(told, units):
    all_of_them, launcher, said = told
    all_of_them.publish()
    all_of_them.publish()
    assert [job.config.tracker for job in launcher.jobs] == ["tensorboard", "wandb"]
    assert launcher.jobs[0].compute.hang_seconds == 600, "a server that is gone holds up no run"
    units.append(Unit("iteration_001/figures", "f", "iteration", [(1, {"iteration/score": 1.0})]))
    all_of_them.publish()
    assert len(launcher.jobs) == 4
    units[1] = Unit("iteration_001/dpo", "other", "dpo", [(1, {"dpo/loss": 0.4})])
    all_of_them.publish()
    assert len(launcher.jobs) == 6
    all_of_them.conclude()
    assert len(launcher.jobs) == 6 and "  · wandb: a note" in said
    assert said[-1].startswith("wandb  ") and "wandb sync" in said[-1]


def test_settings_alone_start_no_process(told, units):
    all_of_them, launcher, _ = told
    del units[1]
    all_of_them.publish()
    assert launcher.jobs == []


def test_without_trackers_nothing_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "open_run", None)
    nobody = Trackers(tmp_path, Config(), None, None)
    nobody.publish()
    nobody.conclude()


@pytest.mark.parametrize("error", [WorkerFailed("server gone\nlog"), UserError("disk full")])
def test_one_that_fails_is_one_warning_and_is_tried_again(told, error):
    all_of_them, launcher, said = told
    launcher.error = error
    all_of_them.publish()
    all_of_them.publish()
    assert len(launcher.jobs) == 4, "the other one is told all the same"
    assert len(said) == 2 and "tensorboard could not be told" in said[0] and "goes on" in said[0]
    all_of_them.conclude()
    assert said[-1].startswith("  ! wandb lacks points of this run")
    launcher.error = None
    all_of_them.conclude()
    assert said[-1].startswith("wandb  ")


def test_a_signal_is_no_failure_of_a_tracker(told):
    all_of_them, launcher, said = told
    launcher.error = Stopped(signal.SIGTERM)
    with pytest.raises(Stopped):
        all_of_them.publish()
    assert said == []


@pytest.mark.parametrize("text", ["", "[]", '{"units": []}', "\udcff"])
def test_a_record_that_cannot_be_read_is_none(told, tmp_path, text):
    all_of_them, launcher, _ = told
    for tracker in ("tensorboard", "wandb"):
        (tmp_path / "logs" / tracker).mkdir(parents=True)
        (tmp_path / "logs" / tracker / TOLD).write_bytes(text.encode(errors="surrogateescape"))
    all_of_them.publish()
    assert len(launcher.jobs) == 2
