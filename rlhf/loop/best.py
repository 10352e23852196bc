"""RUN/best, the link to a run's best policy: made, and followed; a copy of the run may have lost it."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf.data.json_text import json_text
from rlhf.errors import ConfigError, RunChanged
from rlhf.loop.card import is_hub_id
from rlhf.run.artifact import open_artifact
from rlhf.run.commit import MANIFEST

_EXPORT = re.compile(r"iteration_\d{3,}/export")
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems answer that have no links, such as those of memory sticks."""


@dataclass(frozen=True)
class BestPolicy:
    """A model folder; `digest` is what the run knows of one that it was given, None of one that it made: that
    has a manifest.
    """

    path: Path
    digest: str | None = None


def link_best(folder: Path, target: Path, say: Callable[[str], None]) -> None:
    """Point RUN/best at a model; there is no moment without a link, or with half of one.

    What stands in its place after a copy without links is kept, under another name.
    """
    best = folder / "best"
    if best.is_dir() and not best.is_symlink():
        aside = _free_name(folder)
        os.rename(best, aside)
        say(f"  ! {best} was a folder, as copies of a run have it that follow links; it is {aside.name} now")
    temporary = folder / ".best.tmp"
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A link of another file system that came along as a file would name an older one.
        best.unlink(missing_ok=True)
        reason = f"there are none on this file system ({error.strerror})"
        say(f"  ! no link {best}: {reason}; summary.json says it too")
        return
    os.replace(temporary, best)


def _free_name(folder: Path) -> Path:
    number = 1
    while os.path.lexists(folder / f"best.copy{number}"):
        number += 1
    return folder / f"best.copy{number}"


def best_policy(run: Path) -> BestPolicy:
    """The best policy of a finished run: where the link leads, or without one, what summary.json says.

    Raises:
        ConfigError: there is none yet, or it is not there any more.
        RunChanged: a file that would say it is damaged.
    """
    best = run / "best"
    way_out = f"Finish the run (python -m rlhf.iterate run_dir={run}), or name a model folder in model.path."
    if best.is_symlink():
        model = best.resolve()
        if not model.exists():
            raise ConfigError(
                f"run_dir={run}: no best policy there: {best} leads to {os.readlink(best)}, which does not "
                f"exist. Bring it back. {way_out}"
            )
        return _checked(run, model)
    if not (run / "summary.json").is_file():
        raise ConfigError(f"run_dir={run}: no best policy there. {way_out}")
    iteration = _best_iteration(run / "summary.json")
    export = run / f"iteration_{iteration:03d}" / "export"
    if export.is_dir():
        return _checked(run, export / "model")
    # π0 as it was given is not exported: a copy that followed links has it in the link's place.
    if iteration == 0 and best.is_dir():
        return _checked(run, best)
    raise ConfigError(f"run_dir={run}: no best policy there, neither {best} nor {export}. {way_out}")


def _best_iteration(summary: Path) -> int:
    try:
        content = json.loads(summary.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _no_summary(summary, str(error)) from None
    iteration = content.get("best_iteration") if isinstance(content, dict) else None
    if not isinstance(iteration, int) or isinstance(iteration, bool) or iteration < 0:
        raise _no_summary(
            summary, f"its best_iteration is {json_text(iteration)}, and must be a whole number"
        )
    return iteration


def _no_summary(summary: Path, how: str) -> RunChanged:
    return RunChanged(
        f"{summary} is damaged ({how}), and says no more which policy is the best. It is made anew by "
        f"python -m rlhf.iterate run_dir={summary.parent}; or name a model folder in model.path."
    )


def _checked(run: Path, model: Path) -> BestPolicy:
    """What is known of a model that a run calls its best; its files are hashed by whoever loads it."""
    inside = model.relative_to(run).as_posix() if model.is_relative_to(run) else ""
    export = _EXPORT.match(inside)
    if export is not None:
        open_artifact(run / export[0])  # without its manifest it would pass for a model from outside
        return BestPolicy(model)
    evaluated = run / "iteration_000" / "held_out" / "generate"
    if not (evaluated / MANIFEST).is_file() or _is_of_the_hub(run):
        return BestPolicy(model)
    digest = open_artifact(evaluated).record["identity"]["inputs"].get("policy")
    return BestPolicy(model, digest)


def _is_of_the_hub(run: Path) -> bool:
    """Whether π0 came from the Hub: the run knows it by its commit, and not by its files."""
    try:
        config: Any = OmegaConf.load(run / "config.yaml")
        return is_hub_id(str(config.model.path))
    except Exception:  # whatever a damaged file holds: then it is held against its files
        return False
