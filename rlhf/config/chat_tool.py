"""The schema of `python -m rlhf.chat`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from omegaconf import MISSING

from rlhf.config.fields import NOT_NEGATIVE, POSITIVE, setting


@dataclass
class ChatTool:
    """`python -m rlhf.chat`: talk to the iterates of a run."""

    run_dir: str = setting(MISSING, folders=True)
    """The run."""
    iterations: Any = None
    """Whom to talk to, side by side: `[0,3]`, of which 0 is π0; null is the best one."""
    once: Optional[str] = None
    """One question, answered and left: for scripts. `-` reads it from standard input."""
    json: bool = False
    """With `once`: print one JSON document."""
    temperature: float = setting(1.0, within=NOT_NEGATIVE)
    """Of sampling; 0 is greedy."""
    max_new_tokens: Optional[int] = setting(None, within=POSITIVE)
    """Tokens of an answer before it is cut; null is the run's `generate.max_new_tokens`."""
    seed: int = setting(42, within=NOT_NEGATIVE)
    """Source of every draw: the same questions get the same answers."""
    scores: bool = True
    """Say below each answer what the run's judges give it."""
    debug: bool = False
    """Show tracebacks for the user's errors too."""
