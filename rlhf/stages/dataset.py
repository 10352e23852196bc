"""Stage `dataset`: a split of a data set from the Hub as one Parquet file, so that a run holds what
it was made of.

Input: `snapshot`, the folder of the data set's files at one commit.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from rlhf.config.stage_configs import DatasetStage
from rlhf.errors import DataError
from rlhf.run.job import Job, Outcome, Worker


def run(job: Job[DatasetStage], worker: Worker) -> Outcome:
    """Write `rows.parquet`; the split's rows as they are, in their order.

    Config: `repo`, `commit`, `subset` (null is the default one), `split`.

    Raises:
        DataError: there is no such subset or split, or the files cannot be read.
    """
    return Outcome(counts={"rows": write_split(job.config, job.inputs["snapshot"], job.out_path)})


def write_split(config: DatasetStage, snapshot: str, out: Path) -> int:
    """Write a split of the data set in the folder `snapshot` to `out`/rows.parquet; returns how many rows.

    Raises:
        DataError: as `run`.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    # In the stage's own folder, so that nothing stays behind in the user's.
    cache = out / ".cache"
    try:
        rows = load_dataset(
            snapshot,
            name=config.subset,
            split=config.split,
            cache_dir=str(cache),
            streaming=False,
        )
    except (ValueError, OSError, DatasetGenerationError) as error:
        raise DataError(
            f"{config.repo} at {config.commit[:12]}: subset {config.subset}, split {config.split} "
            f"cannot be read: {error}. Name another one as owner/name:subset/split, or download "
            "the data set and give a file."
        ) from error
    rows.to_parquet(str(out / "rows.parquet"))
    # Everything left in the folder would become part of the artifact.
    shutil.rmtree(cache)
    return len(rows)
