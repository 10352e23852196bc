"""Stage `reward_model`: a model and preference pairs make a judge of the kind that is asked for."""

from __future__ import annotations

from typing import Any

from rlhf.config.stage_configs import PreferenceModelStage
from rlhf.run.job import Job, Outcome, Worker
from rlhf.training.preference_model import train_preference_model
from rlhf.training.reward_model import train_reward_model


def train_judge(job: Job[Any], worker: Worker) -> Outcome:
    """Train on every rank; rank 0 writes `model/` and `metrics.jsonl`."""
    if isinstance(job.config, PreferenceModelStage):
        return train_preference_model(job, worker)
    return train_reward_model(job, worker)
