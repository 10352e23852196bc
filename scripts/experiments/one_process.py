"""A run whose stages all work in one process, one after the other.

What it makes is what `python -m rlhf.iterate` makes with one worker, one rank and one thread, to the byte
(`tests/integration/scripts/test_which_recipe.py`). For the quickstart's small models the start of a process
and of an engine for every stage is most of the work, and here it is spared.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from benchmarks.one_worker import OneWorker
from rlhf.command.line import CONFIGS
from rlhf.command.saved import write_saved
from rlhf.command.settings import to_config
from rlhf.config.schema import Config
from rlhf.errors import writing, writing_by_libraries
from rlhf.launch.machine import environments, starting_environment
from rlhf.launch.worker import redirect_output
from rlhf.loop.judges import initial_policy, rule_config
from rlhf.loop.prompt_sets import prompt_sets
from rlhf.loop.step import iteration_step, policy_dtype
from rlhf.run.artifact import Artifact
from rlhf.run.job import Job, Kind, Outcome
from rlhf.run.lock import hold_run
from rlhf.run.output import show
from rlhf.run.plan import Run
from rlhf.run.stage_table import stage_function

IMPORTS = (
    "rlhf.iterate",
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # else 2 s of torch._dynamo when an optimizer is set up
    "transformers.models.llama.modeling_llama",
    "rlhf.stages.world",
    "rlhf.stages.generate",
    "rlhf.stages.score",
    "rlhf.generation.transformers_sampler",
    "rlhf.scoring.classifier_judge",
    "rlhf.training.dpo",
    "rlhf.training.raft",
    "rlhf.training.reference",
    "rlhf.training.reward_model",
    "rlhf.training.sft",
)
"""What a process that runs are forked from has imported."""


class OnlyWorker(OneWorker):
    """The one worker of a stage, which makes the shards that are missing."""

    def __init__(self, missing: list[int]) -> None:
        super().__init__(len(missing))
        self._missing = missing

    def shards(self) -> Iterator[int]:
        """Every shard that is missing."""
        yield from self._missing

    def shards_ahead(self) -> Iterator[int | None]:
        """The same: there is nobody to wait for."""
        yield from self._missing

    def say(self, text: str) -> None:
        """Into the log."""
        show(text)


class InThisProcess:
    """The launcher of such a run (`rlhf.run.plan.Launcher`): a stage is a call."""

    def launch(self, job: Job[Any], kind: Kind, shards: list[int]) -> Outcome:
        """Run one stage attempt to its end."""
        (environment,) = environments(Kind.training, job.compute, 1, len(shards))
        os.environ.update(environment)
        began = time.process_time()
        with writing(), writing_by_libraries(job.out_path):
            outcome = stage_function(job.stage)(job, OnlyWorker(shards))
        show(f"{job.name}: {time.process_time() - began:.2f} s of processor")
        return outcome


def run_here(words: list[str]) -> dict[str, Any]:
    """Run the loop as a command line with these settings would, without its report; then answer greedily.

    Returns:
        `policies`: the rows of `summary.json`, each with the `steps` of its training; `greedy`: gold of
        greedy answers, by iteration, of π0 and the last policy; `processor_seconds`, of what was left to do.
    """
    from rlhf import iterate

    # A page of a megabyte that nobody reads, after each iteration of some two hundred runs.
    for name in ("begin_report", "update_report"):
        setattr(iterate, name, lambda run: None)
    began = time.process_time()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg: Config = to_config(compose("iterate", words))
    assert cfg.run_dir is not None, "named by the caller"
    folder = Path(cfg.run_dir)
    with hold_run(folder, show) as token:
        write_saved(folder, cfg, "quickstart")
        run = Run(folder, cfg, InThisProcess(), token=token)
        iterate.iterate(cfg, run)
        greedy = {str(t): _greedy_gold(cfg, run, t) for t in (0, cfg.num_iterations)}
    return {
        "policies": _rows(folder, run),
        "greedy": greedy,
        "processor_seconds": round(time.process_time() - began, 1),
    }


def _trained(run: Run, iteration: int) -> Artifact:
    """The training that made the policy of an iteration."""
    for stage in ("dpo", "raft"):
        name = f"iteration_{iteration:03d}/{stage}"
        if name in run.made:
            return run.made[name]
    raise AssertionError(f"iteration {iteration} has trained nothing")


def _greedy_gold(cfg: Config, run: Run, iteration: int) -> float:
    """Gold of one greedy answer to each held-out prompt, in 0–1."""
    initial = initial_policy(cfg, run)
    policy = _trained(run, iteration).part("model") if iteration else initial
    held_out = prompt_sets(cfg, run).held_out
    step = iteration_step(run, iteration, policy_dtype(cfg, initial)).inside("greedy")
    sampling = step.config("generate", n=1, temperatures=[0.0], iteration=iteration, slice=None)
    candidates = step.stage("generate", config=sampling, policy=policy, prompts=held_out)
    assert cfg.evaluate.gold is not None, "the quickstart has a gold"
    rule = rule_config(cfg, cfg.evaluate.gold, "evaluate.gold")
    gold = step.stage("score", name="gold", config=rule, candidates=candidates)
    from rlhf.loop.figures import scores_by_prompt

    scores = [score for each in scores_by_prompt(gold).values() for score in each]
    return sum(scores) / len(scores)


def _rows(folder: Path, run: Run) -> list[dict[str, Any]]:
    import json

    rows: list[dict[str, Any]] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))[
        "iterations"
    ]
    for row in rows[1:]:
        row["steps"] = _trained(run, row["iteration"]).counts["steps"]
    return rows


class Forked:
    """Runs in processes of their own, forked from one that has the imports done."""

    def __init__(self) -> None:
        os.environ.update(starting_environment("cpu"))
        # Python's forkserver does not look where this program's modules lie.
        here = Path(__file__).resolve()
        folders = [str(here.parent), str(here.parents[2]), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["preload_one_process"])

    def run(self, words: list[str], log: Path) -> dict[str, Any]:
        """What `run_here` gives of these settings; what it prints goes into the log.

        Raises:
            RuntimeError: it failed, or was killed.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        ours, its = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_child, args=(words, str(log), its), daemon=True)
        process.start()
        its.close()
        try:
            failed, answer = ours.recv()
        except EOFError:
            failed, answer = True, "it was killed"
        process.join()
        if failed:
            raise RuntimeError(f"a run failed: {answer}\nsettings: {' '.join(words)}\nits log: {log}")
        result: dict[str, Any] = answer
        return result


def _child(words: list[str], log: str, pipe: Connection) -> None:
    """The inside of such a process: the figures of a run, or what went wrong, through the pipe."""
    redirect_output(log)
    _leave_with_the_driver()
    try:
        # Preloaded: its environment would come too late for it.
        sys.modules["torch"].set_num_threads(1)
        pipe.send((False, run_here(words)))
    except BaseException:
        text = traceback.format_exc()
        show(text, error=True)
        pipe.send((True, text[-2000:]))
    finally:
        pipe.close()
        sys.stdout.flush()
        # Process groups and engines leave threads behind; all that matters is on disk and said.
        os._exit(0)


def _leave_with_the_driver() -> None:
    """End this process as soon as the driver is gone: the next one is to go on with the run."""
    driver = multiprocessing.parent_process()
    assert driver is not None, "a fork has a parent"

    def watch() -> None:
        wait([driver.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
