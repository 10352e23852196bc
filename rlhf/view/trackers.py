"""The driver's side of trackers: what they lack is told to each by a process of its own.

A tracker lags behind the run and never stops it: what it could not be told now is told when the next training
or iteration is finished, or by the next command. `rlhf.stages.track` has the other side.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.config.fields import filled
from rlhf.config.schema import Config
from rlhf.config.stage_configs import StageCompute, TrackStage
from rlhf.errors import RlhfError, UserError, WorkerFailed
from rlhf.run.job import Job, Kind
from rlhf.run.plan import Launcher
from rlhf.view.history import Unit, history, settings
from rlhf.view.run_folder import open_run

TOLD = "told.json"
"""In a tracker's folder: what it has been told, digests by the units' names; written after they are safe."""
_PATIENCE_SECONDS = 600.0
"""After which a tracker that says nothing is ended, such as one whose server is gone."""
_HOW_TO_SEE = {
    "tensorboard": "tensorboard --logdir {folder}",
    "wandb": "offline runs lie in {folder}: wandb sync {folder}/offline-run-*",
    "trackio": "TRACKIO_DIR={folder} trackio show",
}


def tracker_folder(run: Path, tracker: str) -> Path:
    """Where what a tracker was told lies, within a run's folder."""
    return run / "logs" / tracker


def told(folder: Path) -> dict[str, Any]:
    """The record of what a tracker has been told; empty where there is none that can be read.

    Example:
        {"units": {"iteration_001/dpo": "f8e2…"}, "files": 3, "rows": 124, "id": "k3v9x2aq"}
    """
    try:
        record = json.loads((folder / TOLD).read_bytes())
        return record if isinstance(record["units"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@dataclass
class Trackers:
    """Tells the trackers of `report_to` what a run has made."""

    folder: Path
    cfg: Config
    launcher: Launcher
    say: Callable[[str], None]
    _failed: set[str] = field(default_factory=set)
    """Those whose failure has been said; their next success is said too."""

    def publish(self) -> None:
        """Tell each tracker what it lacks; a failure is one warning, however often it comes."""
        if not self.cfg.report_to:
            return
        try:
            run = open_run(str(self.folder))
            units = history(run)
        except UserError as error:
            self._warn("report_to", error)
            return
        for tracker in self.cfg.report_to:
            if not _lacks_points(tracker_folder(self.folder, tracker), units):
                continue
            # One after the other: what one of them does must not keep the next from being told.
            try:
                self._tell(tracker, units, settings(run))
            except (UserError, WorkerFailed) as error:
                self._warn(tracker, error)

    def conclude(self) -> None:
        """Tell them the rest, and say where to look at it, or what is missing."""
        self.publish()
        for tracker in self.cfg.report_to:
            folder = tracker_folder(self.folder, tracker)
            if tracker in self._failed:
                self.say(f"  ! {tracker} lacks points of this run; the same command tells it the rest.")
            else:
                self.say(f"{tracker:<13} {_HOW_TO_SEE[tracker].format(folder=folder)}")

    def _tell(self, tracker: str, units: list[Unit], config: dict[str, Any]) -> None:
        told_by = TrackStage(tracker, str(self.folder), [vars(unit) for unit in units], config)
        # Not the stage's own patience, which may be hours: points can wait, the run cannot.
        compute = filled(StageCompute, self.cfg.compute, hang_seconds=_PATIENCE_SECONDS)
        name = f"track/{tracker}"
        outcome = self.launcher.launch(
            Job("track", name, told_by, {}, "", self.cfg.seed, compute), Kind.single, []
        )
        for line in outcome.metrics["notes"]:
            self.say(f"  · {tracker}: {line}")
        self._failed.discard(tracker)

    def _warn(self, tracker: str, error: RlhfError) -> None:
        if tracker in self._failed:
            return
        self._failed.add(tracker)
        first, *rest = str(error).splitlines()
        cause = "\n".join(["", *rest[-3:]])
        self.say(
            f"  ! {tracker} could not be told: {first}{cause}\n    The run goes on; it is tried again later."
        )


def _lacks_points(folder: Path, units: list[Unit]) -> bool:
    """Whether a tracker has not been told all points; new settings alone wait for the next of them."""
    known = told(folder).get("units", {})
    return any(known.get(unit.name) != unit.digest for unit in units if unit.axis != "config")
