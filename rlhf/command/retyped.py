"""A run's command, typed once more: what a person pastes to begin anew beside a run that is refused."""

from __future__ import annotations

import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from rlhf.command.saved import going_on
from rlhf.command.settings import typed_words
from rlhf.config.overrides import override, overrides_of, pasted
from rlhf.config.schema import Config

_SET_ANEW = ("run_dir", "reuse", "take_over")


def begun_anew(cfg: Config, folder: Path, alone: bool = False) -> str:
    """The command that makes this run in a new folder, where all that is the same is taken from this one.

    Args:
        cfg: what is asked for.
        folder: the run that holds other work.
        alone: it is a single stage of the run, whose command says nothing of the other settings.

    Example:
        python -m rlhf.iterate experiment=quickstart seed=7 run_dir=/runs/mine-2 'reuse=[/runs/mine]'
    """
    number = 2
    while (folder.parent / f"{folder.name}-{number}").exists():
        number += 1
    new = folder.parent / f"{folder.name}-{number}"
    reuse = [str(folder), *(run for run in cfg.reuse if run != str(folder))]
    return pasted(
        "python",
        "-m",
        "rlhf.iterate",
        *(_all_settings(cfg) if alone else _words(cfg)),
        override("run_dir", str(new)),
        override("reuse", reuse),
    )


def _all_settings(cfg: Config) -> list[str]:
    return overrides_of(cfg, leaving_out=(*_SET_ANEW, "until", "debug"))


def _words(cfg: Config) -> list[str]:
    """What was typed but for the run folder; all settings, where the command went on with those of a run."""
    typed = sys.argv[1:]
    goes_on = going_on(typed, cfg.run_dir, Config) is not None
    if goes_on or not HydraConfig.initialized():
        return _all_settings(cfg)
    flags = [word for word in typed if word.startswith("-") or "=" not in word]
    kept = [word for word in flags if word not in ("-m", "--multirun")]
    for word in typed_words():
        key = word.split("=", 1)[0].lstrip("+~")
        if key not in _SET_ANEW:
            kept.append(word)
    return kept
