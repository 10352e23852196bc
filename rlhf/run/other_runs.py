"""What the runs beside a run need of it, as their settings say."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from rlhf.run.commit import MANIFEST

SETTINGS = "config.yaml"
"""Of a run, in its folder."""


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of a run as they stand; {} where there are none that can be read.

    Not through the schema, for a run of an older version is looked at too.
    """
    path = folder / SETTINGS
    try:
        if not path.is_file():  # also of a pipe, which would keep us waiting
            return {}
        settings = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException, RecursionError):
        return {}
    if not isinstance(settings, dict):
        return {}
    return {str(key): value for key, value in settings.items()}


def needed_beside(run: Path, stage: str) -> str | None:
    """Which run of the same folder needs a finished stage of this one, and for what; None where none does.

    A run needs a stage that it names as a model or data file, for good. Of a run in its `reuse` it needs what
    it has not made itself, until it is finished; what it has taken are files of its own.

    Args:
        run: the folder of this run, without links in its path.
        stage: such as `iteration_001/dpo`.
    """
    folder = run / stage
    try:
        beside = sorted(run.parent.iterdir())
    except OSError:  # it may be entered, but not listed
        return None
    for other in beside:
        if other == run:
            continue
        settings = settings_of(other)
        is_reused = False
        for key, value in _texts(settings):
            places = _places(value, run)
            if any(place.is_relative_to(folder) for place in places):
                return f"{other.name} reads it: {key}={value}"
            if key == "reuse" and run in places:
                is_reused = True
        # What it has by now are names of its own, which outlive this run's.
        has_it = (other / stage / MANIFEST).exists()
        if is_reused and not has_it and not _is_finished(other, settings):
            return f"{other.name} is not finished, and has this run in its reuse"
    return None


def _texts(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every text in some settings, with its dotted key."""
    for key, value in settings.items():
        if isinstance(value, str):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict):
            yield from _texts(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            for item in value:
                yield from _texts({str(key): item}, prefix)


def _places(path: str, run: Path) -> list[Path]:
    """Where a path may lead: as it is typed, it counts from where its run was started.

    That was most likely here, or in a folder that this run lies in.
    """
    places = []
    for base in (Path.cwd(), *run.parents):
        try:
            places.append(Path(os.path.realpath(base / Path(path).expanduser())))
        except (OSError, RuntimeError, ValueError):  # no path at all
            continue
    return places


def _is_finished(run: Path, settings: Mapping[str, Any]) -> bool:
    number = settings.get("num_iterations")
    if not isinstance(number, int) or not (run / "best").is_symlink():
        return False
    return (run / f"iteration_{number:03d}" / "held_out" / "score" / MANIFEST).exists()
