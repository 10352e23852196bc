"""A run folder as people look at it: what is finished in it, from its files alone and without a lock.

Nothing here changes a run or needs what it was made of: a copy of a folder on a laptop is read as well as one
that a cluster works in. Only the sizes of files are held against the manifests, not their checksums.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf.config.choices import TRAINED, Method
from rlhf.config.training import MAIN_JUDGE
from rlhf.data.files import resolved
from rlhf.errors import ConfigError, RunChanged, one_line
from rlhf.loop.figures import Evaluation, Row, rows_of
from rlhf.run.artifact import Artifact, open_artifact
from rlhf.run.commit import MANIFEST
from rlhf.run.other_runs import SETTINGS, settings_of
from rlhf.run.removed import removed_text

REPORT = "report.html"
"""Of a run, in its folder."""
_ITERATION = re.compile(r"iteration_(\d{3,})")
_PARTIAL = re.compile(r"\.(?P<stage>.+)\.partial")
_ORDER = [
    "world",
    "sft",
    "judge",
    "reward_model",
    "prompts",
    "replay",
    "generate",
    "score",
    "mix",
    "pair",
    "preferences",
    "reference",
    "dpo",
    "raft",
    "held_out",
    "gold",
    "greedy",
    "export",
]
"""Stages in the order in which a loop makes them."""
_HOLDS_STAGES = re.compile(r"judge|replay|iteration_\d{3,}(/held_out)?")
"""Folders of a run that are no stage themselves, and hold some."""


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, read once.

    `artifacts` are the finished stages by name, in the loop's order; `damaged` says of each that cannot be
    used what is wrong with it; `unfinished` are the names of stages that somebody works on, or has left.
    `config` is `config.yaml` as it stands, {} where there is none.

    Example:
        artifacts {"world": …, "iteration_001/pair": …}, damaged {}, unfinished ["iteration_001/dpo"]
    """

    path: Path
    config: dict[str, Any]
    artifacts: dict[str, Artifact]
    damaged: dict[str, str] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)

    @cached_property
    def iterations(self) -> list[int]:
        """The numbers of the iterations that have a finished stage, in order; 0 is the evaluation of π0."""
        numbers = {iteration_of(name) for name in self.artifacts}
        return sorted(number for number in numbers if number is not None)

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """The policies that were evaluated to the end, π0 first; [] where π0 was not, for the others are held
        against it.
        """
        found = []
        for number in self.iterations:
            evaluation = self._evaluation(number)
            if evaluation is not None:
                found.append(evaluation)
        if not found or found[0].iteration != 0:
            return []
        # A judge that was added to a run later has not scored all of them, and a column has to.
        common = set(found[0].others)
        for evaluation in found:
            common &= set(evaluation.others)
        for evaluation in found:
            for name in set(evaluation.others) - common:
                del evaluation.others[name]
        return found

    @cached_property
    def rows(self) -> list[Row]:
        """The figures of `evaluations`."""
        return rows_of(self.evaluations) if self.evaluations else []

    def artifact(self, iteration: int, name: str) -> Artifact | None:
        """A finished stage of an iteration, such as `pair` or `held_out/score`."""
        return self.artifacts.get(f"iteration_{iteration:03d}/{name}")

    def training(self, iteration: int) -> Artifact | None:
        """The finished stage that made an iteration's policy."""
        found = (self.artifact(iteration, stage) for stage in TRAINED)
        return next((artifact for artifact in found if artifact is not None), None)

    def _evaluation(self, iteration: int) -> Evaluation | None:
        candidates = self.artifact(iteration, "held_out/generate")
        main = self.artifact(iteration, "held_out/score")
        mix = self.artifact(iteration, "held_out/mix")
        scores = mix or main
        if candidates is None or scores is None or main is None:
            return None
        if mix is None and self.is_summed:
            return None  # the sum, by which policies are compared, is not made yet
        others = {MAIN_JUDGE: main} if mix is not None else {}
        prefix = f"iteration_{iteration:03d}/held_out/score_"
        for name, artifact in self.artifacts.items():
            if name.startswith(prefix):
                others[name.removeprefix(prefix)] = artifact
        return Evaluation(
            iteration=iteration,
            policy=self.training(iteration) or candidates,
            candidates=candidates,
            scores=scores,
            gold=self.artifact(iteration, "held_out/gold"),
            reference=self.artifact(iteration, "held_out/reference"),
            generate=self.artifact(iteration, "generate"),
            pair=self.artifact(iteration, "pair") or self.artifact(iteration, "preferences"),
            others=others,
        )

    @property
    def trains_by_raft(self) -> bool:
        """Whether iterations train on best responses, so that there are no pairs."""
        return self.config.get("method") == Method.raft.value

    @property
    def removed(self) -> dict[str, str]:
        """What was removed to make room of each stage that lacks something, by name of the stage."""
        told = {}
        for name, artifact in self.artifacts.items():
            if artifact.lacks:
                told[name] = removed_text(artifact.path, artifact.lacks)
        return told

    @property
    def is_summed(self) -> bool:
        """Whether policies are compared by a sum of judges."""
        section = self.config.get("reward_model")
        return isinstance(section, dict) and bool(section.get("others"))


