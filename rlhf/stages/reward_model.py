"""Stage `reward_model`: a model and preference pairs make a judge."""

from __future__ import annotations

from rlhf.run.job import Job, Kind, Outcome, Worker

KIND = Kind.training


def run(job: Job, worker: Worker) -> Outcome:
    """Train on every rank; rank 0 writes `model/` and `metrics.jsonl`."""
    if job.config.get("kind") == "pairwise":
        from rlhf.training.preference_model import train_preference_model

        return train_preference_model(job, worker)
    from rlhf.training.reward_model import train_reward_model

    return train_reward_model(job, worker)


if __name__ == "__main__":
    from rlhf.stage import main

    main("reward_model")
