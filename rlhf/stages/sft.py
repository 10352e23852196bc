"""Stage `sft`: a base model and conversations make a policy to begin with."""

from __future__ import annotations

from rlhf.run.job import Job, Kind, Outcome, Worker

KIND = Kind.training


def run(job: Job, worker: Worker) -> Outcome:
    """Train on every rank; rank 0 writes `model/` and `metrics.jsonl`."""
    from rlhf.training.sft import train_sft

    return train_sft(job, worker)


if __name__ == "__main__":
    from rlhf.stage import main

    main("sft")
