"""How long the ranks of a training wait for each other: as long as the driver waits for them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from rlhf.config.schema import ComputeConfig, ReferenceConfig
from rlhf.config.training import DpoConfig
from rlhf.training.deepspeed import group_timeout
from tests.stage_runner import make_job, run_here, run_ranks
from tests.tiny import random_pairs, tiny_llama, write_pairs

CHECK = """
import torch
import rlhf.training.fit as fit
train = fit.train_resumable
def checked(trainer, out, num_checkpoints):
    train(trainer, out, num_checkpoints)
    import torch.distributed as dist
    groups = list(dist.distributed_c10d._world.pg_map)
    assert dist.group.WORLD in groups and len(groups) > 1, "the default group, and DeepSpeed's"
    seconds = {group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups}
    assert seconds == {5000.0}, seconds
fit.train_resumable = checked
"""


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_every_group_of_a_training_waits_as_long_as_the_driver(tmp_path, zero_stage):
    policy = tiny_llama(tmp_path / "policy", seed=1)
    pairs = write_pairs(tmp_path / "pairs", random_pairs(8))
    inputs = {"model": policy, "pairs": pairs}
    reference = tmp_path / "reference"
    run_here(make_job("reference", ReferenceConfig(), inputs, reference, max_length=50))
    inputs = {"policy": policy, "pairs": pairs, "reference": reference}
    compute = {"hang_seconds": 5000.0, "zero_stage": zero_stage}
    section = DpoConfig(batch_size=8, num_epochs=1, max_length=50)
    job = make_job("dpo", section, inputs, tmp_path / "dpo", compute=compute)
    assert run_ranks(job, num_ranks=2, hook=CHECK).counts["steps"] == 1


@pytest.mark.parametrize(
    ("hang_seconds", "expected"),
    [
        (14400.0, timedelta(hours=4)),
        (0.5, timedelta(milliseconds=500)),
        (0.0, timedelta(days=365)),
        (1e30, timedelta(days=365)),
    ],
)
def test_for_ever_is_a_year(hang_seconds, expected):
    assert group_timeout(ComputeConfig(hang_seconds=hang_seconds)) == expected