def open_run(path: str, key: str = "run_dir") -> RunFolder:
    """What is in a run's folder, finished, damaged or under way.

    Args:
        path: the folder, as a person typed it.
        key: the setting that named it.

    Raises:
        ConfigError: it is no run's folder; the message says what it is.
    """
    folder = resolved(path, key)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ConfigError(f"{key}={path}: {folder} {what}. Name the folder of a run, as its run_dir did.")
    artifacts: dict[str, Artifact] = {}
    damaged: dict[str, str] = {}
    unfinished: list[str] = []
    stages, unreadable = _stages(folder)
    damaged |= unreadable
    for name, stage_folder in stages:
        partial = _PARTIAL.fullmatch(stage_folder.name)
        if partial:
            unfinished.append(name)
            continue
        try:
            artifacts[name] = open_artifact(stage_folder)
        except RunChanged as error:
            damaged[name] = str(error)
        except OSError as error:  # it goes while we look, or cannot be read
            damaged[name] = f"{stage_folder}: {error.strerror}"
    config = settings_of(folder)
    is_begun = bool(artifacts or damaged or unfinished)
    # Parts of a run hold stages too, and no settings.
    if not config and (not is_begun or _run_around(folder)):
        raise ConfigError(f"{key}={path}: {_what_it_is(folder)}")
    return RunFolder(folder, config, artifacts, damaged, unfinished)


def iteration_of(name: str) -> int | None:
    """The iteration that a stage belongs to; None of one before the first.

    Example:
        "iteration_002/held_out/score" gives 2
    """
    match = _ITERATION.match(name)
    return int(match[1]) if match else None


def _stages(folder: Path) -> tuple[list[tuple[str, Path]], dict[str, str]]:
    """Names and folders of stages, finished and not, in the loop's order; and what cannot be looked into."""
    found = []
    unreadable = {}
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            entries = _entries(place)
        except OSError as error:
            unreadable[place.relative_to(folder).as_posix()] = f"{place} cannot be read: {error.strerror}"
            continue
        for entry in entries:
            path = Path(entry.path)
            name = path.relative_to(folder).as_posix()
            partial = _PARTIAL.fullmatch(entry.name)
            if partial:
                found.append(((path.parent / partial["stage"]).relative_to(folder).as_posix(), path))
            elif _holds_manifest(path):
                found.append((name, path))
            elif _HOLDS_STAGES.fullmatch(name):
                waiting.append(path)
    return sorted(found, key=lambda item: _place(item[0])), unreadable


def _holds_manifest(folder: Path) -> bool:
    """Whether a folder is a stage's; one that cannot be looked into may be."""
    try:
        return (folder / MANIFEST).exists() or (folder / MANIFEST).is_symlink()
    except OSError:  # `open_artifact` says which
        return True


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The folders in a folder; links are other places, and what vanishes meanwhile is not there.

    Raises:
        OSError: it cannot be looked into.
    """
    try:
        return [entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _place(name: str) -> tuple[Any, ...]:
    """A stage's place in the loop, for sorting."""
    iteration = iteration_of(name)
    places: list[tuple[int, str]] = []
    for part in name.split("/"):
        if _ITERATION.fullmatch(part):
            continue
        known = part if part in _ORDER else part.partition("_")[0]  # score_NAME comes with score
        places.append((_ORDER.index(known) if known in _ORDER else len(_ORDER), part))
    return (-1 if iteration is None else iteration, places)


def is_file(path: Path) -> bool:
    """Whether there is such a file, as far as one may look."""
    try:
        return path.is_file()
    except OSError:
        return False


def _run_around(folder: Path) -> Path | None:
    return next((parent for parent in folder.parents if is_file(parent / SETTINGS)), None)


def _what_it_is(folder: Path) -> str:
    """What a folder that is no run's holds, and which other one may have been meant."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return f"{folder} may not be read by you. Get the right to, or look at a copy."
    around = _run_around(folder)
    if around is not None:
        return f"{folder} is a part of the run {around}. Name that folder."
    runs = sorted(entry.name for entry in _entries(folder) if is_file(Path(entry.path) / SETTINGS))
    if runs:
        shown = one_line(", ".join(runs[:8])) + (", …" if len(runs) > 8 else "")
        return f"{folder} is no run's folder; it holds {len(runs)} of them: {shown}. Name one of those."
    names = sorted(os.listdir(folder))
    if not names:
        return f"{folder} is empty. Name the folder of a run, as its run_dir did."
    shown = one_line(", ".join(names[:8])) + (", …" if len(names) > 8 else "")
    return (
        f"{folder} is no run's folder: it has no finished or unfinished stage and no config.yaml, but "
        f"{shown}. Name the folder of a run, as its run_dir did."
    )
