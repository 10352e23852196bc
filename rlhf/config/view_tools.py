"""The schemas of the tools that look at runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from omegaconf import MISSING

from rlhf.config.fields import NOT_NEGATIVE, setting


@dataclass
class ReportTool:
    """`python -m rlhf.report`: what a run has so far, as one page."""

    run_dir: str = MISSING
    """The run's folder, finished or not."""
    output: Optional[str] = None
    """The .html file to write; null is `report.html` in the run's folder."""
    records: int = 300
    """Held-out prompts that the page shows at most: the extremes of every figure, the rest drawn."""
    seed: int = setting(0, within=NOT_NEGATIVE)
    """Of that draw."""
    debug: bool = False
    """Show tracebacks for the user's errors too."""
