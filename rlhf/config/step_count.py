"""How many optimizer steps a training has and how many of them warm up: for the training itself and for the
look before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

FEW_STEPS = 10
"""Steps too few to train with, or to say anything of a training."""
_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
"""Schedulers of transformers that take no notice of a warm-up."""


@dataclass(frozen=True)
class StepCount:
    """A training of `num_items` things (`what`, such as pairs) in each of `num_epochs` passes.

    `section` is that of the config, for the ways out. `max_steps` ends the training earlier (of
    `trainer_args`); None does not.

    Example:
        StepCount("dpo", 320, "pairs", batch_size=16, num_epochs=2, warmup_ratio=0.03) has 40 steps, 2 of them
        warm-up
    """

    section: str
    num_items: int
    what: str
    batch_size: int
    num_epochs: int
    warmup_ratio: float
    scheduler: str = "cosine"
    max_steps: int | None = None

    @property
    def steps(self) -> int:
        """All optimizer steps; an epoch's last one may be smaller than the others."""
        if self.max_steps is not None:
            return self.max_steps
        return math.ceil(self.num_items / self.batch_size) * self.num_epochs

    @property
    def warmup(self) -> int:
        """Steps in which the learning rate rises, from 0 in the first: never all, or nothing is learnt."""
        if self.scheduler in _WITHOUT_WARMUP:
            return 0
        wanted = math.ceil(self.steps * self.warmup_ratio)
        return max(0, min(wanted, self.steps - 1))

    def __str__(self) -> str:
        """The arithmetic, such as "320 pairs / batch 16 × 2 epochs = 40 steps, 2 of them warm-up, …"."""
        text = f"{self.num_items} {self.what} / batch {self.batch_size}"
        if self.num_epochs > 1:
            text += f" × {self.num_epochs} epochs"
        text += f" = {self.steps} steps"
        if self.max_steps is not None:
            text += f" ({self.section}.trainer_args.max_steps)"
        if self.scheduler in _WITHOUT_WARMUP:
            return f"{text}, no warm-up (lr_scheduler={self.scheduler})"
        text += f", {self.warmup} of them warm-up"
        if self.warmup:
            text += ", the first at learning rate 0"
        return text

    def warnings(self) -> Iterator[str]:
        """What is odd about it, with the ways out."""
        section = self.section
        if self.steps < FEW_STEPS:
            yield (
                f"fewer than {FEW_STEPS} steps: the learning rate's schedule and Adam's averages mean little."
                f" Give more {self.what}, lower {section}.batch_size, or raise {section}.num_epochs"
            )
        # One step in hundreds is how warm-up is done everywhere; a tenth of the training is a loss.
        if self.warmup and self.steps <= FEW_STEPS:
            yield (
                f"the first of {self.steps} steps has learning rate 0 and changes nothing: set "
                f"{section}.warmup_ratio=0, or more steps as above"
            )
        if self.warmup > self.steps / 2:
            yield (
                f"the learning rate rises over {self.warmup} of {self.steps} steps and is at its peak only "
                f"then: lower {section}.warmup_ratio (the paper has 0.03)"
            )


def steps_of(section: str, config: Any, num_items: int, what: str) -> StepCount:
    """The optimizer steps of a training on so many things in each epoch.

    Args:
        section: of the config.
        config: that section, or what the stage is told.
        num_items: what an epoch goes through, over all ranks.
        what: it is, such as "pairs".
    """
    max_steps = config.trainer_args.get("max_steps")
    # Below 1 it is off, as the Trainer has it; what is no number the Trainer refuses.
    is_limited = isinstance(max_steps, int) and max_steps > 0
    return StepCount(
        section,
        num_items,
        what,
        config.batch_size,
        config.num_epochs,
        config.warmup_ratio,
        # SFT and judges have no such setting.
        getattr(config, "lr_scheduler", "cosine"),
        max_steps if is_limited else None,
    )
