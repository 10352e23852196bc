"""What can be told before a run begins, without loading a model: docs/checks.md lists the checks.

What needs tokenizers is in `rlhf.preflight.tokenizers`, which a process of its own runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rlhf.config.fields import filled
from rlhf.config.limits import problems
from rlhf.config.schema import Config
from rlhf.config.stage_configs import CallRuleStage, PreflightStage, StageCompute
from rlhf.config.training import DpoConfig
from rlhf.data.records import Message
from rlhf.errors import ConfigError, UserError, WorkerFailed
from rlhf.loop.judges import rules_of
from rlhf.preflight.cuda import cuda
from rlhf.preflight.findings import Finding, Level, collect, refusal, table
from rlhf.preflight.generative import generative_judge
from rlhf.preflight.hardware import disk, engine_arguments, versions
from rlhf.preflight.hyperparameters import hyperparameters
from rlhf.preflight.inputs import data, first_prompt, models, prompts
from rlhf.preflight.memory import memory_of_stages
from rlhf.preflight.reporting import trackers
from rlhf.preflight.training_data import step_counts, training_rows
from rlhf.run.job import Job, Kind
from rlhf.run.plan import Launcher


def look(cfg: Config, launcher: Launcher, call_rules: bool = False) -> list[Finding]:
    """Everything there is to find; for models from outside `launcher` starts a process that reads tokenizers.

    With `call_rules` another one calls each Python function of the config once, and the server of a
    generative judge is asked once. That is for a config that the person has just typed: a run's own settings
    may name code of whoever made its folder.

    Example:
        [Finding(Level.ok, "model.path=@world/model: – made by this run", "", "models"), …]
    """
    wrong = problems(cfg)
    if wrong:
        return collect("config", map(refusal, wrong))
    folders: dict[str, Path] = {}
    sizes: dict[str, float] = {}
    files: dict[str, Path] = {}
    sample: list[list[Message]] = []
    numbers: dict[str, int] = {}
    # The order matters: the first four checks fill what the later ones read.
    findings = collect("models", models(cfg, folders, sizes))
    findings += collect("data", data(cfg, files))
    findings += collect("prompts", prompts(cfg, files, sample))
    findings += collect("data", training_rows(cfg, files, numbers))
    findings += collect("judge", generative_judge(cfg, sample, asks=call_rules))
    if call_rules and rules_of(cfg):
        findings += _call_rules(cfg, launcher, files, sample)
    if folders or _has_names_for_trainers(cfg):
        findings += _look_at_tokenizers(cfg, launcher, folders, sample)
    findings += collect("training", step_counts(cfg, numbers))
    findings += collect("training", hyperparameters(cfg, sizes))
    # One call each: an error ends a check, and too little memory must not hide too small a disk.
    findings += collect("machine", disk(cfg, sizes, folders))
    findings += collect("machine", memory_of_stages(cfg, sizes, folders))
    findings += collect("machine", cuda(cfg))
    findings += collect("machine", engine_arguments(cfg))
    findings += collect("versions", versions(cfg))
    findings += collect("trackers", trackers(cfg))
    return findings


def _has_names_for_trainers(cfg: Config) -> bool:
    """Whether anything is passed on by name that only transformers and TRL can tell right from wrong."""
    trainer_args = (cfg.dpo.trainer_args, cfg.sft.trainer_args, cfg.reward_model.trainer_args)
    if any(trainer_args):
        return True
    return cfg.dpo.lr_scheduler != DpoConfig().lr_scheduler


def _look_at_tokenizers(
    cfg: Config, launcher: Launcher, folders: dict[str, Path], sample: list[list[Message]]
) -> list[Finding]:
    paths = {key: str(folder) for key, folder in folders.items()}
    config = PreflightStage(cfg, paths, sample)
    compute = filled(StageCompute, cfg.compute)
    # No inputs and no folder to write in: it leaves no artifact.
    job = Job("preflight", "preflight", config, {}, "", cfg.seed, compute)
    try:
        outcome = launcher.launch(job, Kind.single, [])
    except (UserError, WorkerFailed) as error:
        # Only a warning: a process that could not look has found nothing wrong with the run.
        return [Finding(Level.warning, "tokenizers could not be looked at", str(error), "models")]
    findings: list[Finding] = outcome.metrics["findings"]
    return findings


def _call_rules(
    cfg: Config, launcher: Launcher, files: dict[str, Path], sample: list[list[Message]]
) -> list[Finding]:
    findings: list[Finding] = []
    for key, rule in rules_of(cfg).items():
        messages = sample[0] if sample else None
        if key == "reward_model.on_policy.rule":
            messages = first_prompt(cfg, files, "reward_model.on_policy.prompts")
        config = CallRuleStage(key, rule, messages)
        job = Job("call_rule", "call_rule", config, {}, "", cfg.seed, filled(StageCompute, cfg.compute))
        # A process for each: a rule may end its own, and must not take the others with it.
        try:
            outcome = launcher.launch(job, Kind.single, [])
        except (UserError, WorkerFailed) as error:
            how, _, _ = str(error).partition(". ")
            text = f"{key}={rule}: the process that called it did not end well"
            way_out = f"{how}. A rule must leave its process alone, and come to an end."
            findings.append(Finding(Level.error, text, way_out, "data"))
            continue
        findings += outcome.metrics["findings"]
    return findings


def require(cfg: Config, launcher: Launcher, say: Callable[[str], None]) -> None:
    """Look before a run, say what is odd, and refuse what cannot work.

    Raises:
        ConfigError: everything that is wrong or odd, with the ways out.
    """
    findings = [item for item in look(cfg, launcher) if item.level is not Level.ok]
    levels = {item.level for item in findings}
    if Level.error in levels:
        raise ConfigError(f"the preflight found what cannot work; nothing was run.\n{table(findings)}")
    if findings:
        say(table(findings))
