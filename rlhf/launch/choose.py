"""Which launcher a run has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf.config.choices import Launcher
from rlhf.launch.attending import Told
from rlhf.launch.local import LocalLauncher
from rlhf.run.console import Console


def on_a_cluster(cfg: Any) -> bool:
    """Whether other machines work in the run folder too."""
    return bool(cfg.compute.launcher is Launcher.ray)


def watched_launcher(cfg: Any, folder: Path, token: str, console: Console) -> Any:
    """The launcher of a run, whose stages a person sees on a console.

    Args:
        cfg: the run's config.
        folder: of the run.
        token: of its driver (`rlhf.run.lock.hold_run`).
        console: what it tells.

    Raises:
        ConfigError: there is no cluster where one is asked for.
    """
    compute = cfg.compute
    device = compute.device.value
    told = Told(console.progress, console.say, console.held)
    if not on_a_cluster(cfg):
        return LocalLauncher(folder, token, compute.preload, device, told)
    # Here: Ray is an extra.
    from rlhf.launch.cluster import RayCluster
    from rlhf.launch.ray_launcher import RayLauncher

    cluster = RayCluster(compute, folder, token, console.say)
    cluster.connect()
    return RayLauncher(folder, token, cluster, compute.preload, device, told)
