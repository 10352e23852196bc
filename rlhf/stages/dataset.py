"""Stage `dataset`: a split of a data set from the Hub as one Parquet file, so that a run holds what
it was made of.

Input: `snapshot`, the folder of the data set's files at one commit.
"""

from __future__ import annotations

import shutil

from rlhf.config.stage_configs import DatasetStage
from rlhf.errors import DataError
from rlhf.run.job import Job, Outcome, Worker


def run(job: Job[DatasetStage], worker: Worker) -> Outcome:
    """Write `rows.parquet`; the split's rows as they are, in their order.

    Config: `repo`, `commit`, `subset` (null is the default one), `split`.

    Raises:
        DataError: there is no such subset or split, or the files cannot be read.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    config = job.config
    # In the stage's own folder, so that nothing stays behind in the user's.
    cache = job.out_path / ".cache"
    try:
        rows = load_dataset(
            job.inputs["snapshot"],
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
    rows.to_parquet(str(job.out_path / "rows.parquet"))
    # Everything left in the folder would become part of the artifact.
    shutil.rmtree(cache)
    return Outcome(counts={"rows": len(rows)})
