"""Online iterative DPO: `python -m rlhf.iterate experiment=… key=value …`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf.command.line import main
from rlhf.config.choices import JudgeKind, Reference, Sampled
from rlhf.config.schema import Config
from rlhf.config.training import MAIN_JUDGE
from rlhf.data.files import resolved
from rlhf.data.shards import write_atomic
from rlhf.errors import ConfigError, RunChanged
from rlhf.launch.local import LocalLauncher
from rlhf.loop import card
from rlhf.loop import step as steps
from rlhf.loop.figures import KL_ESTIMATOR, Evaluation, Row, best, rows_of, table, write_summary
from rlhf.loop.gates import Gates, check_iteration, check_stage
from rlhf.loop.prompt_sets import prompt_sets
from rlhf.loop.step import Step
from rlhf.preflight.capacity import check_capacity
from rlhf.preflight.look import require
from rlhf.run import sources
from rlhf.run.console import Console
from rlhf.run.lock import hold_run
from rlhf.run.plan import AloneDone, Artifact, Run, plain


def iterate(cfg: Config, run: Run) -> Artifact:
    """Online iterative DPO (RLHF Workflow, Alg. 2): policy_t is trained on pairs sampled from policy_{t-1}.

    Returns the best iterate on the held-out prompts. Called twice: once to plan, where nothing runs and unfinished
    artifacts have no digest, and once for real.
    """
    initial = policy = steps.initial_policy(cfg, run)
    judges = steps.judges(cfg, run, initial)
    prompts = prompt_sets(cfg, run)
    dtype = steps.policy_dtype(cfg, initial)
    yardstick = Yardstick(initial, judges, steps.evaluation_judges(cfg, run), prompts.held_out)
    evaluations, gates = [evaluate(Step(run, "iteration_000", 0, dtype), initial, yardstick)], Gates(run)
    yardstick = replace(yardstick, scales=evaluations[0].others)
    if cfg.reward_model.kind is JudgeKind.pairwise:
        yardstick = replace(yardstick, against=evaluations[0].candidates)
    for t in range(1, cfg.num_iterations + 1):
        step = Step(run, f"iteration_{t:03d}", t, dtype)
        candidates = None
        if cfg.pair.data is None:
            train, rows = prompts.of(t)
            sampled = policy if cfg.generate.policy is Sampled.previous else initial
            candidates = step.stage("generate", config={"iteration": t, "slice": rows}, policy=sampled, prompts=train)
            gates.heed(check_stage(cfg, t, candidates), evaluations)
            scores, _ = steps.scored(step, judges, candidates, yardstick.scales)
            pairs = step.stage("pair", candidates=candidates, scores=scores)
            gates.heed(check_stage(cfg, t, pairs), evaluations)
        else:
            pairs = step.stage("preferences", data=sources.data_file(run, cfg.pair.data, "pair.data"), policy=initial)
        anchor = initial if cfg.dpo.reference is Reference.initial else policy
        logprobs = step.stage("reference", model=anchor, pairs=pairs)
        trained = step.stage("dpo", policy=policy, pairs=pairs, reference=logprobs)
        gates.heed(check_stage(cfg, t, trained), evaluations)
        policy = trained.part("model")
        evaluations.append(evaluate(step, policy, yardstick, candidates, pairs, evaluations))
        report(run, evaluations, gates)
    return conclude(run, evaluations, dtype)


@dataclass(frozen=True)
class Yardstick:
    """What every policy is held against: π0, the judges that train, those that only evaluate, the held-out prompts."""

    initial: Artifact
    judges: dict[str, steps.Asked]
    others: dict[str, steps.Asked]
    held_out: Artifact
    scales: dict[str, Artifact] = field(default_factory=dict)
    """Each judge's scores of π0's held-out responses, once they are there."""
    against: Artifact | None = None
    """π0's held-out responses, which a pairwise judge compares every iterate's with."""


def evaluate(
    step: Step,
    policy: Artifact,
    yardstick: Yardstick,
    generate: Artifact | None = None,
    pair: Artifact | None = None,
    earlier: Sequence[Evaluation] = (),
) -> Evaluation:
    """Sample and score the held-out prompts; π0's log-probs of the samples give the KL.

    What a judge has scored in `earlier` evaluations is not scored again: equal responses have equal scores.
    """
    cfg, step = step.run.cfg.evaluate, step.inside("held_out")
    sampling = {"n": cfg.n, "temperatures": [cfg.temperature], "iteration": step.iteration, "slice": None}
    candidates = step.stage("generate", config=sampling, policy=policy, prompts=yardstick.held_out)
    against: dict[str, Any] = {"against": yardstick.against} if yardstick.against else {}
    known = known_scores(yardstick, earlier)
    scores, others = steps.scored(step, yardstick.judges, candidates, yardstick.scales, known, **against)
    gold = reference = None
    if cfg.gold is not None:
        rule = steps.rule_settings(cfg.gold, "evaluate.gold")
        gold = step.stage("score", name="gold", config=rule, candidates=candidates)
    for name, (config, judge) in yardstick.others.items():
        inputs = {"candidates": candidates, "judge": judge, **known.get(name, {})}
        others[name] = step.stage("score", name=f"score_{name}", config=config, **inputs)
    if step.iteration > 0:
        whole = {"max_length": None}
        reference = step.stage("reference", config=whole, model=yardstick.initial, candidates=candidates)
    return Evaluation(step.iteration, policy, candidates, scores, gold, reference, generate, pair, others)


def known_scores(yardstick: Yardstick, earlier: Sequence[Evaluation]) -> dict[str, dict[str, Artifact]]:
    """What each judge that is a model has said of earlier policies' responses to the same prompts, by its name."""
    models = [name for name, (_, model) in (yardstick.judges | yardstick.others).items() if model is not None]
    known: dict[str, dict[str, Artifact]] = {name: {} for name in models}
    for each in earlier:
        scores = {MAIN_JUDGE: each.scores} | each.others
        for name in models:
            if yardstick.against and name == MAIN_JUDGE and each.iteration == 0:  # not held against π0's own
                continue
            given = {"known_candidates": each.candidates, "known_scores": scores[name]}
            known[name] |= {f"{key}.{each.iteration}": artifact for key, artifact in given.items()}
    return known


