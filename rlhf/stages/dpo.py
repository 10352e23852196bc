"""Stage `dpo`: a policy, preference pairs and the reference's log-probabilities of them make the next policy."""

from __future__ import annotations

from rlhf.run.job import Job, Kind, Outcome, Worker

KIND = Kind.training


def run(job: Job, worker: Worker) -> Outcome:
    """Train on every rank; rank 0 writes `model/` and `metrics.jsonl`, and with LoRA `adapter/`."""
    from rlhf.training.dpo import train_dpo

    return train_dpo(job, worker)


if __name__ == "__main__":
    from rlhf.stage import main

    main("dpo")
