"""The schemas of the tools that look at runs."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class StatusTool:
    """`python -m rlhf.status`: how far a run is."""

    run_dir: str = MISSING
    """The run's folder; nothing is written into it, and no lock is taken."""
    debug: bool = False
    """Show tracebacks for the user's errors too."""
