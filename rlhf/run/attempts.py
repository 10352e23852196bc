"""A stage that runs out of memory is started again, with fewer tokens at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from rlhf.data.shards import shard_name
from rlhf.errors import SmallerBatches
from rlhf.run.artifact import Artifact
from rlhf.run.job import Job, Outcome
from rlhf.run.stage_table import kind_of, num_shards

if TYPE_CHECKING:
    from rlhf.run.plan import Launcher

_MOST_ATTEMPTS = 20
"""More than halvings from any budget to a token."""


def run_to_the_end(launcher: Launcher, job: Job[Any], say: Callable[[str], None]) -> Outcome:
    """Run a stage; where memory runs out, again from what is finished, while it finds smaller batches."""
    kind = kind_of(job.stage, job.compute)
    num_failed = 0
    while True:
        shards = range(num_shards(job))
        missing = [index for index in shards if not (job.out_path / shard_name(index)).exists()]
        try:
            return launcher.launch(job, kind, missing)
        except SmallerBatches as error:
            num_failed += 1
            # Workers whose devices are unlike may take back what another has found, for ever.
            if num_failed == _MOST_ATTEMPTS:
                raise
            say(f"  ! {job.name}: {error}")


def found_budget(made: Iterable[Artifact], stage: str) -> dict[str, Any] | None:
    """What the newest artifact of a stage says of the tokens that went through at a time.

    Args:
        made: a run's artifacts, the newest first.
        stage: its name in `rlhf.run.stage_table.STAGES`.
    """
    for artifact in made:
        is_of_the_stage = artifact.record.get("identity", {}).get("stage") == stage
        if is_of_the_stage and "budget" in artifact.metrics:
            return dict(artifact.metrics["budget"])
    return None
