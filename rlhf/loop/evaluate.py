"""The held-out evaluation of one policy, made of the stages that also make training data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlhf.config.schema import Config
from rlhf.config.stage_configs import GenerativeStage
from rlhf.config.training import MAIN_JUDGE
from rlhf.loop.figures import Evaluation
from rlhf.loop.judges import (
    Judge,
    compares_responses,
    evaluation_judges,
    reading,
    rule_config,
    scored,
    trusted,
)
from rlhf.loop.shard_sizes import held_out_shard_size
from rlhf.loop.step import Step
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run


@dataclass(frozen=True)
class Yardstick:
    """What every policy is held against: π0, the judges that train, those that only evaluate, the held-out
    prompts.
    """

    initial: Artifact
    judges: dict[str, Judge]
    others: dict[str, Judge]
    held_out: Artifact
    shard_size: int
    """Held-out prompts of one shard."""


def yardstick_of(
    cfg: Config,
    run: Run,
    initial: Artifact,
    judges: dict[str, Judge],
    held_out: Artifact,
    num_workers: int,
) -> Yardstick:
    """The yardstick of a run, whose GPUs hold `num_workers` inference workers side by side."""
    others = evaluation_judges(cfg, run)
    return Yardstick(initial, judges, others, held_out, held_out_shard_size(cfg, run, num_workers))


def evaluate(
    step: Step,
    policy: Artifact,
    yardstick: Yardstick,
    earlier: Sequence[Evaluation] = (),
    generate: Artifact | None = None,
    pair: Artifact | None = None,
) -> Evaluation:
    """Sample and score the held-out prompts; π0's log-probs of the samples give the KL.

    What a judge has scored in an earlier evaluation is not scored again: equal responses have equal scores.

    Args:
        step: the iteration.
        policy: the one to evaluate; π0 where `earlier` is empty.
        yardstick: what it is held against.
        earlier: the evaluations of the policies before it, π0's first.
        generate: the candidates it was trained on, for the figures.
        pair: the pairs it was trained on, likewise.
    """
    step = step.inside("held_out")
    section = step.run.cfg.evaluate
    readers = yardstick.judges | yardstick.others
    sampling = step.config(
        "generate",
        n=section.n,
        temperatures=[section.temperature],
        iteration=step.iteration,
        slice=None,
        shard_size=yardstick.shard_size,
        trusted_judges=trusted(readers),
    )
    candidates = step.stage(
        "generate",
        config=sampling,
        unrecorded=reading(readers),
        policy=policy,
        prompts=yardstick.held_out,
    )
    known = known_scores(yardstick, earlier)
    initial_scores = earlier[0].others if earlier else {}
    against = _opponents(yardstick, earlier)
    scores, others = scored(step, yardstick.judges, candidates, initial_scores, known, against)
    gold = _by_gold(step, candidates)
    if section.greedy:
        # For people to read (`rlhf.view.report_greedy`). Held-out prompts are shuffled: the first are any.
        step.stage(
            "generate",
            name="greedy",
            config=replace(sampling, n=1, temperatures=[0.0], slice=[0, section.greedy]),
            unrecorded=reading(readers),
            policy=policy,
            prompts=yardstick.held_out,
        )
    for name, judge in yardstick.others.items():
        others[name] = step.stage(
            "score",
            name=f"score_{name}",
            config=judge.config,
            candidates=candidates,
            judge=judge.model,
            **known.get(name, {}),
        )
    reference = None
    if earlier:
        # Held-out responses are not cut to `dpo.max_length`: the KL is of what was sampled.
        whole = step.config("reference", max_length=None)
        reference = step.stage("reference", config=whole, model=yardstick.initial, candidates=candidates)
    return Evaluation(step.iteration, policy, candidates, scores, gold, reference, generate, pair, others)


def _by_gold(step: Step, candidates: Artifact) -> Artifact | None:
    """What the rule `evaluate.gold`, which no training sees, finds in the responses; None without one."""
    path = step.run.cfg.evaluate.gold
    if path is None:
        return None
    rule = rule_config(step.run.cfg, path, "evaluate.gold")
    return step.stage("score", name="gold", config=rule, candidates=candidates)


def _opponents(yardstick: Yardstick, earlier: Sequence[Evaluation]) -> Artifact | None:
    """π0's held-out responses, with which a judge that compares holds every iterate's; None for other judges
    and π0.
    """
    if not earlier or not compares_responses(yardstick.judges[MAIN_JUDGE].config):
        return None
    return earlier[0].candidates


def known_scores(yardstick: Yardstick, earlier: Sequence[Evaluation]) -> dict[str, dict[str, Artifact]]:
    """What each judge that is a model has said of earlier policies' responses to the same prompts, by its
    name.

    Example:
        {"main": {"known_candidates.0": π0's held-out responses, "known_scores.0": their scores by the judge}}
    """
    has_opponents = _opponents(yardstick, earlier) is not None
    known: dict[str, dict[str, Artifact]] = {}
    for name, judge in (yardstick.judges | yardstick.others).items():
        if judge.model is None and not isinstance(judge.config, GenerativeStage):  # a rule costs nothing
            continue
        inputs: dict[str, Artifact] = {}
        for evaluation in earlier:
            if has_opponents and name == MAIN_JUDGE and evaluation.iteration == 0:
                continue  # π0's responses were compared with each other, not with π0's
            # Where several judges are summed, `scores` is the sum, and the main judge's own stand in
            # `others`.
            scores_of_judge = {MAIN_JUDGE: evaluation.scores} | evaluation.others
            inputs[f"known_candidates.{evaluation.iteration}"] = evaluation.candidates
            inputs[f"known_scores.{evaluation.iteration}"] = scores_of_judge[name]
        known[name] = inputs
    return known
