"""The recipes that `which_recipe.py` compares, and the figures of their finished runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

LADDER = (6e-6, 2e-5, 6e-5, 2e-4, 6e-4, 2e-3)
"""Learning rates; the grid begins with those in the middle (`FIRST_RATES`)."""
FIRST_RATES = (2e-5, 6e-5, 2e-4)
BASE = "dpo"
"""The recipe that others are held against, and whose runs make what all share."""


@dataclass(frozen=True)
class Recipe:
    """What a recipe changes in the quickstart: experiments, settings, and whose learning rate is chosen."""

    title: str
    experiments: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    section: str = "dpo"


RECIPES = {
    BASE: Recipe("DPO, reference π0"),
    "dpo_previous": Recipe("DPO, reference π_{t−1}", settings=("dpo.reference=previous",)),
    # η of its paper puts the target at 67 nats, for responses of hundreds of tokens; here it is at 5.
    "inpo": Recipe("INPO, η = 0.1", ("inpo",), ("dpo.beta=0.1",)),
    "simpo": Recipe("SimPO", ("simpo",)),
    "score_aware": Recipe("score-aware DPO", ("score_aware",)),
    "length_normalized_dpo": Recipe("length-normalised DPO", ("length_normalized_dpo",)),
    # The pairs of 1 + 2 + 3 iterations once are as many steps as those of 3 iterations twice.
    "replay": Recipe("replay", ("replay",), ("dpo.num_epochs=1",)),
    "raft": Recipe(
        "RAFT",
        ("raft",),
        (
            "raft.batch_size=16",
            "raft.micro_batch_size=16",
            "raft.num_epochs=2",
            "raft.gradient_checkpointing=false",
        ),
        section="raft",
    ),
    "offline": Recipe("offline DPO", settings=("generate.policy=initial",)),
}


@dataclass
class Done:
    """Finished runs, as lines of `results.jsonl` hold them."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def has(self, seed: int, recipe: str, rate: float) -> bool:
        """Whether a run is finished."""
        return self.find(seed, recipe, rate) is not None

    def find(self, seed: int, recipe: str, rate: float) -> dict[str, Any] | None:
        """The figures of a run; None where it is not finished."""
        for row in self.rows:
            if (row["seed"], row["recipe"], row["rate"]) == (seed, recipe, rate):
                return row
        return None


def gold(row: dict[str, Any], iteration: int = -1) -> float:
    """Gold of a policy, sampled at T = 1, in 0–1; of the last one unless told."""
    value: float = row["policies"][iteration]["gold_accuracy"]
    return value


def greedy(row: dict[str, Any], iteration: int = -1) -> float:
    """Gold of a policy's greedy answers, in 0–1; of π0 (0) or the last one."""
    value: float = list(row["greedy"].values())[iteration]
    return value


def both(row: dict[str, Any]) -> float:
    """What a rate is chosen by: the mean of both kinds of gold of the last policy."""
    return (gold(row) + greedy(row)) / 2


def tried(recipe: str, seeds: Iterable[int], done: Done) -> dict[float, float]:
    """The rates that a recipe has finished on all of some seeds, in order, with their mean of `both`."""
    found = {}
    for rate in LADDER:
        rows = [done.find(seed, recipe, rate) for seed in seeds]
        finished = [both(row) for row in rows if row is not None]
        if rows and len(finished) == len(rows):
            found[rate] = fmean(finished)
    return found


def missing_rates(recipe: str, seeds: Sequence[int], done: Done) -> list[float]:
    """The rates that the choice still needs: the first ones, then the next beyond an end that is the best."""
    found = tried(recipe, seeds, done)
    missing = [rate for rate in FIRST_RATES if rate not in found]
    if missing:
        return missing
    rates = list(found)
    best = max(rates, key=found.__getitem__)
    place = LADDER.index(best)
    beyond = []
    if best == rates[0] and place > 0:
        beyond.append(LADDER[place - 1])
    if best == rates[-1] and place + 1 < len(LADDER):
        beyond.append(LADDER[place + 1])
    return beyond


def best_rates(recipes: Iterable[str], seeds: Sequence[int], done: Done) -> dict[str, float]:
    """The best rate of each recipe on some seeds."""
    rates = {}
    for recipe in recipes:
        found = tried(recipe, seeds, done)
        rates[recipe] = max(found, key=found.__getitem__)
    return rates
