"""The scored candidates that a run holds, iteration by iteration."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf.config.fields import plain
from rlhf.config.schema import Config, PairSettings
from rlhf.errors import ConfigError, DataError
from rlhf.run.artifact import Artifact
from rlhf.view.run_folder import RunFolder, iteration_of


@dataclass(frozen=True)
class Scored:
    """What an iteration's pairs were, or would be, made of.

    `pairs` is None where the stage is not finished. `settings` and `seed` are those of the pairs, or of the
    run where there are none.
    """

    iteration: int
    candidates: Artifact
    scores: Artifact
    pairs: Artifact | None
    settings: PairSettings
    seed: int

    @property
    def num_candidates(self) -> int:
        """Responses of one prompt."""
        return int(self.candidates.record["identity"]["config"]["n"])


def read_of(run: RunFolder) -> Iterator[Artifact]:
    """The artifacts that pairs are made of, and the pairs."""
    for name, artifact in run.artifacts.items():
        if iteration_of(name) is not None and name.partition("/")[2] in ("generate", "score", "mix", "pair"):
            yield artifact


def scored_iterations(run: RunFolder, wanted: Collection[int]) -> tuple[list[Scored], list[str]]:
    """The iterations whose candidates are scored, and what must be said of the others.

    Args:
        run: `rlhf.view.sound.sound` has looked at its files.
        wanted: which ones; none is all.

    Raises:
        ConfigError: the run has not scored the candidates of one that is wanted.
        DataError: it has scored none at all.
    """
    found = {}
    notes = []
    numbers = {iteration_of(name) for name in (*run.artifacts, *run.damaged, *run.unfinished)}
    for iteration in sorted(number for number in numbers if number):
        scored = _scored(run, iteration)
        if scored is not None:
            found[iteration] = scored
            pairs = f"iteration_{iteration:03d}/pair"
            if pairs in run.damaged:
                notes.append(f"iteration {iteration}: its pairs are left out: {run.damaged[pairs]}")
        else:
            notes.append(f"iteration {iteration} is left out: {_why_not(run, iteration)}")
    if not found:
        raise DataError(f"{run.path}: no iteration has scored candidates. {' '.join(notes) or _GIVEN}")
    missing = [number for number in wanted if number not in found]
    if missing:
        raise ConfigError(
            f"iterations={missing[0]}: {run.path} has no scored candidates of it, but of "
            f"{', '.join(map(str, found))}. {' '.join(notes)}".rstrip()
        )
    chosen = [found[number] for number in dict.fromkeys(wanted)] if wanted else list(found.values())
    return chosen, notes


_GIVEN = "It has none yet, or trains on given pairs (pair.data): such pairs were not chosen among candidates."


def _scored(run: RunFolder, iteration: int) -> Scored | None:
    candidates = run.artifact(iteration, "generate")
    if candidates is None:
        return None
    pairs = run.artifact(iteration, "pair")
    scores = _scores(run, iteration, pairs)
    if scores is None:
        return None
    if pairs is not None:
        made_of = pairs.record["identity"]
        return Scored(iteration, candidates, scores, pairs, settings_of(made_of["config"]), made_of["seed"])
    section = run.config.get("pair")
    settings = settings_of(section if isinstance(section, dict) else {})
    seed = run.config.get("seed", Config().seed)
    return Scored(iteration, candidates, scores, None, settings, seed)


def _scores(run: RunFolder, iteration: int, pairs: Artifact | None) -> Artifact | None:
    """What the pairs were made of; where there are none, the sum of judges before the score of one."""
    choices = [run.artifact(iteration, "mix"), run.artifact(iteration, "score")]
    there = [artifact for artifact in choices if artifact is not None]
    if pairs is not None:
        digest = pairs.record["identity"]["inputs"].get("scores")
        there = [artifact for artifact in there if artifact.digest == digest]
    elif run.is_summed and choices[0] is None:
        return None
    return there[0] if there else None


def settings_of(config: dict[str, Any]) -> PairSettings:
    """Settings of `pair` from plain values; those that an older version had not are at their defaults.

    Raises:
        DataError: a value is none of this version's.
    """
    known = plain(PairSettings())
    values = {key: value for key, value in config.items() if key in known}
    try:
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PairSettings), values))
    except OmegaConfBaseException as error:
        raise DataError(f"The run's settings of pair cannot be read: {error}") from None
    assert isinstance(settings, PairSettings), "merged into that class"
    return settings


def _why_not(run: RunFolder, iteration: int) -> str:
    prefix = f"iteration_{iteration:03d}/"
    reasons = []
    for name in ("generate", "score", "mix"):
        full = prefix + name
        if full in run.damaged:
            reasons.append(run.damaged[full])
        elif full in run.unfinished:
            reasons.append(f"{full} is unfinished.")
    if f"{prefix}preferences" in run.artifacts:
        reasons.append("its pairs were given (pair.data), and not chosen among candidates.")
    return " ".join(reasons) or "it has no scored candidates yet, or others than its pairs were made of."
