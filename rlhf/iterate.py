"""Online iterative DPO: `python -m rlhf.iterate experiment=… key=value …`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.command.line import main
from rlhf.command.retyped import begun_anew
from rlhf.command.saved import also_saying, changed_settings, other_run, write_saved
from rlhf.command.settings import named_experiment
from rlhf.config.choices import Method, Sampled
from rlhf.config.schema import Config
from rlhf.data.files import resolved
from rlhf.errors import ConfigError, DiskFull, RunChanged, RunInUse, UserError
from rlhf.launch.choose import on_a_cluster, watched_launcher
from rlhf.launch.machine import gpu_workers
from rlhf.loop.evaluate import evaluate, yardstick_of
from rlhf.loop.figures import Evaluation
from rlhf.loop.gates import Gates
from rlhf.loop.judges import initial_policy, judged_by, judges_of, reading, scored, trusted
from rlhf.loop.outcome import conclude, report
from rlhf.loop.pair_pool import pair_pool
from rlhf.loop.prompt_sets import prompt_sets
from rlhf.loop.retention import drop_policies
from rlhf.loop.shard_sizes import train_shard_size
from rlhf.loop.step import iteration_step, policy_dtype
from rlhf.preflight.capacity import check_capacity
from rlhf.run import sources
from rlhf.run.artifact import Artifact
from rlhf.run.console import Console
from rlhf.run.engine_choice import as_begun
from rlhf.run.lock import hold_run, still_ours
from rlhf.run.output import show
from rlhf.run.plan import AloneDone, Run
from rlhf.run.until import last_stage
from rlhf.view.kept_report import begin_report, update_report
from rlhf.view.live import drawn_lines
from rlhf.view.removable import telling_of_room
from rlhf.view.trackers import Trackers


def iterate(cfg: Config, run: Run) -> Artifact:
    """Online iterative DPO (RLHF Workflow, Alg. 2): policy_t is trained on pairs sampled from policy_{t-1}.

    Returns the best iterate on the held-out prompts. Called twice: once to plan, where nothing runs and
    unfinished artifacts have no digest, and once for real.
    """
    evaluations: list[Evaluation] = []
    gates = Gates(run, evaluations)
    initial = policy = initial_policy(cfg, run)
    judges = judges_of(cfg, run, initial)
    if cfg.reward_model.data is not None:
        gates.stage_finished(0, run.made["reward_model"])
    prompts = prompt_sets(cfg, run)
    dtype = policy_dtype(cfg, initial)
    num_workers = gpu_workers(cfg.compute, cfg.generate.tensor_parallel_size)
    yardstick = yardstick_of(cfg, run, initial, judges, prompts.held_out, num_workers)

    evaluations.append(evaluate(iteration_step(run, 0, dtype), initial, yardstick))
    begin_report(run)
    pool = pair_pool(cfg, run, initial, dtype)
    for t in range(1, cfg.num_iterations + 1):
        step = iteration_step(run, t, dtype, watcher=gates)
        if cfg.pair.data is None:
            train, prompt_rows = prompts.of(t)
            sampled = policy if cfg.generate.policy is Sampled.previous else initial
            sampling = step.config(
                "generate",
                iteration=t,
                slice=prompt_rows,
                shard_size=train_shard_size(cfg, run, num_workers),
                trusted_judges=trusted(judges),
            )
            candidates = step.stage(
                "generate",
                config=sampling,
                unrecorded=reading(judges),
                policy=sampled,
                prompts=train,
            )
            by = judged_by(cfg, judges, policy)
            scores, _ = scored(step, by, candidates, evaluations[0].others)
            pairs = None
            if cfg.method is Method.dpo:
                pairs = step.stage("pair", candidates=candidates, scores=scores)
        else:  # offline: the pairs are given, and nothing is sampled to train on
            candidates = None
            scores = None
            data = sources.data_file(run, cfg.pair.data, "pair.data")
            pairs = step.stage("preferences", data=data, policy=initial)
        if pairs is not None:
            policy = pool.train(step, policy, pairs)
        else:  # RAFT: supervised, on the best response of each prompt
            policy = step.stage("raft", model=policy, candidates=candidates, scores=scores).part("model")
        evaluations.append(evaluate(step, policy, yardstick, evaluations, candidates, pairs))
        try:
            rows = report(run, evaluations, gates)
        finally:  # a gate may stop the run here, and people look at why
            update_report(run)
        drop_policies(run, rows)
    chosen = conclude(run, evaluations, dtype)
    update_report(run)
    return chosen


def execute(cfg: Config, only: str | None = None) -> None:
    """Plan, refuse what cannot be, then run what is left to do.

    Args:
        cfg: a checked config with a run folder.
        only: the one stage to run, such as `iteration_002/dpo`; None runs the whole loop.
    """
    assert cfg.run_dir is not None, "set on the command line or from the experiment's name"
    folder = resolved(cfg.run_dir, "run_dir")
    with also_saying(lambda: other_run(folder, cfg)):
        if not (folder / "summary.json").is_file():
            check_capacity(cfg)  # before the Hub is asked for anything
    with (
        hold_run(folder, show, take_over=cfg.take_over, is_shared=on_a_cluster(cfg)) as token,
        Console(folder, drawn_lines, recorded=True, is_ours=lambda: still_ours(folder, token)) as console,
        telling_of_room(folder),
    ):
        launcher = watched_launcher(cfg, folder, token, console)
        elsewhere = begun_anew(cfg, folder, alone=only is not None)
        with (
            also_saying(lambda: other_run(folder, cfg)),
            also_saying(lambda: changed_settings(folder, cfg), RunChanged),
        ):
            plan = _planned(cfg, folder, elsewhere)
            names = _wanted(plan, cfg, only)
            pending = [name for name in plan.pending if name in names]
            if pending:
                # The imports go on while the preflight looks.
                launcher.warm_up(not plan.needing_engines.isdisjoint(pending))
                if only is None:
                    _look_first(cfg, plan, launcher, console)
        console.say(f"{folder}: {_todo(len(names), len(pending))}")
        console.plan(names, _seconds(plan, names))
        if only is None:
            write_saved(folder, cfg, named_experiment())
        until = names[-1] if len(names) < len(plan.made) else None
        run = Run(
            folder,
            cfg,
            launcher,
            only=only,
            until=until,
            console=console,
            elsewhere=elsewhere,
            token=token,
        )
        trackers = Trackers(folder, cfg, launcher, console.say)
        if only is None:
            run.publish = trackers.publish
        if pending:
            # Here, for the same reason as the preflight.
            from rlhf.preflight.disk_guard import DiskGuard

            run.about_to_make = DiskGuard(cfg, folder, console.say).look
        _carry_out(cfg, run, trackers)


def _look_first(cfg: Config, plan: Run, launcher: Any, console: Console) -> None:
    """Refuse what this machine cannot do."""
    # Here, for a run that is finished need not wait for the import.
    from rlhf.preflight.look import require

    # With the engine that has begun to score, which has to be installed to go on.
    score = as_begun(cfg.score, plan.made.values())
    require(replace(cfg, score=score), launcher, console.say)


def _carry_out(cfg: Config, run: Run, trackers: Trackers) -> None:
    """Run what is left to do, and tell of it, however it ends."""
    try:
        run.publish()  # what an earlier command made and did not tell, because it was killed
        iterate(cfg, run)
        trackers.conclude()
        # Here, for it takes a moment that a wrong config need not wait for.
        from rlhf.preflight.spent import tell_planned_and_spent

        tell_planned_and_spent(cfg, run.folder, _seconds(run, run.made), run.say)
    except AloneDone:
        if run.only is None:
            run.say(f"until={cfg.until}: {run.until} is finished. Without until the run goes on from here.")
            trackers.conclude()
    except RunChanged:
        # What was redone came out different: plan again, to name all that was made of it.
        _planned(cfg, run.folder, run.elsewhere)
        raise  # where the new plan finds nothing to refuse: an input that is damaged, say
    except RunInUse:
        raise  # another driver has taken over: what the run has to tell is that one's to tell
    except DiskFull:
        raise  # what is told to trackers would need room too
    except UserError:
        run.publish()  # a gate may have stopped it: what it found is written
        raise


def _planned(cfg: Config, folder: Path, elsewhere: str) -> Run:
    """What the loop finds in its folder and would do; RunChanged for everything that has changed, at once."""
    plan = Run(folder, cfg, planning=True, elsewhere=elsewhere)
    iterate(cfg, plan)
    plan.refuse_changes()
    return plan


def _wanted(plan: Run, cfg: Config, only: str | None) -> list[str]:
    """The names of a run's stages, up to the one after which it is to stop."""
    names = list(plan.made)
    if only is not None:
        if only not in names:
            raise ConfigError(f"artifact={only}: this run has no such stage; it has {', '.join(names)}.")
        return names
    if cfg.until is None:
        return names
    last = last_stage(cfg.until, names)
    return names if last is None else names[: names.index(last) + 1]


def _seconds(run: Run, names: Iterable[str]) -> dict[str, float]:
    """What each of some stages took, of those that are finished."""
    finished = [name for name in names if run.made[name].digest is not None]
    return {name: run.made[name].record.get("seconds", 0.0) for name in finished}


def _todo(num_stages: int, num_pending: int) -> str:
    num_done = num_stages - num_pending
    if num_done:
        return f"{num_done} stages are finished, {num_pending} to do"
    return f"{num_pending} stages to do"


if __name__ == "__main__":
    main(execute)
