"""What an iteration's policy is trained on: its own pairs, and those that are replayed; and by what anchors.

An anchor is a policy whose log-probabilities of the pairs the loss is held against. Those under π0 are
finished artifacts for pairs of earlier iterations; under the previous policy they have to be made anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlhf.config.choices import Loss, Reference
from rlhf.config.schema import Config
from rlhf.loop.step import Step
from rlhf.run import sources
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run

REFERENCE = "reference"
"""The anchor of a loss, and the stage of its log-probabilities."""
PREVIOUS = "reference_previous"
"""The second one of `inpo`, likewise."""
GIVEN = "replay"
"""Origin of given pairs, and the folder of their stages."""


def stage_of_input(key: str) -> str:
    """The stage that makes an input of `dpo` anew in an iteration, where its key is that of an anchor.

    Example:
        "reference_previous.iteration_001" gives "reference_previous_of_iteration_001"
    """
    return key.replace(".", "_of_")


def asked_anew(training: Artifact) -> list[str]:
    """The stages of log-probabilities that a finished training asked for in its own iteration."""
    identity = training.record["identity"]
    if identity["stage"] != "dpo":
        return []
    config = identity["config"]
    is_initial = dict(anchors_of(Loss(config["loss"]), Reference(config["reference"])))
    stages = []
    for key in identity["inputs"]:
        name, is_replayed, _ = key.partition(".")
        # Under π0 the log-probabilities of replayed pairs are known from where these come from.
        if name in is_initial and not (is_replayed and is_initial[name]):
            stages.append(stage_of_input(key))
    return sorted(stages)


def anchors_of(loss: Loss, reference: Reference) -> list[tuple[str, bool]]:
    """What the loss is held against: the name of each anchor, and whether it is π0 in every iteration."""
    if loss is Loss.simpo:
        return []
    if loss is Loss.inpo:
        return [(REFERENCE, True), (PREVIOUS, False)]
    return [(REFERENCE, reference is Reference.initial)]


@dataclass
class Pairs:
    """Pairs of one origin, and their log-probabilities under π0 once these are made."""

    origin: str
    artifact: Artifact
    under_initial: Artifact | None = None


@dataclass
class PairPool:
    """Trains policies on the pairs of their iteration, of earlier ones and on given ones."""

    cfg: Config
    initial: Artifact
    given: list[Pairs] = field(default_factory=list)
    earlier: list[Pairs] = field(default_factory=list)
    """Of all iterations so far, the oldest first."""

    def train(self, step: Step, policy: Artifact, pairs: Artifact) -> Artifact:
        """π_t by DPO from π_{t−1} (`policy`), on these pairs and those that are replayed."""
        own = Pairs(f"iteration_{step.iteration:03d}", pairs)
        num_replayed = self.cfg.replay.iterations
        # Of a list, the last none would be all of it.
        replayed = [*self.given, *(self.earlier[-num_replayed:] if num_replayed else [])]
        # Any, since unpacked artifacts could stand for the other arguments too, as far as mypy knows.
        inputs: dict[str, Any] = {"pairs": pairs}
        for others in replayed:
            inputs[f"pairs.{others.origin}"] = others.artifact
        for name, is_initial in anchors_of(self.cfg.dpo.loss, self.cfg.dpo.reference):
            if name == PREVIOUS and policy is self.initial:
                continue  # in iteration 1 the two anchors are one
            anchor = self.initial if is_initial else policy
            inputs[name] = step.stage("reference", name=name, model=anchor, pairs=pairs)
            if is_initial:
                own.under_initial = inputs[name]
            for others in replayed:
                # Made when they were an iteration's own: no model is asked twice for the same.
                known = others.under_initial if is_initial else None
                inputs[f"{name}.{others.origin}"] = known or step.stage(
                    "reference",
                    name=stage_of_input(f"{name}.{others.origin}"),
                    model=anchor,
                    pairs=others.artifact,
                )
        # Only now, for they are replayed in later iterations.
        self.earlier.append(own)
        return step.stage("dpo", policy=policy, **inputs).part("model")


def pair_pool(cfg: Config, run: Run, initial: Artifact, dtype: str) -> PairPool:
    """The pool of a run, with the given pairs that every iteration trains on."""
    pool = PairPool(cfg, initial)
    if cfg.replay.data is None:
        return pool
    step = Step(run, GIVEN, 0, dtype)
    data = sources.data_file(run, cfg.replay.data, "replay.data")
    config = step.config("preferences", columns=cfg.replay.columns)
    given = Pairs(GIVEN, step.stage("preferences", config=config, data=data, policy=initial))
    # Once for all iterations; under other policies each iteration asks for its own.
    if any(is_initial for _, is_initial in anchors_of(cfg.dpo.loss, cfg.dpo.reference)):
        given.under_initial = step.stage("reference", model=initial, pairs=given.artifact)
    pool.given.append(given)
    return pool
