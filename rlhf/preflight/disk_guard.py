"""Before each stage: whether the disk has room for what it is going to write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from rlhf.config.schema import Config
from rlhf.errors import UserError, mount_of
from rlhf.preflight.devices import machine_here
from rlhf.preflight.forecast import forecast_of
from rlhf.preflight.stage_costs import StageForecast
from rlhf.run.removal import size_text
from rlhf.view.removable import gc_command


class DiskGuard:
    """Warns of a stage that the forecast says will not fit; the stage runs all the same, and stops cleanly
    where the disk does fill.

    What the system calls free counts; a quota that it does not tell of is met only when it is used up.
    """

    def __init__(self, cfg: Config, folder: Path, say: Callable[[str], None]) -> None:
        self._cfg = cfg
        self._folder = folder
        self._say = say
        self._stages: dict[str, StageForecast] | None = None

    def look(self, name: str, partial: Path) -> None:
        """Warn where a stage is to write more than there is room for.

        Args:
            name: of the stage, such as `iteration_001/dpo`.
            partial: the folder it works in; what an earlier attempt has written there is written already.
        """
        stage = self._forecast().get(name)
        if stage is None:
            return
        needed = stage.disk + stage.checkpoints - _bytes_in(partial)
        free = shutil.disk_usage(self._folder).free
        if needed <= free:
            return
        for_now = ""
        if stage.checkpoints:
            for_now = f" ({size_text(int(stage.checkpoints))} of it only while it goes on)"
        self._say(
            f"  ! {name} is going to write about {size_text(int(needed))} more{for_now}, and "
            f"{size_text(free)} are free on the file system of {mount_of(self._folder)}. What of this run "
            f"could go: {gc_command(self._folder)}. If the disk fills, the stage stops, and the same command "
            "goes on from what is finished."
        )

    def _forecast(self) -> dict[str, StageForecast]:
        # Once, and not before the first stage that is to run: prompts are measured for it.
        if self._stages is None:
            try:
                forecast = forecast_of(self._cfg, machine_here(self._cfg.compute), self._folder)
            except (UserError, OSError):  # what cannot be told before is no reason to stop
                self._stages = {}
                return self._stages
            self._stages = {stage.name: stage for stage in forecast.stages}
        return self._stages


def _bytes_in(folder: Path) -> int:
    """Of all files below a folder, as far as one may look."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:  # gone meanwhile
                continue
    return total
