"""The schemas of the tools that look at runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from omegaconf import MISSING

from rlhf.config.choices import KeptPolicies, Strategy, Truncated
from rlhf.config.fields import NOT_NEGATIVE, setting


@dataclass
class CompareTool:
    """`python -m rlhf.compare`: what differs between runs, and which is better."""

    runs: list[str] = setting(factory=list, several=True, folders=True)
    """Run folders, folders that hold runs, or patterns such as `runs/sweep/*`; words without a key are runs
    too."""
    iteration: Optional[int] = setting(None, within=NOT_NEGATIVE)
    """Which policy of each run; null is its best one."""
    sort: Optional[str] = None
    """The figure by which runs are sorted, the best one first: `score`, `gold`, `win_rate`, `kl`, `tokens` or
    `cut`; null leaves them in the order given."""
    output: Optional[str] = None
    """An .html file to write, too; one of an earlier comparison is written anew."""
    debug: bool = False
    """Show tracebacks for the user's errors too."""


@dataclass
class OtherPairs:
    """Other settings of `pair`, each one or several; an empty list is what the run has."""

    strategy: list[Strategy] = setting(factory=list, several=True)
    """As `pair.strategy` of a run."""
    truncated: list[Truncated] = setting(factory=list, several=True)
    """As `pair.truncated` of a run."""
    length_penalty: list[float] = setting(factory=list, several=True)
    """As `pair.length_penalty` of a run."""
    min_margin: list[float] = setting(factory=list, several=True)
    """As `pair.min_margin` of a run."""
    num_candidates: list[Optional[int]] = setting(factory=list, several=True)
    """As `pair.num_candidates` of a run."""
    max_pairs_per_prompt: list[int] = setting(factory=list, several=True)
    """As `pair.max_pairs_per_prompt` of a run."""


@dataclass
class WhatIfTool:
    """`python -m rlhf.whatif`: what other settings of `pair` would have given."""

    run_dir: str = setting(MISSING, folders=True)
    """The run whose candidates and scores are looked at; nothing is written into it."""
    iterations: list[int] = setting(factory=list, several=True)
    """Which ones; an empty list is all."""
    pair: OtherPairs = field(default_factory=OtherPairs)
    """What is tried, every value of each setting with every value of the others."""
    debug: bool = False
    """Show tracebacks for the user's errors too."""


@dataclass
class ReportTool:
    """`python -m rlhf.report`: what a run has so far, as one page."""

    run_dir: str = setting(MISSING, folders=True)
    """The run's folder, finished or not."""
    output: Optional[str] = None
    """The .html file to write; null is `report.html` in the run's folder."""
    records: int = 300
    """Held-out prompts that the page shows at most: the extremes of every figure, the rest drawn."""
    seed: int = setting(0, within=NOT_NEGATIVE)
    """Of that draw."""
    debug: bool = False
    """Show tracebacks for the user's errors too."""


@dataclass
class GcTool:
    """`python -m rlhf.gc`: what of a run could go to make room, and removes it."""

    run_dir: str = setting(MISSING, folders=True)
    """The run's folder."""
    keep: KeptPolicies = KeptPolicies.best_and_last
    """Policies whose weights stay: `best_and_last`, or `all`, which removes leftovers alone."""
    dry_run: bool = True
    """Only say what would go; `false` removes it."""
    debug: bool = False
    """Show tracebacks for the user's errors too."""


@dataclass
class StatusTool:
    """`python -m rlhf.status`: how far a run is."""

    run_dir: str = setting(MISSING, folders=True)
    """The run's folder; nothing is written into it, and no lock is taken."""
    debug: bool = False
    """Show tracebacks for the user's errors too."""