def figures(run: Run, evaluations: list[Evaluation]) -> list[Row]:
    """The figures of every policy, of files that have their checksums."""
    for each in evaluations:
        run.verify(each.candidates, each.scores, each.gold, each.reference, *each.others.values())
    return rows_of(evaluations)


def report(run: Run, evaluations: list[Evaluation], gates: Gates) -> None:
    """Print and write the figures so far; a view, always made anew, never an input."""
    if run.planning or run.only is not None:
        return
    rows = figures(run, evaluations)
    run.say("\n" + table(rows) + "\n")
    gates.heed(check_iteration(run.cfg, rows, evaluations), evaluations)
    write_summary(run.folder, rows, rows[best(rows)].iteration, gates.found)


def conclude(run: Run, evaluations: list[Evaluation], dtype: str) -> Artifact:
    """Link the best iterate as RUN/best, as people serve and share it, and say where everything lies."""
    if run.planning or run.only is not None:
        return evaluations[0].policy
    rows = figures(run, evaluations)
    chosen = evaluations[best(rows)]
    model = chosen.policy
    inside = model.path.is_relative_to(run.folder)
    if inside:  # a model from outside keeps its place and its own card
        facts = card.facts(run.cfg, rows, [evaluation.policy for evaluation in evaluations], chosen.iteration)
        name = f"iteration_{chosen.iteration:03d}/export"
        model = run.stage("export", name, {"dtype": dtype, "card": facts}, {"model": model}).part("model")
    target = Path(os.path.relpath(model.path, run.folder)) if inside else model.path
    temporary = run.folder / ".best.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, run.folder / "best")
    if chosen.iteration == 0:
        run.say("No iterate beats π0 on the held-out prompts: best is π0 itself. Look at the table before going on.")
    run.say(f"KL is {KL_ESTIMATOR}. Dropped counts prompts without a pair.")
    run.say(f"best policy   {run.folder / 'best'} -> {target} (π{chosen.iteration}, highest held-out mean score)")
    run.say(f"figures       {run.folder / 'summary.json'}")
    run.say(f"everything    {run.folder} (iteration_*/generate, score, pair, reference, dpo, held_out; logs)")
    return model


def execute(cfg: Config, only: str | None = None) -> None:
    """Plan, refuse what cannot be, then run what is left to do."""
    assert cfg.run_dir is not None, "set on the command line or from the experiment's name"
    folder = resolved(cfg.run_dir, "run_dir")
    if not (folder / "summary.json").is_file():
        check_capacity(cfg)  # before the Hub is asked for anything
    with hold_run(folder, partial(print, flush=True)) as token:
        console = Console(folder)
        device = cfg.compute.device.value
        launcher = LocalLauncher(folder, token, cfg.compute.preload, device, console.progress, console.say)
        plan = Run(folder, cfg, planning=True)
        iterate(cfg, plan)
        plan.refuse_changes()
        if plan.pending:
            launcher.warm_up()
            if only is None:
                require(cfg, launcher, console.say)
        done = len(plan.made) - len(plan.pending)
        begun = (
            f"{done} stages are finished, {len(plan.pending)} to do" if done else f"{len(plan.pending)} stages to do"
        )
        console.say(f"{folder}: {begun}")
        if only is None:
            write_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(plain(cfg))).encode())
        try:
            iterate(cfg, Run(folder, cfg, launcher, only=only, console=console))
        except AloneDone:
            return
        except RunChanged:
            again = Run(folder, cfg, planning=True)  # what was redone came out different: name all that was made of it
            iterate(cfg, again)
            again.refuse_changes()
            raise
        if only is not None:
            raise ConfigError(f"artifact={only}: this run has no such stage; it has {', '.join(plan.made)}.")


if __name__ == "__main__":
    main(execute)
